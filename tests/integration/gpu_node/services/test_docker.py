"""The real agent with a real Docker daemon: containers that start, crash, are replaced and taken up."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from qwenctl.protocol.messages import Command
from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import AgentProcess, Start, service, spec
from tests.support.docker_engine import IMAGE, DockerEngine
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

NAME = "qwenctl-main-webui"


def container(engine: DockerEngine, name: str = NAME) -> Any:
    with contextlib.closing(engine.client()) as client:
        return client.inspect_container(name)


def containers(engine: DockerEngine) -> list[Any]:
    with contextlib.closing(engine.client()) as client:
        return client.containers(all=True)


def test_a_container_is_made_started_and_stopped(
    start: Start, proxy: StandInProxy, engine: DockerEngine, tmp_path: Path
) -> None:
    service = containerised(
        "--say",
        "the model is here",
        env={"MODEL": "small"},
        shm_size=128 * 1024**2,
        memory=256 * 1024**2,
        cpus=0.5,
        volumes=(f"{tmp_path}:/data:ro",),
    )
    proxy.spec = spec(service)
    agent = start(KEEP_CONTAINERS="false")
    ready(proxy)
    made = container(engine)
    assert made["State"]["Running"]
    assert "MODEL=small" in made["Config"]["Env"]
    host = made["HostConfig"]
    assert (host["ShmSize"], host["Memory"], host["NanoCpus"]) == (
        128 * 1024**2,
        256 * 1024**2,
        500_000_000,
    )
    assert host["Binds"] == [f"{tmp_path}:/data:ro"]
    assert next(iter(made["NetworkSettings"]["Networks"].values()))["Aliases"][0] == "webui"
    assert len(made["NetworkSettings"]["Networks"]) == 1
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert requests.get(f"http://127.0.0.1:{service.port}/", timeout=5).text == "hello"
    proxy.wait_report(lambda r: "webui: the model is here" in r.log)
    told = proxy.wait_report(lambda r: r.services and r.services[0].detail.endswith(": running"))
    assert told.services[0].detail.startswith(f"container {made['Id'][:12]} of {IMAGE}")
    phases = [r.progress.phase for r in proxy.reports if r.progress.phase]
    assert "create" in phases or "start" in phases
    assert agent.terminate() == 0
    assert not container(engine)["State"]["Running"]
    assert "the model is here" in (tmp_path / "logs" / "webui.log").read_text()


def test_an_agent_that_is_stopped_or_killed_leaves_the_container_to_the_next(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    first = container(engine)
    proxy.forget()
    assert agent.terminate() == 0
    assert not [r for r in proxy.reports if r.state == "stopping"]
    assert container(engine)["State"]["Running"]

    agent = start()
    ready(proxy)
    agent.process.kill()
    agent.process.wait()
    proxy.forget()
    start()
    ready(proxy)
    again = container(engine)
    assert again["Id"] == first["Id"]
    assert again["State"]["StartedAt"] == first["State"]["StartedAt"]
    assert len(containers(engine)) == 1


def test_an_agent_that_is_stopped_as_it_begins_cuts_nothing(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    agent.terminate()
    before = container(engine)["State"]["StartedAt"]
    for number in range(8):
        agent = start()
        lines = len(agent.log.splitlines())
        until(lambda agent=agent, lines=lines: len(agent.log.splitlines()) > lines, 30.0)
        time.sleep(0.02 * number)
        assert agent.terminate() == 0
        assert container(engine)["State"] | {"StartedAt": before} == container(engine)["State"]
        assert container(engine)["State"]["Running"]


def test_another_image_does_not_remove_one_that_has_a_name(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    engine.build("qwenctl-test:other", f"FROM {IMAGE}\nENV OTHER=1\n")
    port = free_port()
    proxy.spec = spec(containerised(port=port, image="qwenctl-test:other"))
    start()
    ready(proxy)
    proxy.spec = spec(containerised(port=port), version="2")
    proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready", timeout=60)
    with contextlib.closing(engine.client()) as client:
        assert client.inspect_image("qwenctl-test:other")["RepoTags"] == ["qwenctl-test:other"]


def test_a_container_that_was_stopped_is_started_not_made_anew(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised())
    agent = start(KEEP_CONTAINERS="false")
    ready(proxy)
    first = container(engine)
    agent.terminate()
    proxy.forget()
    start()
    ready(proxy)
    assert container(engine)["Id"] == first["Id"]


def test_what_was_made_otherwise_is_made_anew(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    port = free_port()
    proxy.spec = spec(containerised(port=port, env={"A": "1"}))
    start()
    ready(proxy)
    first = container(engine)
    proxy.forget()
    proxy.spec = spec(containerised(port=port, env={"A": "2"}), version="2")
    proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready", timeout=60)
    second = container(engine)
    assert second["Id"] != first["Id"]
    assert "A=2" in second["Config"]["Env"]
    assert len(containers(engine)) == 1


def test_a_service_that_is_no_more_goes_even_if_the_agent_was_away(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised(name="old"))
    agent = start()
    ready(proxy)
    agent.process.kill()
    agent.process.wait()
    proxy.forget()
    proxy.spec = spec(containerised(), version="2")
    start()
    proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready", timeout=60)
    assert [one["Names"] for one in containers(engine)] == [[f"/{NAME}"]]


def test_a_container_goes_when_its_service_becomes_a_command(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised())
    start()
    ready(proxy)
    proxy.spec = spec(service(), version="2")
    proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready", timeout=60)
    until(lambda: not containers(engine), 30.0)


def test_a_crash_loop_is_given_up_with_the_last_words(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    broken = containerised(
        max_restarts=1,
        entrypoint=("python3", "-c"),
        command=("print('CUDA out of memory'); raise SystemExit(3)",),
    )
    proxy.spec = spec(broken)
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "exit code 3" in failed.error
    assert "CUDA out of memory" in failed.error
    assert len(containers(engine)) == 1


def test_a_container_that_is_killed_for_want_of_memory_says_so(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    greedy = containerised(
        max_restarts=0,
        memory=64 * 1024**2,
        entrypoint=("python3", "-c"),
        command=("x = b'x' * (256 * 1024 * 1024); print(len(x))",),
    )
    proxy.spec = spec(greedy)
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "killed for want of memory (its limit is 64 MiB" in failed.error


def test_docker_that_restarts_it_by_itself_does_not_hide_a_crash(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(
        containerised(
            max_restarts=1,
            restart="unless-stopped",
            entrypoint=("python3", "-c"),
            command=("import time; time.sleep(0.5); raise SystemExit(4)",),
        )
    )
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "exit code 4" in failed.error
    time.sleep(1.5)
    assert not container(engine)["State"]["Running"]


def test_a_container_that_is_not_ours_is_left_alone(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    with contextlib.closing(engine.client()) as client:
        made = client.create_container(IMAGE, ["8000"], name=NAME)
    proxy.spec = spec(containerised(max_restarts=9))
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "remove or rename it" in failed.error
    assert failed.services[0].restarts == 0  # no retry would help
    assert container(engine)["Id"] == made["Id"]


def test_a_gpu_that_docker_cannot_give_is_explained(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised(gpus=("all",), max_restarts=0))
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "nvidia-container-toolkit" in failed.error


def test_a_command_that_the_image_lacks_is_not_tried_again(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised(entrypoint=("no-such-program",), max_restarts=9))
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "no-such-program" in failed.error
    assert failed.services[0].restarts == 0


def test_a_port_in_use_is_named(start: Start, proxy: StandInProxy, engine: DockerEngine) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        proxy.spec = spec(containerised(port=port, max_restarts=0))
        start()
        failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
        assert f"port {port} of the node is in use" in failed.error


def test_secrets_are_in_no_log(
    start: Start, proxy: StandInProxy, engine: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "webui.env").write_text("# for the model\nHF_TOKEN=hush-hush-1234\n")
    proxy.spec = spec(
        containerised("--say", "token is hush-hush-1234", env_file=str(tmp_path / "webui.env"))
    )
    start()
    ready(proxy)
    proxy.wait_report(lambda r: "webui: token is ***" in r.log)
    assert "HF_TOKEN=hush-hush-1234" in container(engine)["Config"]["Env"]
    assert "hush" not in (tmp_path / "logs" / "webui.log").read_text()
    assert not [r for r in proxy.reports if "hush" in r.model_dump_json()]


_AFTER_BACKEND = """
until python3 -c "import urllib.request as u; u.urlopen('http://backend:8000/')"; do sleep 0.1; done
exec python3 /service_program.py 8000 --host 0.0.0.0
"""


def test_services_find_each_other_by_name(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    backend = containerised(name="backend")
    # Ready only once it has been answered by the other one.
    front = containerised(
        name="front",
        entrypoint=("sh", "-c"),
        command=(_AFTER_BACKEND,),
    )
    proxy.spec = spec(front, backend)
    start()
    ready(proxy)


def test_a_drain_stops_the_container(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised())
    start()
    ready(proxy)
    proxy.commands.append(Command(verb="drain"))
    proxy.wait_report(lambda r: r.services and r.services[0].state == "stopped", timeout=30)
    assert not container(engine)["State"]["Running"]


def test_with_live_restore_a_restart_of_the_daemon_is_no_crash(
    proxy: StandInProxy, tmp_path: Path
) -> None:
    own = DockerEngine("--bridge=none", "--iptables=false", "--live-restore")
    try:
        own.start()
        own.load_image()
        port = free_port()
        proxy.spec = spec(containerised(network="host", port=port, command=(str(port),)))
        agent = AgentProcess(tmp_path, [proxy.url], DOCKER_HOST=own.host)
        try:
            ready(proxy)
            before = container(own)["State"]["StartedAt"]
            proxy.forget()
            own.stop()
            own.start()
            seen = len(proxy.reports)
            proxy.wait(lambda p: len(p.reports) >= seen + 5)
            assert {r.state for r in proxy.reports} == {"ready"}
            assert container(own)["State"]["StartedAt"] == before
        finally:
            agent.process.kill()
            agent.process.wait()
    finally:
        own.close()


def test_a_daemon_that_is_restarted_is_waited_for(proxy: StandInProxy, tmp_path: Path) -> None:
    own = DockerEngine("--bridge=none", "--iptables=false")
    try:
        own.start()
        own.load_image()
        port = free_port()
        service = containerised(network="host", port=port, command=(str(port),), restart="no")
        proxy.spec = spec(service)
        agent = AgentProcess(tmp_path, [proxy.url], DOCKER_HOST=own.host)
        try:
            ready(proxy)
            own.stop()
            proxy.forget()  # or a report from before the first "ready" is taken for the loss
            proxy.wait_report(lambda r: r.services and r.services[0].state != "ready", timeout=30)
            proxy.forget()
            own.start()
            ready(proxy)
            assert container(own)["State"]["Running"]
            assert len(containers(own)) == 1
        finally:
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
    finally:
        own.close()


def test_a_service_is_stopped_and_started_again_by_command(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    proxy.spec = spec(containerised(name="one"), containerised(name="two"))
    start()
    ready(proxy)
    proxy.commands.append(Command(verb="stop-service", service="two"))
    proxy.wait_report(lambda r: [s.state for s in r.services] == ["ready", "stopped"], timeout=30)
    assert not container(engine, "qwenctl-main-two")["State"]["Running"]
    proxy.forget()
    proxy.commands.append(Command(verb="restart-service", service="two"))
    ready(proxy)


def test_an_agent_that_reloads_reads_its_settings_and_cuts_nothing(
    start: Start, proxy: StandInProxy, engine: DockerEngine, tmp_path: Path
) -> None:
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    before = container(engine)
    secret = tmp_path / "secret"
    kept = secret.read_text()
    # Settings that could not be used are refused: an agent is worth more than a wish.
    secret.write_text("")
    proxy.commands.append(Command(verb="reload"))
    until(lambda: "not reloaded" in agent.log, 30.0)
    secret.write_text(kept)
    hellos = len(proxy.hellos)
    proxy.commands.append(Command(verb="reload"))
    proxy.wait(lambda p: len(p.hellos) > hellos, timeout=30)
    proxy.forget()
    ready(proxy)
    after = container(engine)
    assert (after["Id"], after["State"]["StartedAt"]) == (
        before["Id"],
        before["State"]["StartedAt"],
    )
    assert agent.process.poll() is None
    assert agent.terminate() == 0


def test_an_agent_killed_at_any_moment_makes_one_container(
    start: Start, proxy: StandInProxy, engine: DockerEngine
) -> None:
    """From before it has said hello to while the service loads."""
    proxy.spec = spec(containerised("--load", "1.0"))
    for delay in (0.2, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4):
        agent = start()
        time.sleep(delay)
        agent.process.kill()
        agent.process.wait()
        assert len(containers(engine)) <= 1
    proxy.forget()
    start()
    ready(proxy)
    assert len(containers(engine)) == 1


def test_a_daemon_that_is_restarted_in_the_middle_of_a_boot(
    proxy: StandInProxy, tmp_path: Path
) -> None:
    own = DockerEngine("--bridge=none", "--iptables=false")
    try:
        own.start()
        own.load_image()
        port = free_port()
        loading = (str(port), "--load", "4", "--say", "loading")
        proxy.spec = spec(containerised(network="host", port=port, command=loading))
        agent = AgentProcess(tmp_path, [proxy.url], DOCKER_HOST=own.host)
        try:
            proxy.wait_report(lambda r: "webui: loading" in r.log, timeout=60)
            own.stop()
            own.start()
            ready(proxy)
            assert len(containers(own)) == 1
        finally:
            agent.process.kill()
            agent.process.wait()
    finally:
        own.close()
