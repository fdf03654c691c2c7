"""`qwenctl.config.deployment`: what is accepted, and one clear sentence for everything that is not."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenctl.config.deployment import Config, own_secret
from qwenctl.config.docs import schema
from qwenctl.config.gpu import GpuConfig, TimingConfig
from qwenctl.config.loading import config_path, load_config
from qwenctl.core.rules import Activity
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_secret
from qwenctl.lib.redaction import masked
from qwenctl.lib.settings_types import parse_duration

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g"


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file and no variable of the machine that the tests run on."""
    import os

    for name in list(os.environ):
        if name.startswith("QWENCTL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)


def load(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> Config:
    path = tmp_path / "qwenctl.toml"
    path.write_text(text)
    return load_config(str(path), env or {})


def refused(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path, env)
    assert caught.value.exit_code == 2
    return str(caught.value)


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            (90, 90),
            (0, 0),
            (1.5, 1.5),
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("2d", 172800),
            ("250ms", 0.25),
            ("1.5h", 5400),
            (" 5 M ", 300),
        ],
    )
    def test_good(self, text: object, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize(
        "text",
        ["", "soon", "-5", -5, "5 weeks", "m", "1h30", "1e3", True, None, [], float("nan"), 1e10],
    )
    def test_bad(self, text: object) -> None:
        with pytest.raises(ValueError, match=r'such as "90s", "10m" or "1h30m"|too long'):
            parse_duration(text)

    @given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
    def test_any(self, hours: int, minutes: int, seconds: int) -> None:
        text = f"{hours}h{minutes}m{seconds}s"
        assert parse_duration(text) == hours * 3600 + minutes * 60 + seconds

    @given(st.text())
    def test_any_text_is_a_duration_or_a_clear_error(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            assert parse_duration(text) >= 0


class TestFile:
    def test_an_example(self, tmp_path: Path) -> None:
        config = load(
            """
            deployment = "lab"
            [proxy]
            listen = "127.0.0.1:9000"
            [gpu.main]
            idle_timeout = "20m"
            timing.boot = "2m"
            [[gpu.main.service]]
            command = ["python", "app.py"]
            port = 7000
            [[gpu.main.rules]]
            activity = "passive"
            path = "^/poll"
            """,
            tmp_path,
        )
        gpu = config.gpu["main"]
        assert (gpu.idle_timeout, gpu.timing.boot, gpu.port) == (1200, 120, 7000)
        assert gpu.rules[0].path == "^/poll"
        browser = {"sec-fetch-mode": "navigate", "sec-fetch-user": "?1"}
        table = gpu.rule_table
        assert table.classify("GET", "/poll", browser) is Activity.PASSIVE  # our own rule first
        assert table.classify("GET", "/", browser) is Activity.KEEPS_ON  # then the preset's
        assert config.url == "http://127.0.0.1:9000"
        assert config.source == str(tmp_path / "qwenctl.toml")

    def test_none_at_all(self) -> None:
        config = load_config(env={})
        assert config == Config()
        assert config.source == ""

    def test_where_it_is_looked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert config_path() is None
        (tmp_path / "xdg" / "qwenctl").mkdir(parents=True)
        user = tmp_path / "xdg" / "qwenctl" / "qwenctl.toml"
        user.touch()
        assert config_path() == user
        Path("qwenctl.toml").touch()
        assert config_path() == Path("qwenctl.toml")
        other, given = tmp_path / "other.toml", tmp_path / "given.toml"
        other.touch()
        given.touch()
        monkeypatch.setenv("QWENCTL_CONFIG", str(other))
        assert config_path() == other
        assert config_path(str(given)) == given

    def test_named_and_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no config file at .*none\.toml; `qwenctl init`"):
            load_config(str(tmp_path / "none.toml"), {})

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
    def test_named_and_no_regular_file(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        make(tmp_path / "ff")
        with pytest.raises(ConfigError, match=r"/ff is no regular file"):
            load_config(str(tmp_path / "ff"), {})

    def test_malformed(self, tmp_path: Path) -> None:
        text = refused("[gpu.main\nidle_timeout = 3", tmp_path)
        assert text.startswith(f"{tmp_path}/qwenctl.toml is not valid TOML: ")
        assert "line 1" in text

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "qwenctl.toml"
        path.write_bytes(b'deployment = "\xff"')
        with pytest.raises(ConfigError, match="is not UTF-8 text"):
            load_config(str(path), {})


# The text, the key in the message, what was found, and what is allowed.
MISTAKES = [
    ('deployment = "Büro"', "deployment", "found 'Büro'", "lower-case letters"),
    ("deployment = 5", "deployment", "found 5", "string"),
    ('language = "fr"', "language", "found 'fr'", "'auto', 'en' or 'zh'"),
    ('proxy.hold = "long"', "proxy.hold", "found 'long'", '"90s", "10m"'),
    ("proxy.max_held = -1", "proxy.max_held", "found -1", "greater than or equal to 0"),
    ('[gpu.main]\nidle_timeout = "0.5s"', "gpu.main.idle_timeout", "found 0.5", "equal to 1"),
    ("[gpu.main]\ntiming.drain = 2", "gpu.main.timing.drain", "found 2", "equal to 3"),
    ('[gpu.main]\npreset = "comfy"', "gpu.main.preset", "found 'comfy'", "'open-webui'"),
    ('[gpu.main]\nwake_on = "get"', "gpu.main.wake_on", "found 'get'", "'click' or 'never'"),
    ("[gpu.main]\nservice = 3", "gpu.main.service", "found 3", "list"),
    ("[[gpu.main.service]]\nport = 80", "gpu.main.service.0", "", "a command, or a container"),
    ("[[gpu.main.service]]\ncommand = []", "gpu.main.service.0", "", "a command, or a container"),
    (
        '[[gpu.main.service]]\ncommand = ["x"]\nport = 99999',
        "gpu.main.service.0.port",
        "found 99999",
        "65535",
    ),
    (
        '[[gpu.main.rules]]\nactivity = "passive"\npath = "("',
        "gpu.main.rules.0.path",
        "found '('",
        "not a regular expression",
    ),
    ('[gpu."Big One"]', "gpu.Big One", "found 'Big One'", "lower-case letters"),
    (
        '[[gpu.main.service]]\ncommand = "python3 app.py"',
        "gpu.main.service.0.command",
        "found 'python3 app.py'",
        'should be a list, for example ["python3", "app.py"]',
    ),
    ('access.password_hash = "hunter2"', "access.password_hash", "", "`qwenctl access hash-pass"),
    ('access.mode = "password"', "", "", "needs access.password_hash: run `qwenctl access"),
    ("gpu.a.hosts = ['x']\ngpu.b.hosts = ['x']", "", "", "gpu.a and gpu.b both claim host x"),
    (
        '[[gpu.main.service]]\ncommand=["x"]\n[[gpu.main.service]]\nname="b"\ncommand=["y"]',
        "gpu.main.service",
        "",
        "two services have the same port",
    ),
]


class TestMistakes:
    @pytest.mark.parametrize(("text", "key", "found", "allowed"), MISTAKES)
    def test_file_key_found_allowed(
        self, tmp_path: Path, text: str, key: str, found: str, allowed: str
    ) -> None:
        message = refused(text, tmp_path)
        assert message.startswith(f"{tmp_path}/qwenctl.toml: {key}")
        assert found in message
        assert allowed in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('deploiment = "x"', "deploiment: unknown key; did you mean 'deployment'?"),
            (
                "[gpu.main]\nidle_timout = 3",
                "gpu.main.idle_timout: unknown key; did you mean 'idle_timeout'?",
            ),
            (
                "[gpu.main.timing]\ndrains = 4",
                "gpu.main.timing.drains: unknown key; did you mean 'drain'?",
            ),
            (
                '[[gpu.main.service]]\ncommand = ["x"]\nprot = 4',
                "gpu.main.service.0.prot: unknown key; did you mean 'port'?",
            ),
            (
                '[[gpu.main.service]]\ncontainer = { image = "x", prot = 4 }',
                "gpu.main.service.0.container.prot: unknown key; did you mean 'port'?",
            ),
            ("[access]\nzzz = 4", "access.zzz: unknown key; known: hash"),
            ("[[access.keys]]\nnam = 'x'", "access.keys.0.nam: unknown key; did you mean 'name'?"),
        ],
    )
    def test_unknown_keys(self, tmp_path: Path, text: str, message: str) -> None:
        text = refused(text, tmp_path)
        if "known:" in message:
            known = "authenticators, keys, mode, password_hash, session"
            assert f"access.zzz: unknown key; known: {known}" in text
        else:
            assert message in text

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("[gpu.Main]", "gpu.Main"),
            ('gpu.main.tier = "Fast one"', "gpu.main.tier"),
            ('[[gpu.main.service]]\ncommand = ["x"]\nname = "A b"', "gpu.main.service.0.name"),
            (
                '[[gpu.main.fallback]]\nname = "Zone B"\ninstance_id = "i-0123456789abcdef0"',
                "gpu.main.fallback.0.name",
            ),
            (
                '[[gpu.main.prewarm]]\nname = "Work days"\ncron = "0 9 * * *"\nduration = "1h"',
                "gpu.main.prewarm.0.name",
            ),
        ],
    )
    def test_names(self, tmp_path: Path, text: str, key: str) -> None:
        message = refused(text, tmp_path)
        words = "a name is made of lower-case letters, digits and hyphens, at most 32, found '"
        assert f"{key}: {words}" in message

    def test_all_at_once(self, tmp_path: Path) -> None:
        message = refused('languag = "en"\nproxy.hold = "x"\ngpu.main.api = "y"', tmp_path)
        assert len(message.splitlines()) == 3
        assert all(f"{tmp_path}/qwenctl.toml: " in line for line in message.splitlines())

    @pytest.mark.parametrize(
        "text",
        [
            "node_secret = 12345678",
            'access.password_hash = "hunter2-12345678"',
            "redis_url = ['redis://:12345678@x']",
            "redis_url = 12345678",
            "node_secret_file = 12345678",
            "[[access.keys]]\nname = 'x'\nhash = 'qk_12345678'",
            'access.mode = "password"\nnode_secret = "12345678"',
            'node_secret = "12345678"\nproxy = 3',
            "[[gpu.main.service]]\ncommand = ['x']\nenv = { PLAIN = 12345678 }",
        ],
    )
    def test_secrets_are_never_echoed(self, tmp_path: Path, text: str) -> None:
        assert "12345678" not in refused(text, tmp_path)

    def test_a_secret_in_a_shown_config(self, tmp_path: Path) -> None:
        text = 'node_secret = "12345678"\nredis_url = "redis://:12345678@x"\n'
        text += "[[gpu.main.service]]\ncommand = ['x']\nenv = { PLAIN = '12345678' }\n"
        config = load(text, tmp_path)
        assert "12345678" not in repr(config.gpu["main"].spec)
        assert "12345678" not in repr(config) + str(config) + str(masked(config.model_dump()))
        assert config.read_node_secret() == "12345678"

    def test_a_long_value_is_shortened(self, tmp_path: Path) -> None:
        message = refused(f'language = "{"x" * 500}"', tmp_path)
        assert len(message) < 300 + len(str(tmp_path))
        assert "…" in message


