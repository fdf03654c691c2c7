"""The ready-made workloads, and single keys of them changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.loading import load_config
from qwenctl.config.workloads import PRESET_OF
from qwenctl.errors import ConfigError

MODEL = "Qwen/Qwen3-VL-8B-Instruct"


BOTH = 'workload = "open-webui+vllm"\nmodel = "x"\n'


def gpu(**settings: Any) -> GpuConfig:
    return GpuConfig.model_validate(settings)


def test_the_setting_offers_every_workload() -> None:
    offered = GpuConfig.model_json_schema()["properties"]["workload"]["enum"]
    assert set(offered) == {"custom", *PRESET_OF}


@pytest.mark.parametrize("workload", sorted(PRESET_OF))
def test_a_workload_and_a_model_are_enough(workload: str) -> None:
    found = gpu(workload=workload, model=MODEL)
    assert found.preset == PRESET_OF[workload]
    assert found.spec.services
    assert all(service.runtime == "docker" for service in found.spec.services)
    serving = next(service for service in found.spec.services if MODEL in service.command)
    assert serving.weights == "/var/lib/qwenctl-models/hub/models--Qwen--Qwen3-VL-8B-Instruct"
    assert serving.container is not None
    assert serving.container.volumes == ("/var/lib/qwenctl-models:/root/.cache/huggingface",)
    assert serving.container.shm_size == 8 * 1024**3


def test_qwens_webui_is_started_as_its_image_wants_it() -> None:
    # The script's options are those of Qwen's repository; the image has no entry point.
    (service,) = gpu(workload="qwen3-vl-webui", model=MODEL).service
    assert service.command[:2] == ("python", "web_demo_mm.py")
    assert service.command[6:8] == ("--server-name", "0.0.0.0")
    assert service.container is not None
    assert service.container.entrypoint == ()


def test_a_directory_is_mounted_and_read_ahead() -> None:
    (service,) = gpu(workload="vllm-openai", model="/srv/models/qwen").service
    assert service.weights == "/srv/models/qwen"
    assert service.container is not None
    assert service.container.volumes == ("/srv/models/qwen:/srv/models/qwen:ro",)


def test_open_webui_is_what_people_see_and_vllm_is_for_it_alone() -> None:
    webui, vllm = gpu(workload="open-webui+vllm", model=MODEL).spec.services
    assert (webui.name, webui.port) == ("webui", 8080)
    assert webui.env["OPENAI_API_BASE_URL"] == "http://vllm:8000/v1"
    assert webui.container is not None
    assert webui.container.gpus == ()
    assert vllm.name == "vllm"
    assert vllm.container is not None
    assert vllm.container.bind == "127.0.0.1"


def test_a_table_of_the_same_name_changes_single_keys() -> None:
    found = gpu(
        workload="qwen3-vl-webui",
        model=MODEL,
        preset="generic",
        service=[
            {"container": {"image": "registry.example.com/webui:1", "gpus": [1]}, "port": 9000},
            {"name": "extra", "command": ["true"], "port": 9001},
        ],
    )
    webui, extra = found.service
    assert webui.container is not None
    assert webui.container.image == "registry.example.com/webui:1"
    assert webui.container.gpus == ("1",)
    assert webui.container.shm_size == 8 * 1024**3
    assert webui.container.port == 7860  # inside, it listens where it did
    assert (webui.port, extra.name, found.preset) == (9000, "extra", "generic")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('workload = "vllm-openai"', "needs a model"),
        ('workload = "vllm-openai"\nmodel = 3', "gpu.main.model"),
        ('workload = "vllm-openai"\nmodel = "a b"', "gpu.main.model"),
        ('workload = "vllm-openai"\nmodel = "x"\nservice = 3', "gpu.main.service"),
        ('workload = "vlm"\nmodel = "x"', "'vllm-openai'"),
        ("workload = [1]", "gpu.main.workload"),
        (
            'workload = "vllm-openai"\nmodel = "x"\n[[gpu.main.service]]\nname = "vllm"\nprot = 1',
            "did you mean 'port'",
        ),
        ('model = "x"\nservice = [{ command = ["x"] }]', "model is for a workload"),
        ('workload = "vllm-openai"\nmodel = "x"\nagent = false', "agent = false runs no workload"),
        # Places are those of the file.
        (f'{BOTH}service = [{{ name = "vllm", prot = 1 }}]', "gpu.main.service.0.prot: unknown"),
        (
            f'{BOTH}service = [{{ name = "a", command = ["x"] }}, {{ name = "webui", port = 0 }}]',
            "gpu.main.service.1.port: ",
        ),
        (f'{BOTH}service = [{{ name = "a" }}]', "gpu.main.service.0: it needs a command"),
        (
            f'{BOTH}service = [{{ name = "vllm", port = 9, container = {{ network = "host" }} }}]',
            "gpu.main.service.0",
        ),
        (f'{BOTH}model_cache = "/a:b"', "gpu.main.model_cache: "),
        (f'{BOTH}model_cache = "/a:b"', "gpu.main.service.vllm.container.volumes.0: "),
        (f'{BOTH}service = [{{ container = {{ network = "host" }} }}]', "http://vllm:8000"),
    ],
)
def test_mistakes_are_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text(f"[gpu.main]\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_config(str(path), {})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ('bind = "127.0.0.1"', r"the proxy cannot reach bind = '127.0.0.1'"),
        ('bind = "::1"', r"the proxy cannot reach bind = '::1'"),
        ('bind = "::::"', "an address such as 0.0.0.0"),
        (
            'network = "host"\nport = 80',
            "with network = 'host' container.port must be the service's",
        ),
        ('network = "host"\nbind = "10.0.0.7"', "with network = 'host' bind has no effect"),
        ("gpus = [true]", 'it is "all"'),
        ("gpus = [-1]", 'it is "all"'),
        ('gpus = [0, "all"]', 'it is "all"'),
        ('gpus = ["none"]', 'it is "all"'),
        ('volumes = ["/a:/data", "/b:/data/:ro"]', "two volumes have the target /data"),
    ],
)
def test_containers_that_would_never_be_used(service: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        '[gpu.main]\nprovider = "aws"\n[[gpu.main.service]]\nport = 7860\n'
        f'[gpu.main.service.container]\nimage = "x"\n{service}\n'
    )
    with pytest.raises(ConfigError) as error:
        load_config(str(path), {})
    assert said in str(error.value)
    assert "gpu.main.service.0" in str(error.value)


def test_containers_that_may_be_used() -> None:
    own = {"image": "x", "bind": "127.0.0.1"}
    gpu(service=[{"container": own}])  # the proxy is on this machine
    gpu(provider="aws", address="127.0.0.1", service=[{"container": own}])  # by a tunnel
    host = {"image": "x", "network": "host", "port": 80, "bind": "0.0.0.0"}
    gpu(provider="aws", service=[{"port": 80, "container": host}])


def test_what_is_shown_can_be_read_again() -> None:
    main = {"workload": "open-webui+vllm", "model": "x"}
    config = Config.model_validate({"gpu": {"main": main}, "proxy": {"listen": "127.0.0.1:80"}})
    again = Config.model_validate(config.model_dump())
    assert again.gpu["main"].spec == config.gpu["main"].spec


SIZES = [
    ("8g", 8 * 1024**3),
    ("512m", 512 * 1024**2),
    ("1.5GiB", 1610612736),
    ("64kb", 65536),
    (1024, 1024),
    ("0", 0),
]


@pytest.mark.parametrize(("text", "count"), SIZES)
def test_sizes(text: object, count: int) -> None:
    service = {"container": {"image": "x", "shm_size": text}}
    container = gpu(service=[service]).service[0].container
    assert container is not None
    assert container.shm_size == count


@pytest.mark.parametrize("text", ["", "8x", "-1", -1, True, "g", "1e9"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="a size is"):
        gpu(service=[{"container": {"image": "x", "shm_size": text}}])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("all", ("all",)),
        ("none", ()),
        ([0, 1], ("0", "1")),
        (["MIG-x"], ("MIG-x",)),
        (("all",), ("all",)),
    ],
)
def test_gpus(given: object, found: tuple[str, ...]) -> None:
    container = gpu(service=[{"container": {"image": "x", "gpus": given}}]).service[0].container
    assert container is not None
    assert container.gpus == found


def test_on_this_machine_a_container_is_for_the_proxy_alone() -> None:
    service = [{"container": {"image": "x"}}]
    for provider, bind in (("local", "127.0.0.1"), ("aliyun", "0.0.0.0")):
        container = gpu(provider=provider, service=service).spec.services[0].container
        assert container is not None
        assert container.bind == bind
