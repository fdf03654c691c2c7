"""An installed third party's provider: its settings, checks, policies, and use as a fallback."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from qwenctl.clouds.base import NoCapacity, Provider
from qwenctl.config.loading import load_config
from qwenctl.config.providers import make_provider
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError, ExitCode
from tests.support.program import PROGRAM

OTHER_CLOUD = Path(__file__).parents[3] / "support" / "other_cloud"

CONFIG = """
state_dir = "{state}"
[gpu.main]
provider = "other"
[[gpu.main.service]]
command = ["sleep", "1"]
[gpu.main.other]
instance_id = "m-1-full"
rack = 7
"""

FALLBACK = """
[[gpu.main.fallback]]
name = "spare"
instance_id = "m-2"
"""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OTHER_CLOUD)
    importlib.invalidate_caches()


def written(directory: Path, text: str) -> str:
    file = directory / "qwenctl.toml"
    file.write_text(text.replace("{state}", str(directory / "state")))
    return str(file)


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(OTHER_CLOUD), "NO_COLOR": "1"}
    command = [str(PROGRAM), *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env=env, timeout=60, check=False
    )


def test_its_table_is_validated_by_itself(tmp_path: Path) -> None:
    gpu = load_config(written(tmp_path, CONFIG), env={}).gpu["main"]
    assert (gpu.settings.rack, gpu.machine) == (7, "other m-1-full")
    assert gpu.model_dump(mode="json")["other"]["rack"] == 7
    with pytest.raises(ConfigError, match=r"gpu\.main\.other\.rack: .*less than or equal to 40"):
        load_config(written(tmp_path, CONFIG.replace("rack = 7", "rack = 70")), env={})
    with pytest.raises(
        ConfigError, match=r"gpu\.main\.other\.rak: unknown key; did you mean 'rack'"
    ):
        load_config(written(tmp_path, CONFIG.replace("rack", "rak")), env={})
    with pytest.raises(ConfigError, match=r"gpu\.main\.othr: unknown key; did you mean 'other'"):
        load_config(written(tmp_path, CONFIG.replace("main.other", "main.othr")), env={})
    variables = {"QWENCTL_GPU__MAIN__OTHER__RACK": "9"}
    assert load_config(written(tmp_path, CONFIG), env=variables).gpu["main"].settings.rack == 9


def test_it_can_be_a_fallback(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, CONFIG + FALLBACK), env={})
    provider = make_provider("main", config.gpu["main"], config)
    assert isinstance(provider, Provider)
    accepted = provider.start()
    assert accepted.note.startswith("spare was started instead of m-1-full: the rack is full")
    assert provider.describe().instance_id == "m-2"
    assert provider.describe().state is Observed.RUNNING
    with pytest.raises(NoCapacity):
        make_provider("main", config.gpu["main"].candidates()[0][1], config).start()


def test_it_can_be_the_fallback_of_another_cloud(tmp_path: Path) -> None:
    aws = (
        CONFIG.replace('provider = "other"', 'provider = "aws"').replace(
            'instance_id = "m-1-full"', ""
        )
        + '[gpu.main.aws]\nregion = "us-east-1"\ninstance_id = "i-0123456789abcdef0"\n'
    )
    text = aws + FALLBACK.replace("instance_id", 'provider = "other"\ninstance_id')
    own, (name, spare) = load_config(written(tmp_path, text), env={}).gpu["main"].candidates()
    assert own[0] == "i-0123456789abcdef0"
    assert (name, spare.provider, spare.settings.rack) == ("spare", "other", 7)
    with pytest.raises(ConfigError, match=r"gpu\.main: fallback: instance_id: .*pattern"):
        load_config(written(tmp_path, text.replace('"m-2"', '"i-2"')), env={})
    with pytest.raises(ConfigError, match=r"fallback is for providers .*not 'azur'"):
        load_config(written(tmp_path, text.replace('"other"', '"azur"')), env={})


def test_doctor_and_permissions_know_it(tmp_path: Path) -> None:
    written(tmp_path, CONFIG)
    found = json.loads(run(tmp_path, "doctor", "--json").stdout)["checks"]
    [rack] = [one for one in found if one["check"] == "rack"]
    assert rack["found"] == "main is in rack 7"
    done = run(tmp_path, "permissions", "other")
    assert done.returncode == 2, done.stderr
    assert "region missing" in done.stderr
    written(tmp_path, CONFIG + 'region = "cellar"\n')
    policy = json.loads(run(tmp_path, "permissions", "other").stdout)
    assert policy == {"Version": "other", "Statement": [{"Machines": ["m-1-full"]}]}
    assert "no such provider is installed" in run(tmp_path, "permissions", "azur").stderr


def test_init_writes_its_sample_and_import_fills_it_in(tmp_path: Path) -> None:
    done = run(tmp_path, "init", "--here", "--gpu", "big", "--provider", "other")
    assert (done.returncode, done.stderr) == (0, "")
    assert "`qwenctl import other`" in done.stdout
    place = ("m-1", "--region", "cellar", "--rack", "7", "--name", "big")
    done = run(tmp_path, "import", "other", *place, "--write")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Filled in [gpu.big.other] of ")
    gpu = load_config(str(tmp_path / "qwenctl.toml"), env={}).gpu["big"]
    own = gpu.settings
    assert (own.region, own.instance_id, own.rack, gpu.price_per_hour) == ("cellar", "m-1", 7, 0.5)
    done = run(tmp_path, "init", "--here", "--provider", "mars")
    assert "there is one for: aliyun, aws, local, other" in done.stderr


def test_import_explains_itself_and_refuses_as_for_any_cloud(tmp_path: Path) -> None:
    assert "Read a machine of the other cloud." in run(tmp_path, "import", "--help").stdout
    shown = run(tmp_path, "import", "other", "--help").stdout
    assert "qwenctl import other m-1 --region cellar --name small --write" in shown
    assert "--rack NUMBER" in shown
    place = ("--region", "cellar")
    for words, code, text in [
        (("i-1",), ExitCode.USAGE, "'i-1' is no id of the other cloud; one is like m-1"),
        (("m-1", "--rack", "70"), ExitCode.USAGE, "--rack '70': a rack is 1 to 40"),
        (("m-1-full",), ExitCode.NO_CAPACITY, "the rack is full"),
    ]:
        done = run(tmp_path, "import", "other", *words, *place)
        assert (done.returncode, done.stderr) == (code, f"error: {text}\n")
    assert run(tmp_path, "import", "mars", "m-1", *place).returncode == ExitCode.USAGE