class TestEnvironment:
    def test_overlay(self, tmp_path: Path) -> None:
        config = load(
            'deployment = "file"\n[gpu.big-one]\nidle_timeout = 10',
            tmp_path,
            {
                "QWENCTL_DEPLOYMENT": "env",
                "QWENCTL_PROXY__LISTEN": "127.0.0.1:9000",
                "QWENCTL_PROXY__MAX_HELD": "7",
                "QWENCTL_PROXY__ALLOW_ANONYMOUS": "true",
                "QWENCTL_PROXY__TRUSTED_PROXIES": '["10.0.0.0/8"]',
                "QWENCTL_GPU__BIG_ONE__IDLE_TIMEOUT": "20m",
                "QWENCTL_GPU__BIG_ONE__TIMING__BOOT": "1m",
                "QWENCTL_NODE_SECRET": "abc",
                "QWENCTL_NODE__URL": "not ours",
                "QWENCTL_DEBUG": "1",
                "OTHER": "x",
            },
        )
        gpu = config.gpu["big-one"]
        assert (config.deployment, config.proxy.listen) == ("env", "127.0.0.1:9000")
        assert (config.proxy.max_held, config.proxy.allow_anonymous) == (7, True)
        assert config.proxy.trusted_proxies == ("10.0.0.0/8",)
        assert (gpu.idle_timeout, gpu.timing.boot) == (1200, 60)
        assert config.node_secret.get_secret_value() == "abc"

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            (
                "QWENCTL_PROXY__HOLD",
                "soon",
                "QWENCTL_PROXY__HOLD (proxy.hold): a duration is a number of seconds or text",
            ),
            (
                "QWENCTL_PROXI__HOLD",
                "5",
                "QWENCTL_PROXI__HOLD (proxi): unknown key; did you mean 'proxy'?",
            ),
            (
                "QWENCTL_DEPLOYMENT__X",
                "5",
                "QWENCTL_DEPLOYMENT__X: deployment is not a table",
            ),
            (
                "QWENCTL_PROXY",
                "5",
                "QWENCTL_PROXY (proxy): input should be a table",
            ),
        ],
    )
    def test_mistakes_name_the_variable(
        self, tmp_path: Path, variable: str, value: str, message: str
    ) -> None:
        text = refused('deployment = "x"', tmp_path, {variable: value})
        assert message in text
        assert variable in text

    def test_a_secret_in_a_variable_is_not_echoed(self, tmp_path: Path) -> None:
        text = refused("", tmp_path, {"QWENCTL_ACCESS__PASSWORD_HASH": "hunter2"})
        assert "QWENCTL_ACCESS__PASSWORD_HASH" in text
        assert "hunter2" not in text


