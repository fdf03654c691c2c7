"""The command line: `main` turns every outcome into a sentence and an exit code.

It imports no heavy module, so that ``qwenctl --help`` costs little more than Typer itself; each
command imports its body when it runs.
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
from qwenctl.lib.text import escape_control, plain


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (`qwenctl.errors.ExitCode`)."""
    # Looking for plugins reads the metadata of every installed package: 0.1 s in a large
    # environment, before the first line is printed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Garbage collections during the start, and of all modules at the end, take a quarter of
    # `qwenctl status`.
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(plain, streams)
    try:
        return _main(args)
    finally:
        sys.stdout, sys.stderr = streams


def _main(args: Sequence[str] | None) -> int:
    try:
        return _run(args)
    except BrokenPipeError:
        # The reader (head, less) has ended. Python would report that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as a shell reports it
    except UserError as error:
        return _error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        from qwenctl.lib.extras import EXTRAS, missing

        if module not in EXTRAS or os.environ.get("QWENCTL_DEBUG"):
            return _unexpected(error)
        return _error(missing(module), ExitCode.ERROR)
    except Exception as error:
        return _unexpected(error)


def _run(args: Sequence[str] | None) -> int:
    import typer

    from qwenctl.cli.app import make_app

    # Newer versions of Typer contain a copy of Click; the public names lead to the right classes.
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
        text = " ".join(text.split()).rstrip(".")  # Click lists choices on several lines
        return _error(f"{text}; see `{command} --help`", ExitCode.USAGE)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Click turns it into exit code 1
            raise end.__context__ from None
        raise
    return int(code) if isinstance(code, int) else ExitCode.OK


def _error(text: str, code: ExitCode) -> int:
    from qwenctl.cli.common.language import said

    for line in text.splitlines() or ["unknown"]:
        print(f"{said('error:')} {escape_control(said(line))}", file=sys.stderr)
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
