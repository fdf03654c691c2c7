"""The installed program `qwenctl`, and what it inherits of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("qwenctl")


def inherited(*theirs: str) -> dict[str, str]:
    """The environment without settings of ours and those whose names begin so."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("QWENCTL_", *theirs))}