class TestGpuName:
    def test_the_only_one(self) -> None:
        assert Config(gpu={"main": GpuConfig()}).gpu_name(None) == "main"
        assert Config(gpu={"main": GpuConfig()}).gpu_name("main") == "main"

    @pytest.mark.parametrize(
        ("gpus", "wanted", "message"),
        [
            (
                [],
                None,
                "no GPU is configured: add a [gpu.NAME] table, or run `qwenctl init`",
            ),
            (["a", "b"], None, "say which GPU with --gpu; configured: a, b"),
            (["a", "b"], "c", "no GPU named 'c'; configured: a, b"),
            ([], "c", "no GPU is configured: add a"),
        ],
    )
    def test_errors(self, gpus: list[str], wanted: str | None, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Config(gpu={name: GpuConfig() for name in gpus}).gpu_name(wanted)
        assert message in str(caught.value)


def _make_secret(path: Path, start: Any, answers: Any) -> None:
    start.wait(30)
    answers.put(own_secret(path))


class TestSecrets:
    def test_made_once_for_the_owner_only(self, tmp_path: Path) -> None:
        path = tmp_path / "state" / "node.secret"
        first = own_secret(path)
        assert len(first) >= 32
        assert own_secret(path) == first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [p.name for p in path.parent.iterdir()] == ["node.secret"]

    def test_twenty_processes_make_one(self, tmp_path: Path) -> None:
        path = tmp_path / "node.secret"
        processes = multiprocessing.get_context("fork")
        start, answers = processes.Barrier(20), processes.Queue()
        makers = [
            processes.Process(target=_make_secret, args=(path, start, answers)) for _ in range(20)
        ]
        for maker in makers:
            maker.start()
        secrets = {answers.get(timeout=30) for _ in makers}
        for maker in makers:
            maker.join(30)
        assert secrets == {path.read_text().strip()}
        assert [p.name for p in tmp_path.iterdir()] == ["node.secret"]

    def test_from_the_config(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("from the file\n")
        assert Config(node_secret_file=str(file)).read_node_secret() == "from the file"
        both = Config.model_validate({"node_secret": "given", "node_secret_file": str(file)})
        assert both.read_node_secret() == "given"
        own = Config(state_dir=str(tmp_path / "s")).read_node_secret()
        assert (tmp_path / "s" / "node.secret").read_text().strip() == own

    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"node_secret_file: cannot read .*/none: No such"):
            read_secret(tmp_path / "none", "node_secret_file")
        (tmp_path / "empty").write_text(" \n")
        with pytest.raises(ConfigError, match=r"node_secret_file: .*/empty is empty"):
            read_secret(tmp_path / "empty", "node_secret_file")
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match=r"node_secret_file: .*/binary is not UTF-8 text"):
            read_secret(tmp_path / "binary", "node_secret_file")

    def test_a_state_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"cannot write .*QWENCTL_STATE_DIR"):
            own_secret(tmp_path / "file" / "node.secret")


