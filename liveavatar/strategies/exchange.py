"""Collective exchange among the ranks that share a cell, uneven and in rooms made once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from liveavatar.checkpoint.slab import allocate
from liveavatar.strategies.faults import naming

if TYPE_CHECKING:
    from liveavatar.strategies.base import Traffic


class Exchange:
    """All-to-all among `ranks`, of which this one has the place `rank`; what moves is added to `traffic`.

    Two rooms, for what leaves and for what comes, grow to the largest exchange and then stay: what came is valid until
    the next exchange.
    """

    def __init__(self, ranks: Sequence[int], traffic: Traffic, group: Any) -> None:
        self.ranks, self.traffic, self.group = tuple(ranks), traffic, group
        self.rank, self.size = self.ranks.index(dist.get_rank()), len(self.ranks)
        self._rooms: dict[str, Tensor] = {}

    @classmethod
    def among(cls, size: int, world: int, traffic: Traffic, timeout: timedelta | None) -> Exchange:
        """The exchange of this rank's group of `size` consecutive ranks; all ranks of the run must call.

        The group is a new one, so that an exchange need not queue behind weights under way between the same ranks.
        """
        found: Exchange | None = None
        for first in range(0, world, size):
            ranks = range(first, first + size)
            group = dist.new_group(list(ranks), timeout=timeout)
            if dist.get_rank() in ranks:
                found = cls(ranks, traffic, group)
        assert found is not None
        return found

    def leaving(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Room to fill with what leaves, in the order of the ranks it is for; of the type and device of `like`."""
        return self._room("leaving", shape, like)

    def swap(self, leaving: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send `sent[i]` rows of `leaving` to rank i of the group; `received[i]` rows from each, in their order.

        Raises Late when another rank has ended or is too late.
        """
        came = self._room("coming", (sum(received), *leaving.shape[1:]), leaving)
        with naming(f"sharing a cell or a picture with ranks {self.ranks[0]}-{self.ranks[-1]}"):
            dist.all_to_all_single(came, leaving, list(received), list(sent), group=self.group)
        row = leaving.element_size() * leaving[0].numel() if len(leaving) else came.element_size() * came[:1].numel()
        self.traffic.sent += row * (sum(sent) - sent[self.rank])
        self.traffic.received += row * (sum(received) - received[self.rank])
        return came

    def _room(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        nbytes = torch.Size(shape).numel() * like.element_size()
        room = self._rooms.get(name)
        if room is None or room.nbytes < nbytes:
            room = self._rooms[name] = allocate(nbytes, like.device)
        return room[:nbytes].view(like.dtype).view(tuple(shape))


def degrees(heads: int, most: int) -> list[int]:
    """Into how many shares of heads a model can be divided, up to `most`."""
    return [size for size in range(1, most + 1) if heads % size == 0]


def check_degree(size: Any, heads: int, world: int, most: int) -> None:
    """Raises ValueError for a parallel.ulysses_size that cannot work, with those that do."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"parallel.ulysses_size={size!r} must be a whole number from 1, which divides nothing")
    working = degrees(heads, most)
    here = [degree for degree in working if world % degree == 0]
    if size not in working:
        raise ValueError(
            f"parallel.ulysses_size={size} does not divide the {heads} attention heads of the model: choose one of "
            f"{', '.join(map(str, working))}, and a number of ranks that it divides"
        )
    if size not in here:
        raise ValueError(
            f"parallel.ulysses_size={size} does not divide the {world} ranks of fabric.devices={world}: choose one of "
            f"{', '.join(map(str, here))}, or fabric.devices={size}"
        )
