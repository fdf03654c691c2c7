"""The command line: `main` turns whatever happens into one sentence and an exit code.

Nothing heavy is imported here: ``qwenctl --help`` costs little more than Typer itself. Each command
imports what it needs when it runs.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, cast

from qwenctl.errors import ExitCode, UserError

__all__ = ["main"]

_EXTRAS = {
    "a2wsgi": "proxy",
    "aiohttp": "proxy",
    "argon2": "proxy",
    "cronsim": "proxy",
    "flask": "proxy",
    "prometheus_client": "proxy",
    "redis": "proxy",
    "uvicorn": "proxy",
    "boto3": "aws",
    "botocore": "aws",
    "alibabacloud_credentials": "aliyun",
    "aliyunsdkcore": "aliyun",
    "aliyunsdkecs": "aliyun",
    "gradio": "demo",
    "PIL": "demo",
}
"""Which extra installs a module, for the error that names it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `qwenctl.errors.ExitCode`)."""
    # Looking for plugins reads the metadata of every installed package: a tenth of a second in a
    # large environment, before the first line is printed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # A command is short: looking for cyclic garbage while it starts, and in all its modules at its
    # end, is a quarter of `qwenctl status`.
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    try:
        return _run(args)
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # what a shell says of any program that ends so
    except UserError as error:
        return _error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS or os.environ.get("QWENCTL_DEBUG"):
            return _unexpected(error)
        return _error(missing(module), ExitCode.ERROR)
    except Exception as error:
        return _unexpected(error)


def missing(module: str) -> str:
    """The sentence for a package that is not installed."""
    return f"this needs the package {module}: pip install 'qwenctl[{_EXTRAS[module]}]'"


def _run(args: Sequence[str] | None) -> int:
    import typer

    from qwenctl.cli.app import make_app

    # Typer has its own copy of Click in newer versions; its public names lead to the right one.
    usage_error: type[Exception]
    click_error: type[Exception]
    usage_error, click_error = cast(Any, typer.BadParameter.__mro__[1:3])
    try:
        app = make_app(sys.argv[1:] if args is None else args)
        code = app(args=args, prog_name="qwenctl", standalone_mode=False)
    except click_error as error:
        text = cast(Any, error).format_message()
        if not isinstance(error, usage_error):
            return _error(text, ExitCode.ERROR)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(text)
            return ExitCode.USAGE
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "qwenctl"
        text = " ".join(text.split()).rstrip(".")  # of a choice, Click lists each on its own line
        return _error(f"{text}; see `{command} --help`", ExitCode.USAGE)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Click makes it a plain exit code 1
            raise end.__context__ from None
        raise
    return int(code) if isinstance(code, int) else ExitCode.OK


def _error(text: str, code: ExitCode) -> int:
    for line in text.splitlines() or ["unknown"]:
        print(f"error: {line}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> int:
    if os.environ.get("QWENCTL_DEBUG"):
        import traceback

        traceback.print_exc()
        return ExitCode.ERROR
    first = (str(error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}".rstrip(": ")
    return _error(
        f"{text} (a mistake in qwenctl; set QWENCTL_DEBUG=1 for the traceback)", ExitCode.ERROR
    )