class TestSchema:
    """The JSON Schema by which editors complete the file."""

    schema: dict[str, Any] = schema()

    def test_every_setting_is_explained(self) -> None:
        for name, table in {"Config": self.schema, **self.schema["$defs"]}.items():
            if "properties" not in table or name in ("Activity", "Readiness"):
                continue
            for key, setting in table["properties"].items():
                assert setting.get("description") or "$ref" in setting, f"{name}.{key}"

    def test_it_refuses_unknown_keys_too(self) -> None:
        assert self.schema["additionalProperties"] is False
        # A third party's provider has a table that this schema cannot know.
        assert self.schema["$defs"]["GpuConfig"]["additionalProperties"] == {"type": "object"}
        for model in ("AliyunConfig", "AwsConfig", "LocalConfig", "AwsTemplate", "TimingConfig"):
            assert self.schema["$defs"][model]["additionalProperties"] is False

    def test_a_duration_is_number_or_text(self) -> None:
        timeout = self.schema["$defs"]["GpuConfig"]["properties"]["idle_timeout"]
        assert {kind["type"] for kind in timeout["anyOf"]} == {"number", "string"}

    def test_it_accepts_what_the_config_accepts(self) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        data = {"gpu": {"main": {"idle_timeout": "20m", "service": [{"command": ["x"]}]}}}
        jsonschema.validate(data, self.schema)
        Config.model_validate(data)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"gpu": {"main": {"idle": 5}}}, self.schema)


