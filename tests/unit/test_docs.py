"""The documentation names everything that users may rely on, and only what exists."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from proxy.http.metrics import Metrics
from qwenctl.config.loading import load_config
from qwenctl.core.events import EventKind
from qwenctl.core.failures import MEANINGS
from qwenctl.core.phase import Phase
from tests.support.paths import ROOT

HTTP = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
PROXY = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "proxy").rglob("*.py")}
ROUTES = re.findall(r'\("(GET|POST)", "(/[^"]*)", (self\.\w+)\)', PROXY["flask_app.py"])


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_sample_configuration_is_valid() -> None:
    config = load_config(str(ROOT / "examples" / "qwenctl.toml"), env={})
    assert list(config.gpu) == ["main"]


def test_every_endpoint_is_documented() -> None:
    routes = [path for _, path, _ in ROUTES]
    assert len(routes) > 8
    for route in [*routes, "/api/events", "/gate", "/node/hello", "/node/report"]:
        assert f"`/_qwenctl{route}`" in HTTP, route


def test_every_documented_endpoint_exists() -> None:
    code = "".join(PROXY.values()) + (ROOT / "qwenctl/protocol/messages.py").read_text()
    for route in re.findall(r"^\| `/_qwenctl(/[^`]*)`", HTTP, re.MULTILINE):
        if not route.startswith("/static"):
            assert (
                f'"{route}"' in code
                or f'{{PREFIX}}{route}"' in code
                or f'"/_qwenctl{route}"' in code
            ), route


def test_every_metric_is_documented_and_the_other_way_round() -> None:
    registry: CollectorRegistry = Metrics().registry
    names = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in registry.collect()
    }
    documented = set(re.findall(r"^\| `(qwenctl_[a-z_]+)`", HTTP, re.MULTILINE))
    assert documented == names


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_is_documented(kind: EventKind) -> None:
    assert f"`{kind}`" in HTTP


def test_every_cause_and_failure_code_is_documented() -> None:
    code = (ROOT / "qwenctl" / "core" / "lifecycle.py").read_text(encoding="utf-8")
    causes = set(re.findall(r'Move\(\s*Phase\.\w+,\s*"([a-z_]+)"', code))
    causes |= MEANINGS.keys() - {"conflict", "provider_error"}
    assert len(causes) > 15
    for cause in causes:
        assert f"`{cause}`" in HTTP, cause


def test_every_problem_code_is_documented() -> None:
    codes = set(re.findall(r'Problem\(\s*\d+,\s*"([a-z_]+)"', PROXY["flask_app.py"]))
    for text in PROXY.values():
        codes |= set(re.findall(r'\b[45]\d\d,\s*(?:[\w.]+ if \w+ else )?"([a-z_]+)"', text))
    assert {"not_ready", "store_lost", "blocked"} <= codes
    for code in codes - {"internal", "no_gpu"} | {"no_gpu"}:
        assert f"`{code}`" in HTTP or code == "internal", code


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_documented(phase: Phase) -> None:
    assert f"`{phase.value}`" in HTTP


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    for name in re.findall(r'^\s+"([a-z0-9-]+)[\[>=;"]', section, re.MULTILINE):
        if not name.startswith(("qwenctl", "types-")):
            assert name.replace("aliyun-python-sdk-ecs", "-ecs") in text, name


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "README.zh-CN.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/activity.md",
        "docs/http.md",
        "docs/schedules.md",
        "docs/tiers.md",
        "docs/clouds.md",
        "docs/deployment.md",
        "docs/node.md",
        "docs/node-install.md",
        "docs/node-figures.md",
        "docs/fast-boot.md",
        "docs/agentless.md",
        "examples/aliyun/README.md",
        "examples/aws/README.md",
        "examples/node-compose/README.md",
        "docs/decisions/README.md",
        "benchmarks/README.md",
    ],
)
def test_links_lead_somewhere(path: str) -> None:
    page = ROOT / path
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{path}: {target}"


def test_both_readmes_say_the_same() -> None:
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    assert re.findall(r"^#+ ", english, re.MULTILINE) == re.findall(r"^#+ ", chinese, re.MULTILINE)
    for command in set(re.findall(r"`(qwenctl [a-z][^`]*?)(?: --because[^`]*)?`", english)):
        assert command in chinese, command


def test_the_code_refers_to_pages_of_this_tree_only() -> None:
    """A page and its heading in comments and docstrings leads somewhere."""
    wrong = []
    for path in [
        p for d in ("qwenctl", "proxy", "gpu_node", "tests") for p in (ROOT / d).rglob("*.py")
    ]:
        text = path.read_text(encoding="utf-8")
        if "DESIGN \u00a7" in text:
            wrong.append(f"{path}: DESIGN")
        for page, anchor in re.findall(r"(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
            if not (ROOT / page).exists():
                wrong.append(f"{path}: {page}")
                continue
            headings = re.findall(
                r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
            )
            slugs = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            if anchor and anchor not in slugs:
                wrong.append(f"{path}: {page}#{anchor}")
    assert wrong == []
