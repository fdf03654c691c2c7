"""`qwenctl doctor`."""

from __future__ import annotations

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def doctor(gpu: GpuOption = None, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Check everything that a wake needs, and say how to mend what is wrong. Changes nothing.

    Redis, clocks, URLs, credentials, each permission (by dry run), billing, addresses, the node.
    Exit code 1 if something would fail; warnings alone are 0.

    \b
    Examples:
      qwenctl doctor
      qwenctl doctor --gpu main
      qwenctl doctor --json | jq '.checks[] | select(.level == "fail")'
    """
    from qwenctl.cli.cloud import doctor as body

    body.doctor(gpu, json, config)