def test_defaults_stand_in_one_place() -> None:
    """The lifecycle's own defaults and the configuration's are the same."""
    from qwenctl.core.lifecycle import Timings

    timing, timings = TimingConfig(), Timings()
    for name in ("drain", "start", "boot", "load", "call_grace", "node_lost", "retry", "retry_max"):
        assert getattr(timing, name) == getattr(timings, name), name
    assert timings.heartbeat == 4 * timing.heartbeat


def test_which_gpu_a_host_name_means(tmp_path: Path) -> None:
    both = load('[gpu.a]\nhosts = ["A.test"]\n[gpu.b]\n', tmp_path)
    assert [both.gpus_at(host)[0] for host in ("a.test", "b.test", "")] == ["a", "b", "b"]
    named = load('[gpu.a]\nhosts = ["a.test"]\n[gpu.b]\nhosts = ["b.test"]\n', tmp_path)
    assert [named.gpus_at(host) for host in ("b.test", "other.test")] == [("b",), ("a",)]
    assert load("", tmp_path).gpus_at("a.test") == ()


def test_two_gpus_cannot_have_the_same_instance(tmp_path: Path) -> None:
    """Neither as their own nor as a fallback: each would stop it under the other's work."""
    a = '[gpu.a]\nprovider = "aws"\nhosts = ["a.test"]\n[gpu.a.aws]\nregion = "us-east-1"\n'
    a += 'instance_id = "i-0123456789abcdef0"\n'
    spare = '[[gpu.{}.fallback]]\nname = "spare"\ninstance_id = "i-0123456789abcdeff"\n'
    b = a.replace("gpu.a", "gpu.b").replace("a.test", "b.test")
    with pytest.raises(ConfigError, match=r"gpu\.a and gpu\.b both have the instance i-0\w+0;"):
        load(a + b, tmp_path)
    b = b.replace("cdef0", "cdef1")
    load(a + spare.format("a") + b, tmp_path)
    with pytest.raises(ConfigError, match=r"both have the instance i-0\w+f;"):
        load(a + spare.format("a") + b + spare.format("b"), tmp_path)


