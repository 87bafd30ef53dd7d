"""Pictures and voices that visitors send: counted as they arrive, decoded elsewhere, kept by a name of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liveavatar.ui.protocol import Mistake
from liveavatar.ui.settings import MB, ServerSettings

_CHILD = Path(__file__).with_name("decoding.py")
AT_ONCE = 2
KEPT, KEPT_PER_ADDRESS, KEPT_S = 64, 8, 1800.0
SLOWEST_S, PATIENCE_S = 40.0, 60.0


@dataclass
class Upload:
    """What became of a file: PNG bytes of a picture, or `pcm` at 16 kHz of a voice. No name of the sender's is kept."""

    kind: str
    owner: str
    about: dict[str, Any]
    png: bytes = b""
    pcm: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    touched: float = field(default_factory=time.monotonic)


class Uploads:
    """Takes uploads and hands them out by a name that cannot be guessed.

    At most `KEPT` are kept, and of one address `KEPT_PER_ADDRESS`: the one that was used longest ago makes room.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.kept: dict[str, Upload] = {}
        self._decoders = asyncio.Semaphore(AT_ONCE)
        self._arriving: dict[str, int] = {}
        self.limits = {"picture": {"pixels": settings.pixels}, "voice": {"seconds": settings.voice_s}}

    async def take(self, kind: str, owner: str, length: str | None, body: AsyncIterator[bytes]) -> tuple[str, Upload]:
        """Read, decode and keep one file. Raises Mistake, with an HTTP status, for what is not taken."""
        if self._arriving.get(owner, 0) >= AT_ONCE:
            raise Mistake("busy", "Two files from your address are on their way already: wait for them.", 429)
        self._arriving[owner] = self._arriving.get(owner, 0) + 1
        try:
            data = await self._read(length, body)
            about, made = await self._decoded(kind, data)
        finally:
            self._arriving[owner] -= 1
            if not self._arriving[owner]:
                del self._arriving[owner]
        upload = Upload(kind, owner, about)
        if kind == "picture":
            upload.png = made
        else:
            upload.pcm = np.frombuffer(made, "<f4")
        self._make_room(owner)
        name = secrets.token_urlsafe(16)
        self.kept[name] = upload
        return name, upload

    def get(self, name: str, kind: str) -> Upload:
        """What was kept under that name. Raises Mistake where nothing is."""
        found = self.kept.get(name)
        if found is None or found.kind != kind:
            raise Mistake("unknown_upload", f"That {kind} is not here any more: upload it again.", 404)
        found.touched = time.monotonic()
        return found

    def clear(self) -> None:
        self.kept.clear()

    async def _read(self, length: str | None, body: AsyncIterator[bytes]) -> bytes:
        """The bytes, refused at the first one too many, or before the first where their number is told."""
        most = self.settings.upload_bytes
        refusal = Mistake("too_large", f"The file is larger than the {most / MB:.3g} MB that are taken.", 413)
        if length is not None and (not length.isdigit() or int(length) > most):
            raise refusal
        data = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for piece in body:
                    data += piece
                    if len(data) > most:
                        raise refusal
        except TimeoutError:
            raise Mistake("too_slow", f"The file did not arrive within {PATIENCE_S:.0f} s.", 408) from None
        return bytes(data)

    async def _decoded(self, kind: str, data: bytes) -> tuple[dict[str, Any], bytes]:
        async with self._decoders:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(_CHILD), kind, json.dumps(self.limits[kind])),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                async with asyncio.timeout(SLOWEST_S):
                    told, _ = await child.communicate(data)
            except TimeoutError:
                raise Mistake("too_slow", "Decoding this file took too long. Export it again, smaller.", 422) from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
        if child.returncode != 0:
            raise Mistake("undecodable", "The decoder broke on this file. Export it again, as PNG or WAV.", 422)
        head, _, made = told.partition(b"\n")
        about = json.loads(head)
        if "refused" in about:
            raise Mistake("refused", about["refused"], 422)
        return about, made

    def _make_room(self, owner: str) -> None:
        now = time.monotonic()
        for name in [name for name, upload in self.kept.items() if now - upload.touched > KEPT_S]:
            del self.kept[name]
        for most, mine in (
            (KEPT_PER_ADDRESS, [n for n, u in self.kept.items() if u.owner == owner]),
            (KEPT, self.kept),
        ):
            for name in sorted(mine, key=lambda name: self.kept[name].touched)[: max(0, len(mine) - most + 1)]:
                del self.kept[name]
