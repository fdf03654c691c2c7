"""Run the proxy. `qwenctl serve` is the friendly way to do so."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys

import uvicorn

from qwenctl.config.deployment import Config
from qwenctl.config.listen import BACKLOG, listening_socket
from qwenctl.config.loading import load_config
from qwenctl.control.left_on import left_running
from qwenctl.errors import ConfigError, ExitCode, StoreUnavailable, UserError
from qwenctl.lib.descriptors import raise_limit
from qwenctl.lib.extras import missing
from qwenctl.lib.text import plain
from qwenctl.store.store import open_store

from .app import Proxy
from .http.capacity import Capacity, bearable
from .http.connections import probe_peer
from .http.request import networks
from .http.server import protocols
from .http.shutdown import Server
from .http.websocket_server import MAX_MESSAGE, WebSocket

log = logging.getLogger("qwenctl.proxy")

FEW = 1000
"""Fewer connections than this are worth a warning."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(prog="qwenctl serve", description=__doc__)
    parser.add_argument("--config", help="the config file")
    parser.add_argument("--listen", help="address:port, instead of proxy.listen")
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=plain(sys.stderr),
    )
    logging.getLogger("asyncio").setLevel("ERROR")
    try:
        return serve(load_config(options.config), options.listen)
    except UserError as error:
        if os.environ.get("QWENCTL_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except ModuleNotFoundError as error:
        try:
            text = missing((error.name or "").partition(".")[0])
        except KeyError:
            raise error from None
        if os.environ.get("QWENCTL_DEBUG"):
            raise
        print(f"error: {text}", file=sys.stderr)
        return int(ExitCode.ERROR)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def serve(config: Config, listen: str | None) -> int:
    """Check the configuration, bind the port, run the server.

    Raises:
        UserError: the configuration, the store or the port cannot be used.
    """
    if listen:
        proxy = config.proxy.model_copy(update={"listen": listen})
        config = config.model_copy(update={"proxy": proxy})
    if not config.gpu:
        raise ConfigError("no GPU is configured: add a [gpu.NAME] table, or run `qwenctl init`")
    capacity = Capacity(
        bearable(raise_limit(), len(config.gpu)), networks(config.proxy.trusted_proxies)
    )
    if capacity.most < FEW:
        log.warning(
            "the limit of open files bears only %d connections of clients: raise it (ulimit -Hn, or "
            "LimitNOFILE of systemd)",
            capacity.most,
        )
    for what in config.exposures():
        log.warning("%s", what)
    connection = bind(config)
    store = open_store(config)
    application = Proxy(
        config, store, snapshot_delay=float(os.environ.get("QWENCTL_TEST_SNAPSHOT_DELAY") or 0)
    )

    server = Server(
        uvicorn.Config(
            application,
            loop="uvloop",
            http=protocols(capacity),  # type: ignore[arg-type]
            ws=WebSocket,
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            backlog=BACKLOG,
        ),
        application,
        config.proxy.shutdown_grace,
    )
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel("WARNING")
    log.info("listening on %s, state in %s", config.proxy.listen, store.place)
    server.run(sockets=[connection])
    with contextlib.suppress(StoreUnavailable):
        for text in left_running(config, store):
            log.warning("%s", text)
    if server.ended_by is not None:
        signal.raise_signal(server.ended_by)  # whoever started us sees by what we ended
    return 0 if server.started else int(ExitCode.ERROR)


def bind(config: Config) -> socket.socket:
    """Return the listening socket.

    Raises:
        ConfigError: not an address, in use, not ours, or open to the world without access control.
    """
    host, port = config.check_listen()
    connection = listening_socket(host, port)
    probe_peer(connection)  # whom it accepts has these options, too
    return connection


if __name__ == "__main__":
    sys.exit(main())