def test_the_proxy_cannot_listen_on_the_port_of_a_service(tmp_path: Path) -> None:
    local = '[gpu.a]\nprovider = "local"\n[[gpu.a.service]]\ncommand = ["x"]\nport = 7861\n'
    for listen in ("127.0.0.1:7861", "localhost:7861", "0.0.0.0:7861", "[::]:7861", "[::1]:7861"):
        with pytest.raises(ConfigError, match=r"proxy\.listen and gpu\.a's service .* port 7861"):
            load(f'[proxy]\nlisten = "{listen}"\n[access]\nmode = "none"\n{local}', tmp_path)
    for listen in ("127.0.0.1:8080", "127.0.0.1:0", "192.0.2.1:7861"):
        load(f'[proxy]\nlisten = "{listen}"\n[access]\nmode = "none"\n{local}', tmp_path)


@pytest.mark.parametrize("value", ["nginx", "10.0.0.0/99", ""])
def test_a_trusted_proxy_that_is_no_address(tmp_path: Path, value: str) -> None:
    file = tmp_path / "qwenctl.toml"
    file.write_text(f'[proxy]\ntrusted_proxies = ["{value}"]\n')
    with pytest.raises(ConfigError, match="trusted_proxies"):
        load_config(str(file), env={})


@pytest.mark.parametrize("key", ["state_dir", "redis_password_file", "node_secret_file"])
def test_a_relative_path_starts_at_the_file_or_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "work").mkdir()
    file = tmp_path / "etc" / "qwenctl.toml"
    file.write_text(f'{key} = "below"\n')
    monkeypatch.chdir(tmp_path / "work")
    variable = {f"QWENCTL_{key.upper()}": "here"}
    assert getattr(load_config(str(file), {}), key) == str(tmp_path / "etc" / "below")
    assert getattr(load_config("../etc/qwenctl.toml", {}), key) == str(tmp_path / "etc" / "below")
    assert getattr(load_config(str(file), variable), key) == str(tmp_path / "work" / "here")


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("http://127.0.0.1:8080", "write address:port, such as 127.0.0.1:8080, without http://"),
        ("https://gpu.example.com", "without https://"),
        ("::1:18481", "an IPv6 address is in brackets"),
        ("nowhere.invalid:8080", "finds no address for 'nowhere.invalid'"),
        (f"{'a' * 70}.example:8080", "finds no address for"),
        ("user@host:8080", "is not address:port"),
    ],
)
def test_what_is_no_listening_address_is_not_said_to_be_open(
    monkeypatch: pytest.MonkeyPatch, listen: str, words: str
) -> None:
    def unknown(host: str, port: object) -> None:
        host.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        Config(proxy={"listen": listen}).check_listen()
    assert "allow_anonymous" not in str(error.value)


def test_an_ipv6_address_in_brackets_is_listened_on() -> None:
    assert Config(proxy={"listen": "[::1]:8080"}).check_listen() == ("::1", 8080)
