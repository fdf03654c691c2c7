"""The version of this program with its build, which tells two commits of one version apart."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import qwenctl

_SUFFIXES = frozenset({".py", ".lua", ".js", ".html", ".json"})


@cache
def full_version() -> str:
    """Return the version with a hash of the sources as its local part (PEP 440).

    It is the same for checkout, sdist and wheel of one commit. A process that may be upgraded under
    way calls it at its start.
    """
    root = Path(qwenctl.__file__).resolve().parent
    try:
        return f"{qwenctl.__version__}+{build_of(root.parent)}"
    except OSError:  # the sources cannot be read, or are being replaced
        return qwenctl.__version__


def build_of(root: Path) -> str:
    """Return the hash of the packages in a checkout or in ``site-packages``."""
    folders = {name: root / name for name in ("qwenctl", "gpu_node")}
    installed = root / "qwenctl_proxy"  # its name in a wheel; `proxy` there is somebody else's
    folders["proxy"] = installed if installed.is_dir() else root / "proxy"
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
            inside = path.relative_to(folder)
            if path.suffix not in _SUFFIXES or inside.parts[0] == "demo_webui":
                continue
            content = path.read_bytes()
            digest.update(f"{name}/{inside.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:8]
