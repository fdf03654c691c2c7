"""Run the fake endpoint by hand: ``python -m tests.support.fake_ecs --help``."""

from __future__ import annotations

import argparse
import signal
import threading

from tests.support.fake_ecs import Cloud, FakeEcs, Key

KEY = Key("LTAI5tFakeKeyId00", "fake-secret-00")


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A fake of Alibaba Cloud's ECS and RAM APIs, for trying things out without an "
        "account.\nIt prints the settings for [gpu.NAME.aliyun], and runs until it is interrupted.",
        epilog="The credentials that it accepts, unless --key-id and --key-secret say otherwise:\n"
        f"  export ALIBABA_CLOUD_ACCESS_KEY_ID={KEY.id}\n"
        f"  export ALIBABA_CLOUD_ACCESS_KEY_SECRET={KEY.secret}",
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="of 127.0.0.1; default: a free one")
    add("--region", default="cn-hangzhou")
    add("--instance", action="append", help="an instance id; may be repeated")
    add("--private-ip", default="127.0.0.1", help="the instances' private address")
    add("--start-seconds", type=float, default=20.0, help="from accepted start to running")
    add("--stop-seconds", type=float, default=10.0, help="from accepted stop to stopped")
    add("--key-id", default=KEY.id, help=f"the AccessKey id to accept; default: {KEY.id}")
    add("--key-secret", default=KEY.secret, help=f"and its secret; default: {KEY.secret}")
    options = parser.parse_args()
    cloud = Cloud(options.region)
    for instance_id in options.instance or ["i-bp1fake0001"]:
        cloud.add(
            instance_id,
            private_ip=options.private_ip,
            start_seconds=options.start_seconds,
            stop_seconds=options.stop_seconds,
        )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    keys = (Key(options.key_id, options.key_secret),)
    with FakeEcs(cloud, keys=keys, port=options.port) as fake:
        settings = f'endpoint = "{fake.endpoint}"\nram_endpoint = "{fake.endpoint}"'
        print(f'region = "{cloud.region}"\n{settings}\nprotocol = "http"', flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
