"""The web server around the application, on this machine alone unless told otherwise."""

from __future__ import annotations

import logging
import socket
from typing import Any

import uvicorn

from liveavatar.ui.protocol import MESSAGE_BYTES
from liveavatar.ui.settings import ServerSettings

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""Connections at once; more are answered with 503."""


def make_config(app: Any, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn serves the application: bounded in what it reads, quiet, and trusting no proxy's word."""
    return uvicorn.Config(
        app, host=settings.host, port=settings.port, lifespan="on", ws="websockets-sansio", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, ws_max_size=MESSAGE_BYTES, ws_max_queue=16,
        ws_ping_interval=20, ws_ping_timeout=20, ws_per_message_deflate=False, limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10, h11_max_incomplete_event_size=32_000, http="h11", timeout_graceful_shutdown=10,
    )  # fmt: skip


def listen(settings: ServerSettings) -> socket.socket:
    """The socket, before anything is loaded. Raises ValueError where another program has the port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise ValueError(
            f"server.port={settings.port} on server.host={settings.host} cannot be used ({error.strerror}): another "
            "program may have it. Write another port, or server.port=0 for any that is free"
        ) from error


class _Server(uvicorn.Server):
    """Says where it can be reached as soon as it can."""

    def __init__(self, config: uvicorn.Config, words: str) -> None:
        super().__init__(config)
        self.words = words

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info(self.words)


def run(app: Any, settings: ServerSettings, listener: socket.socket) -> bool:
    """Serve until interrupted; False where the application did not start.

    Raises ValueError where that was because of the configuration.
    """
    host, port = listener.getsockname()[:2]
    shown = "localhost" if settings.local else host
    if not settings.local and settings.password is None:
        log.warning("server.host=%s lets anybody who reaches this machine in: set server.password", settings.host)
    words = f"open http://{f'[{shown}]' if ':' in shown else shown}:{port} in a browser; Ctrl-C ends"
    logging.getLogger("uvicorn.error").addFilter(_no_startup)
    server = _Server(make_config(app, settings), words)
    server.run(sockets=[listener])
    failure = app.app.state.house.failure
    if isinstance(failure, ValueError):
        raise failure
    return server.started


def _no_startup(record: logging.LogRecord) -> bool:
    """Why it did not start is told by whoever called: uvicorn's own account is left out."""
    text = record.getMessage()
    return not text.startswith(("Traceback", "Application startup failed"))
