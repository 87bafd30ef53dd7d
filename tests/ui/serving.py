"""A server in a thread of this process, on a free port of the loopback, and clients for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from liveavatar.ui.app import make_app
from liveavatar.ui.house import House
from liveavatar.ui.serving import make_config
from liveavatar.ui.settings import ServerSettings
from tests.ui.fake import Loader

PATIENCE_S = 30.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    port: int
    house: House
    loader: Loader

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Answer:
        """One HTTP request; a body that is no bytes is sent as JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            link.request(method or ("GET" if body is None else "POST"), path, data, given)
            answer = link.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            link.close()

    def connect(self, **more: Any) -> Client:
        return Client(
            connect(
                f"ws://127.0.0.1:{self.port}/stream", open_timeout=PATIENCE_S, close_timeout=0.2, max_size=None, **more
            )
        )

    def upload(self, kind: str, data: bytes) -> str:
        answer = self.ask(f"/upload/{kind}", data)
        assert answer.status == 200, answer.body
        return answer.json()["name"]

    def healthy(self) -> bool:
        return self.ask("/health").status == 200

    def engine_choice(self) -> tuple[str, int]:
        loaded = self.house.engine.loaded
        assert loaded is not None
        return loaded.choice.strategy, loaded.choice.steps

    def empty(self) -> bool:
        return not self.house.places.taken and not self.house.visits and not self.loader.avatar.open


class Client:
    """A program that talks to the server over its WebSocket."""

    def __init__(self, link: ClientConnection) -> None:
        self.link = link
        self.video: list[bytes] = []

    def say(self, kind: str, **values: Any) -> None:
        self.link.send(json.dumps({"type": kind, **values}))

    def start(self, **values: Any) -> Client:
        self.say("start", **{"portrait": "example:toon", "format": "jpeg", **values})
        return self

    def hear(self) -> dict[str, Any]:
        """The next message; bytes that belong to it are kept in `video`."""
        told = json.loads(self.link.recv(timeout=PATIENCE_S))
        if told["type"] == "chunk":
            data = self.link.recv(timeout=PATIENCE_S)
            assert isinstance(data, bytes)
            assert len(data) == told["bytes"]
            self.video.append(data)
        return told

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind; an error that was not asked for is one too many."""
        while True:
            told = self.hear()
            if told["type"] == kind:
                return told
            assert told["type"] != "error", told

    def until_closed(self) -> None:
        """Whatever comes, until the server has closed."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.link.recv(timeout=PATIENCE_S)

    def chunks(self, number: int) -> list[dict[str, Any]]:
        return [self.until("chunk") for _ in range(number)]

    def close(self) -> None:
        self.link.close()

    def vanish(self) -> None:
        """As when a cable is pulled: no goodbye."""
        self.link.socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


def eventually(true: Callable[[], bool], what: str = "") -> None:
    """Wait until something holds. Nothing hangs on how long that takes, but that it ends."""
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, f"never came true: {what or true}"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(loader: Loader | None = None, sinks: Any = None, **settings: Any) -> Iterator[Server]:
    """A server with a fake avatar; ends with nothing left open."""
    loader = loader or Loader()
    chosen = ServerSettings(**{"port": 0, **settings})
    app = make_app(chosen, loader, sinks)
    server = uvicorn.Server(make_config(app, chosen))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), "the server starts")
        yield Server(listener.getsockname()[1], app.app.state.house, loader)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        listener.close()
