"""Chunks as bytes that a browser plays: fragments of one MP4, or JPEG pictures with their sound."""

from __future__ import annotations

import io
import re
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import soxr
from PIL import Image

from liveavatar.media.mp4 import AAC_RATES, Mp4Writer
from liveavatar.sinks import Fanout
from liveavatar.types import Sink

MP4_RATE = 48_000
"""Samples per second of the sound in an MP4: what every player takes."""

JPEG_QUALITY = 85


@dataclass
class Piece:
    """A chunk on its way out: uint8 pictures [t, H, W, 3], the sound under them, and what is told beside them."""

    frames: np.ndarray
    audio: np.ndarray
    rate: int
    fps: int
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps


class Packer(Protocol):
    """Makes bytes of pieces, one after another. `mime` is known after the first one."""

    mime: str

    def pack(self, piece: Piece) -> bytes: ...

    def close(self) -> bytes: ...


class _Tap(io.RawIOBase):
    """A file that hands over what is added to it and forgets it. What is rewritten before that place is let go."""

    def __init__(self) -> None:
        self.start, self.at, self.held = 0, 0, bytearray()

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        self.at = place
        return place

    def truncate(self, size: int | None = None) -> int:
        end = self.at if size is None else size
        del self.held[max(0, end - self.start) :]
        return end

    def write(self, data: Any) -> int:
        view = bytes(data)
        if self.at >= self.start:
            low = self.at - self.start
            self.held[low : low + len(view)] = view
        self.at += len(view)
        return len(view)

    def taken(self) -> bytes:
        data, self.start, self.held = bytes(self.held), self.start + len(self.held), bytearray()
        return data


class Mp4Packer:
    """One MP4 for the life of a stream: its header with the first piece, then a fragment for each.

    The sound is resampled from piece to piece without a seam, so it lags by some milliseconds.
    """

    def __init__(self) -> None:
        self.mime = ""
        self._tap, self._writer, self._resampler = _Tap(), None, None
        self._rate, self._late = 0, None

    def pack(self, piece: Piece) -> bytes:
        if self._writer is None:
            height, width = piece.frames.shape[1:3]
            self._rate = piece.rate if piece.rate in AAC_RATES and piece.rate >= 32_000 else MP4_RATE
            self._writer = Mp4Writer("stream.mp4", width, height, piece.fps, self._rate, file=self._tap)  # type: ignore[arg-type]
            if piece.rate != self._rate:
                self._resampler = soxr.ResampleStream(piece.rate, self._rate, 1, dtype="float32", quality="HQ")
        sound = np.asarray(piece.audio, np.float32)
        if self._resampler is not None:
            sound = self._fitted(self._resampler.resample_chunk(sound), piece)
        self._writer.write(piece.frames, sound)
        data = self._tap.taken()
        if not self.mime:
            self.mime = mime_of(data)
        return data

    def _fitted(self, sound: np.ndarray, piece: Piece) -> np.ndarray:
        """As long as the pictures: what the resampler still holds of the first piece is silence before it."""
        wanted = round(piece.seconds * self._rate)
        before = np.zeros(max(0, wanted - len(sound)), np.float32) if self._late is None else self._late
        waiting = np.concatenate([before, sound])
        now, self._late = waiting[:wanted], waiting[wanted:]
        return now

    def close(self) -> bytes:
        """What the encoders still held."""
        if self._writer is not None:
            self._writer.close()
        return self._tap.taken()


def mime_of(header: bytes) -> str:
    """What MediaSource must be told of this MP4; empty where no browser will play it (an FFmpeg without libx264)."""
    found = re.search(rb"avcC\x01(...)", header, re.DOTALL)
    return f'video/mp4; codecs="avc1.{found[1].hex()},mp4a.40.2"' if found else ""


class JpegPacker:
    """Each piece by itself: the sound as 16-bit samples and every picture as a JPEG (PROTOCOL.md has the layout)."""

    mime = "application/x-liveavatar-jpeg"

    def pack(self, piece: Piece) -> bytes:
        sound = (np.clip(piece.audio, -1, 1) * 32767).astype("<i2").tobytes()
        body = [struct.pack("<4sHHII", b"LAJ1", len(piece.frames), piece.fps, piece.rate, len(sound) // 2), sound]
        for pixels in piece.frames:
            made = io.BytesIO()
            Image.fromarray(pixels).save(made, "JPEG", quality=JPEG_QUALITY)
            body += [struct.pack("<I", made.tell()), made.getvalue()]
        return b"".join(body)

    def close(self) -> bytes:
        return b""


class Outlet:
    """A packer and the sinks that take what it packs, safe to close while another thread is still packing.

    A sink that fails is left out and the others go on.
    """

    def __init__(self, form: str, sinks: Mapping[str, Sink]) -> None:
        self._packer, self._sinks = PACKERS[form](), Fanout(sinks)
        self._lock, self._closed, self._told = threading.Lock(), False, set()
        self._sinks.open(None)  # type: ignore[arg-type]

    @property
    def mime(self) -> str:
        return self._packer.mime

    def fresh_failures(self) -> list[tuple[str, Exception]]:
        """Sinks that failed since this was last asked, and why."""
        found = [(name, error) for name, error in self._sinks.failures.items() if name not in self._told]
        self._told |= {name for name, _ in found}
        return found

    def pack(self, piece: Piece | None) -> bytes:
        """The bytes of a piece; None asks for what the encoders still hold, after the last one."""
        with self._lock:
            if self._closed:
                return b""
            data = self._packer.close() if piece is None else self._packer.pack(piece)
            self._sinks.write(data)  # type: ignore[arg-type]
            return data

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._packer.close()
                self._sinks.close()


PACKERS: dict[str, type] = {"mp4": Mp4Packer, "jpeg": JpegPacker}
