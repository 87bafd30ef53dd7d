"""What the server allows: the node `server` of conf/serve.yaml."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MB = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, and its limits. conf/serve.yaml says what each key means.

    Raises ValueError, naming the key, for values that make no sense.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    hosts: tuple[str, ...] = ()
    places: int | None = None
    waiting: int = 16
    per_address: int = 4
    restart: bool | None = None
    upload_mb: float = 16
    megapixels: float = 40
    voice_s: float = 120
    characters: int = 500
    stream_minutes: float = 60
    idle_minutes: float = 5
    patience_s: float = 15
    lead_s: float = 0.5
    record: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))
        if self.password is None:
            object.__setattr__(self, "password", os.environ.get("LIVEAVATAR_PASSWORD") or None)
        if not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise ValueError(f"server.port={self.port!r} is no port: write a number from 1 to 65535, or 0 for any")
        positive = "waiting per_address upload_mb megapixels voice_s characters stream_minutes idle_minutes patience_s"
        for name in positive.split():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"server.{name}={value!r} must be a number above 0")
        if self.places is not None and (not isinstance(self.places, int) or self.places < 1):
            raise ValueError(f"server.places={self.places!r} must be a whole number from 1, or null for what fits")
        if not 0 <= self.lead_s <= 10:
            raise ValueError(f"server.lead_s={self.lead_s!r} must be 0 to 10 seconds")
        if self.record is not None and not Path(self.record).expanduser().is_dir():
            raise ValueError(f"server.record={self.record} is not a folder: make it first, or write server.record=null")

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return self.host in LOOPBACK

    @property
    def may_restart(self) -> bool:
        """Whether visitors may load the model anew."""
        return self.local if self.restart is None else self.restart

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * MB)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)
