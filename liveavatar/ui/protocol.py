"""Messages of the WebSocket endpoint: what a client may say, checked word by word. PROTOCOL.md describes them."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np

from liveavatar.ui.settings import ServerSettings

MESSAGE_BYTES = 64_000
"""The largest message that is read, text or sound."""

FORMATS = ("mp4", "jpeg")
RATES = (8_000, 96_000)
VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,40}")


class Mistake(Exception):
    """What a visitor did that cannot be: a word for programs, a sentence for people, an HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def told(self) -> dict[str, Any]:
        return {"type": "error", "code": self.code, "message": self.message}


@dataclass(frozen=True)
class Start:
    """Begin a stream: `portrait` is `example:NAME` or the name of an upload; pushed sound comes at `rate`."""

    portrait: str
    prompt: str = ""
    seed: int = 0
    format: str = "mp4"
    rate: int = 16_000


@dataclass(frozen=True)
class Say:
    text: str
    voice: str = "en-us"


@dataclass(frozen=True)
class Play:
    """Speak a voice that was uploaded, or `example:NAME`."""

    voice: str


@dataclass(frozen=True)
class Set:
    prompt: str


@dataclass(frozen=True)
class Plain:
    """`interrupt`, `finish` or `stop`."""

    type: str


KINDS: dict[str, Any] = {"start": Start, "say": Say, "play": Play, "set": Set}
PLAIN = ("interrupt", "finish", "stop")
Message = Start | Say | Play | Set | Plain


def read_message(text: str, settings: ServerSettings) -> Message:
    """One text message. Raises Mistake for anything that is not one."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise Mistake("not_json", 'A text message must be JSON, as in {"type": "interrupt"}.') from None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind in PLAIN and len(given) == 1:
        return Plain(kind)
    if not isinstance(kind, str) or kind not in KINDS:
        raise Mistake("unknown_type", f"A message has a type: one of {', '.join((*KINDS, *PLAIN))}.")
    known = KINDS[kind].__dataclass_fields__
    values = {key: value for key, value in given.items() if key != "type"}
    if unknown := sorted(set(values) - set(known)):
        raise Mistake("unknown_key", f"{kind} does not know {unknown[0][:40]!r}; it takes {', '.join(known)}.")
    for key, value in values.items():
        _check_value(kind, key, value, settings)
    try:
        return KINDS[kind](**values)
    except TypeError:
        missing = [key for key, field in known.items() if key not in values and field.default is MISSING]
        raise Mistake("missing_key", f"{kind} needs {', '.join(missing) or 'more than that'}.") from None


def _check_value(kind: str, key: str, value: Any, settings: ServerSettings) -> None:
    if key in ("seed", "rate"):
        low, high = RATES if key == "rate" else (0, 2**31 - 1)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Mistake("bad_value", f"{key} must be a whole number from {low} to {high}.")
        return
    if not isinstance(value, str):
        raise Mistake("bad_value", f"{key} must be text.")
    most = settings.characters if key in ("text", "prompt") else 64
    if len(value) > most:
        raise Mistake("too_long", f"{key} has {len(value)} characters, and at most {most} are taken.")
    if any((ord(letter) < 32 and letter not in "\n\t") or 0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise Mistake("bad_value", f"{key} holds characters that are no text.")
    if key == "text" and not value.strip():
        raise Mistake("bad_value", "There is nothing to say: write a sentence.")
    if kind == "say" and key == "voice" and not VOICE.fullmatch(value):
        raise Mistake("bad_value", "voice is a name as in en-us or de+f2.")
    if key == "format" and value not in FORMATS:
        raise Mistake("bad_value", f"format must be one of {', '.join(FORMATS)}.")


def read_sound(data: bytes) -> np.ndarray:
    """Pushed sound, 16-bit little-endian mono, as float32 in [-1, 1]. Raises Mistake for half a sample."""
    if not data or len(data) % 2:
        raise Mistake("bad_sound", "Sound is 16-bit little-endian mono: an even number of bytes, at least two.")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768
