"""The routes. Files that are served come from one list; no path that a client sends is ever opened."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from liveavatar.types import Sink
from liveavatar.ui.choices import read_choice
from liveavatar.ui.engine import Load
from liveavatar.ui.guard import Guard
from liveavatar.ui.house import House
from liveavatar.ui.protocol import Mistake
from liveavatar.ui.settings import ServerSettings
from liveavatar.ui.visit import Visit

PAGE = Path(__file__).with_name("page")
FILES = {
    "/": ("index.html", "text/html"),
    "/login": ("login.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/player.js": ("player.js", "text/javascript"),
    "/microphone.js": ("microphone.js", "text/javascript"),
    "/recorder.js": ("recorder.js", "text/javascript"),
    "/login.js": ("login.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/protocol": ("../PROTOCOL.md", "text/plain"),
}
THREADS = 64
SMALL_BODY = 4_000
"""Bytes of a request that is no upload."""


def make_app(settings: ServerSettings, load: Load, sinks: Callable[[str], dict[str, Sink]] | None = None) -> Any:
    """The whole as an ASGI application. `load` makes the avatar when the server starts (see `Engine`).

    The Starlette application within has the `House` as `state.house`.
    """
    house = House(settings, load, sinks)
    guard: list[Guard] = []

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        # closing sessions wait for their threads: they must not keep others from a thread
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "liveavatar-work"))
        await house.open()
        try:
            yield
        finally:
            await house.close()

    async def log_in(request: Request) -> Response:
        given = (await _json(request)).get("password")
        address = request.client.host if request.client else ""
        return guard[0].log_in(address, given if isinstance(given, str) else "")

    async def stream(socket: WebSocket) -> None:
        await Visit(socket, house).run()

    routes: list[Any] = [Route(path, functools.partial(_file, name, kind)) for path, (name, kind) in FILES.items()]
    routes += [
        Route("/examples/{name}.jpg", functools.partial(_example, house)),
        Route("/health", functools.partial(_health, house)),
        Route("/metrics", functools.partial(_metrics, house)),
        Route("/state", functools.partial(_state, house)),
        Route("/engine", functools.partial(_engine, house), methods=["POST"]),
        Route("/upload/{kind}", functools.partial(_upload, house), methods=["POST"]),
        Route("/login", log_in, methods=["POST"]),
        WebSocketRoute("/stream", stream),
    ]
    app = Starlette(routes=routes, lifespan=life, exception_handlers={Mistake: _mistaken})
    app.state.house = house
    guard.append(Guard(app, settings, lambda why: house.figures.add("requests_refused_total", why=why)))
    return guard[0]


async def _mistaken(request: Request, error: Exception) -> Response:
    assert isinstance(error, Mistake)
    return JSONResponse({"code": error.code, "message": error.message}, error.status)


@functools.cache
def _read(name: str) -> bytes:
    return (PAGE / name).read_bytes()


async def _file(name: str, kind: str, request: Request) -> Response:
    return Response(_read(name), media_type=kind)


async def _example(house: House, request: Request) -> Response:
    return Response(house.example(request.path_params["name"], "picture"), media_type="image/jpeg")


async def _health(house: House, request: Request) -> Response:
    status, told = house.health()
    return JSONResponse(told, status)


async def _metrics(house: House, request: Request) -> Response:
    return PlainTextResponse(house.metrics(), media_type="text/plain; version=0.0.4")


async def _state(house: House, request: Request) -> Response:
    return JSONResponse(house.state())


async def _engine(house: House, request: Request) -> Response:
    loaded = house.engine.loaded
    given = read_choice(await _json(request), loaded.about.get("processes", 1) if loaded is not None else 1)
    await house.change(given)
    return JSONResponse(house.state())


async def _upload(house: House, request: Request) -> Response:
    kind = request.path_params["kind"]
    if kind not in house.uploads.limits:
        raise Mistake("unknown_kind", "Upload a picture or a voice.", 404)
    owner = request.client.host if request.client else ""
    try:
        name, upload = await house.uploads.take(kind, owner, request.headers.get("content-length"), request.stream())
    except ClientDisconnect:
        house.figures.add("uploads_total", kind=kind, result="left")
        return Response(status_code=499)
    except Mistake as mistake:
        house.figures.add("uploads_total", kind=kind, result=mistake.code)
        raise
    house.figures.add("uploads_total", kind=kind, result="kept")
    return JSONResponse({"name": name, **upload.about})


async def _json(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > SMALL_BODY:
            raise Mistake("too_large", "That is too long.", 413)
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        raise Mistake("not_json", "Send JSON.") from None
    if not isinstance(given, dict):
        raise Mistake("not_json", "Send a JSON object.")
    return given
