"""Who has ended: the one question after a transport has failed, answered in one line and by one rank."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

SIGNS = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "ncclUnhandled", "c10d")
"""Words by which a transport's error is told from any other."""

NOTICED = "liveavatar/noticed"
PATIENCE_S = 1.0
"""Seconds: a process that is ending closes its connections a moment before it is gone."""


class RankLost(ConnectionError):
    """Another rank has ended, or is later than `strategy.timeout_s`.

    `tells` is True on the rank that noticed first: its word is enough.
    """

    def __init__(self, message: str, tells: bool) -> None:
        super().__init__(message)
        self.tells = tells


class Late(ConnectionError):
    """A message or a unit that did not come; says who was waited for, where that is known, and for what."""

    def __init__(self, what: str, reason: str, peer: int | None = None) -> None:
        super().__init__(f"{what}. The transport says: {reason}")
        self.what, self.reason, self.peer = what, reason, peer


@contextmanager
def naming(what: str, peer: int | None = None) -> Iterator[None]:
    """A transport's failure as one that says what was waited for. Raises Late in its place."""
    try:
        yield
    except RuntimeError as error:
        if not of_transport(error):
            raise
        raise Late(what, said(error), peer) from error


def of_transport(error: BaseException) -> bool:
    """Whether a failure is about another rank, and not about this one's own work."""
    if isinstance(error, (Late, RankLost, dist.DistError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def said(error: BaseException) -> str:
    """The first line of an error, without the place in the transport's sources."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.rpartition("] ")[2] if line.startswith("[") else line


class Roll:
    """The processes of a group: machine and number of each. Made by all ranks together."""

    def __init__(self, world: int) -> None:
        own = (platform.node(), os.getpid())
        self.processes: list[Any] = [own]
        self.store: Any = None
        if world > 1:
            self.processes = [None] * world
            dist.all_gather_object(self.processes, own)
            assert dist.group.WORLD is not None
            self.store = dist.group.WORLD.get_group_store()

    def ended(self, wait_s: float = 0.0) -> list[int]:
        """The ranks of this machine that are gone, or an empty list after `wait_s` seconds."""
        until = time.monotonic() + wait_s
        while True:
            here = [(rank, pid) for rank, (host, pid) in enumerate(self.processes) if host == platform.node()]
            gone = [rank for rank, pid in here if not _alive(pid)]
            if gone or time.monotonic() >= until:
                return gone
            time.sleep(0.02)

    def first_to_notice(self, rank: int) -> bool:
        """Whether this rank is the first to say that one is lost; each is, where they cannot reach one another."""
        try:
            return self.store is None or int(self.store.compare_set(NOTICED, "", str(rank))) == rank
        except (RuntimeError, ValueError):
            return True

    def lost(self, rank: int, roles: Sequence[str], error: BaseException, timeout_s: float) -> RankLost:
        """What is to be said of a transport's failure on `rank`. `roles` says what each rank does."""
        if isinstance(error, RankLost):
            return error
        gone = self.ended(PATIENCE_S)
        tells = self.first_to_notice(rank)
        if gone:
            who = f"{_named(gone, roles)} ended"
        else:
            waited = getattr(error, "peer", None)
            peer = "another rank" if waited is None else _named([waited], roles).removesuffix(" has")
            who = f"{peer} has ended, or needs longer than strategy.timeout_s={timeout_s:g}"
        doing, cells = getattr(error, "what", ""), " and ".join(getattr(error, "__notes__", []))
        found = f" while {doing}" * bool(doing) + f" (at {cells})" * bool(cells)
        reason = error.reason if isinstance(error, Late) else said(error)
        return RankLost(
            f"{who}. Rank {rank} noticed it{found}; what was finished is in the file. The transport says: {reason}",
            tells,
        )


def _named(ranks: Sequence[int], roles: Sequence[str]) -> str:
    words = [f"{rank} ({roles[rank]})" if roles[rank] else str(rank) for rank in ranks]
    return f"rank {words[0]} has" if len(words) == 1 else f"ranks {', '.join(words)} have"


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and is not yet forgotten does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/self/stat").exists():
            return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
