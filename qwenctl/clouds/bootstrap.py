"""Shell commands that put qwenctl onto a GPU instance, whatever Python it came with.

Alibaba Cloud Linux 3 has Python 3.6 as ``python3``, and newer ones as packages of their own; Debian
and Ubuntu have a good one, but without ``venv``. For `qwenctl provision` and docs/node-install.md.
"""

from __future__ import annotations

import shlex

__all__ = ["install_package", "look_for_docker"]

_FIND = """\
find_python() {
  for p in python3.13 python3.12 python3.11 python3.10 python3; do
    if "$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$p"; return
    fi
  done
  return 1
}
"""

_GET = """\
get_python() {
  if command -v apt-get >/dev/null; then
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y python3 python3-venv
  elif command -v dnf >/dev/null; then
    dnf install -y python3.11 python3.11-pip
  elif command -v yum >/dev/null; then
    yum install -y python3.11 python3.11-pip
  fi
}
"""


def install_package(venv: str, package: str) -> str:
    """A POSIX shell script, which may be run again: a virtual environment with the package in it.

    It takes the newest Python from 3.10 on, installs one if there is none, and ends with 1 and a
    sentence if there is still none.
    """
    place = shlex.quote(venv)
    return f"""{_FIND}{_GET}\
if ! {place}/bin/python -c 'import pip' 2>/dev/null; then
  python=$(find_python) || {{ get_python >&2; python=$(find_python); }} || {{
    echo "qwenctl needs Python 3.10 or newer with venv: install one, such as python3.11" >&2
    exit 1
  }}
  "$python" -m venv {place}
fi
{place}/bin/pip install --quiet --upgrade {shlex.quote(package)}
"""


def look_for_docker(again: str) -> str:
    """A POSIX shell script that says on stderr what containers need and is missing here.

    It installs nothing: Docker alone would not do, and NVIDIA's toolkit is in no distribution.

    Args:
        again: the command to run once it is there; it puts the agent's user into the group docker.
    """
    advice = f"Services are containers: install what is missing, then run again: {again}"
    return f"""missing=
command -v docker >/dev/null || missing=docker
command -v nvidia-ctk >/dev/null || missing="${{missing:+$missing }}nvidia-container-toolkit"
if [ -n "$missing" ]; then
  printf 'qwenctl: missing: %s. %s\\n' "$missing" {shlex.quote(advice)} >&2
fi
"""
