"""What every request passes before it reaches a route: where it comes from, and whether it knows the password."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from liveavatar.ui.settings import LOOPBACK, ServerSettings

OPEN = ("/health", "/login", "/page.css", "/login.js", "/icon.svg")
"""Paths that need no password."""

COOKIE = "liveavatar"
TRIES, TRIES_S = 10, 60.0

SAFE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware. A browser may call from this server's own page alone; other programs send no Origin.

    The name that a request calls the server by must be one of its own too: a page elsewhere whose name is made to
    point at this machine would otherwise be "the same origin". No header of CORS is ever sent.
    """

    def __init__(self, app: Any, settings: ServerSettings, refused: Any = None) -> None:
        self.app, self.settings = app, settings
        self.refused = refused or (lambda reason: None)
        self.names = {*LOOPBACK, settings.host, *settings.hosts}
        self._secret = secrets.token_bytes(32)
        self._tries: dict[str, list[float]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            self.refused(refusal[1])
            await self._refuse(scope, receive, send, *refusal)
            return

        async def safely(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, safely)

    def _refusal(self, scope: Any) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._known(_name(host)):
            words = "This server does not go by that name. Open it at localhost, or add the name to server.hosts."
            return 421, "host", words
        origin = headers.get("origin")
        if origin is not None and (urlsplit(origin).netloc != host or urlsplit(origin).scheme not in ("http", "https")):
            return 403, "origin", "Only this server's own page may do that."
        fetched = headers.get("sec-fetch-site", "none")
        if fetched not in ("none", "same-origin") and scope["path"] != "/":
            return 403, "origin", "Only this server's own page may do that."
        if scope["path"] not in OPEN and not self.knows(headers):
            return 401, "password", "The password is needed: log in at / or send Authorization: Bearer PASSWORD."
        return None

    def _known(self, name: str) -> bool:
        if name in self.names:
            return True
        # open to others and no names given: by whatever name they reach it
        return not self.settings.local and not self.settings.hosts and bool(name)

    def knows(self, headers: Headers) -> bool:
        """Whether the request carries the password, or the cookie that was given for it."""
        password = self.settings.password
        if password is None:
            return True
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if bearer and hmac.compare_digest(bearer.encode(), password.encode()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._token().encode())

    def _token(self) -> str:
        return hmac.new(self._secret, (self.settings.password or "").encode(), hashlib.sha256).hexdigest()

    def log_in(self, address: str, given: str) -> Response:
        """The answer to a password: a cookie, or after ten wrong ones in a minute a wait."""
        now = time.monotonic()
        tries = [at for at in self._tries.get(address, []) if now - at < TRIES_S]
        if len(tries) >= TRIES:
            return JSONResponse({"code": "wait", "message": "Too many wrong passwords: wait a minute."}, 429)
        if self.settings.password is None or hmac.compare_digest(given.encode(), self.settings.password.encode()):
            self._tries.pop(address, None)
            answer = JSONResponse({"ok": True})
            answer.set_cookie(COOKIE, self._token(), httponly=True, samesite="strict", path="/")
            return answer
        if len(self._tries) > 1000:
            self._tries.clear()
        self._tries[address] = [*tries, now]
        return JSONResponse({"code": "password", "message": "That is not the password."}, 401)

    async def _refuse(self, scope: Any, receive: Any, send: Any, status: int, code: str, message: str) -> None:
        if scope["type"] == "websocket":  # closed before it is accepted: the client sees HTTP 403
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": code})
            return
        answer: Response
        if status == 401 and scope["path"] == "/" and scope["method"] == "GET":
            answer = RedirectResponse("/login", 303)
        else:
            answer = Response(
                json.dumps({"code": code, "message": message}), status, SAFE_HEADERS, media_type="application/json"
            )
        await answer(scope, receive, send)


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
