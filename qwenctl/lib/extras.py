"""Say how to install an optional part of this package, as the package itself was installed."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "qwenctl"

EXTRAS = {
    "a2wsgi": "proxy",
    "aiohttp": "proxy",
    "argon2": "proxy",
    "cronsim": "proxy",
    "flask": "proxy",
    "httptools": "proxy",
    "prometheus_client": "proxy",
    "redis": "proxy",
    "uvicorn": "proxy",
    "uvloop": "proxy",
    "websockets": "proxy",
    "boto3": "aws",
    "botocore": "aws",
    "alibabacloud_credentials": "aliyun",
    "aliyunsdkcore": "aliyun",
    "aliyunsdkecs": "aliyun",
    "gradio": "demo",
    "PIL": "demo",
}
"""Module → the extra that installs it, for the error message."""


def missing(module: str) -> str:
    """Return the error message for a package that is not installed."""
    return f"this needs the package {module}: {how_to_install(EXTRAS[module])}"


def lacking(extra: str) -> str:
    """Return the error message for the first package of an extra that is not installed, or nothing."""
    wanted = [module for module, its in EXTRAS.items() if its == extra]
    return next((missing(module) for module in wanted if find_spec(module) is None), "")


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra.

    The name alone would make pip look for the package on an index; a checkout or wheel is named by
    its path, as pip has recorded it
    (https://packaging.python.org/en/latest/specifications/direct-url/).
    """
    try:
        text = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return _from_checkout(Path(__file__).resolve().parents[2], extra)
    return f"pip install {_requirement(json.loads(text), extra)}" if text else _by_name(extra)


def _requirement(origin: dict[str, Any], extra: str) -> str:
    url = str(origin.get("url", ""))
    path = unquote(urlsplit(url).path) if url.startswith("file:") else ""
    if path:
        editable = (origin.get("dir_info") or {}).get("editable")
        return ("-e " if editable else "") + shlex.quote(f"{path}[{extra}]")
    scheme = (origin.get("vcs_info") or {}).get("vcs")
    return shlex.quote(f"{NAME}[{extra}] @ {f'{scheme}+' if scheme else ''}{url}")


def _by_name(extra: str) -> str:
    return f"pip install {shlex.quote(f'{NAME}[{extra}]')}"


def _from_checkout(checkout: Path, extra: str) -> str:
    if not (checkout / "pyproject.toml").is_file():
        return _by_name(extra)
    return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
