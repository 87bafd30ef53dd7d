"""Ranks that need the same units: they gather them from one another, or share one copy in a machine's memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist


class Mates:
    """This rank's group among `ranks`, all of which make it at the same time. Alone, nothing is said to anyone.

    `group` is None where it is everyone.
    """

    def __init__(self, ranks: Sequence[int], rank: int, group: dist.ProcessGroup | None) -> None:
        self.ranks, self.group = tuple(ranks), group
        self.index, self.size = self.ranks.index(rank), len(self.ranks)

    @classmethod
    def by(cls, keys: Sequence[Hashable], rank: int, timeout: timedelta) -> Mates:
        """The ranks with the same key as this one; `keys` has one for each rank, the same list on all of them."""
        own = None
        for key in dict.fromkeys(keys):
            ranks = [number for number, other in enumerate(keys) if other == key]
            apart = 1 < len(ranks) < len(keys)
            group: Any = dist.new_group(ranks, timeout=timeout) if apart else None  # all ranks make it, members or not
            if rank in ranks:
                own = cls(ranks, rank, group)
        assert own is not None
        return own

    def tell(self, word: str) -> str:
        """What the first of the group says, on each of them."""
        if self.size == 1:
            return word
        words: list[Any] = [None] * self.size
        dist.all_gather_object(words, word, group=self.group)
        return words[0]

    def meet(self) -> None:
        """Return when all have come here."""
        self.tell("here")

    def close(self) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None
