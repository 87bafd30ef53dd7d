"""Bytes that tensors occupy, followed operation by operation: for runs on a CPU, and for runs of fake tensors.

What an allocator adds (rounding, fragments, libraries' workspaces) is not seen here; what the algorithm needs is, to
the byte, whether or not the memory exists.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "host"
"""The role of what rests in host memory: it counts apart, since on a CPU host and device are one."""

Unit = str
Role = str


@dataclass
class Peak:
    """The largest sum of bytes on the device, and what it was made of by role."""

    nbytes: int = 0
    parts: dict[Role, int] = field(default_factory=dict)


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages that come to life while it is entered, and of those registered before.

    Each storage has a role: the one it was registered under, or `role` at the time of its birth. `peaks` holds the
    largest sum within each unit (see `watch`), `peak` the largest of all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unit: Unit = ""
        self.role: Role = "activations"
        self.held: dict[Role, int] = defaultdict(int)
        self.peaks: dict[Unit, Peak] = {}
        self._roles: dict[int, Role] = {}  # per storage, while it lives
        self._sizes: dict[int, int] = {}
        self._resize: Any = None

    @property
    def device_bytes(self) -> int:
        return sum(size for role, size in self.held.items() if role != HOST)

    @property
    def peak(self) -> tuple[Unit, Peak]:
        """The unit with the largest peak, and that peak."""
        return max(self.peaks.items(), key=lambda item: item[1].nbytes, default=("", Peak()))

    def register(self, role: Role, tensors: Iterable[Tensor]) -> None:
        """Count these tensors' storages under a role, whatever they counted under before."""
        for tensor in tensors:
            storage = _storage(tensor)
            key = storage._cdata
            self._forget(key)
            self._note(storage, role)
        self._mark()

    @contextmanager
    def roles(self, role: Role) -> Iterator[None]:
        """Storages that come to life inside have this role."""
        before, self.role = self.role, role
        try:
            yield
        finally:
            self.role = before

    def watch(self, units: dict[Unit, nn.Module]) -> None:
        """Attribute what happens in each module's forward to its name; what hooks gather before it is `gathered`."""
        for name, module in units.items():
            module.register_forward_pre_hook(lambda *_, n=name: self._enter(n, "gathered"), prepend=True)
            module.register_forward_pre_hook(lambda *_, n=name: self._enter(n, "activations"))

    def _enter(self, unit: Unit, role: Role) -> None:
        self.unit, self.role = unit, role

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                for part in _parts(leaf):
                    storage = _storage(part)
                    if storage._cdata not in self._roles:
                        self._note(storage, self.role)
        self._mark()
        return result

    def __enter__(self) -> StorageTracker:
        real = self._resize = torch.UntypedStorage.resize_
        tracker = self

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            done = real(storage, size)
            key = storage._cdata
            if key in tracker._roles:
                tracker.held[tracker._roles[key]] += size - tracker._sizes[key]
                tracker._sizes[key] = size
                tracker._mark()
            return done

        # FSDP2 gives gathered weights back by shrinking their storage
        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *ended: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*ended)

    def _note(self, storage: torch.UntypedStorage, role: Role) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._roles[key], self._sizes[key] = role, size
        self.held[role] += size
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        role = self._roles.pop(key, None)
        if role is not None:
            self.held[role] -= self._sizes.pop(key)

    def _mark(self) -> None:
        now = self.device_bytes
        peak = self.peaks.setdefault(self.unit, Peak())
        if now > peak.nbytes:
            peak.nbytes, peak.parts = now, {role: size for role, size in self.held.items() if size and role != HOST}


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors inside one: a tensor whose class wraps others has no storage of its own."""
    if hasattr(tensor, "_local_tensor"):
        return [tensor._local_tensor]  # type: ignore[attr-defined]
    return [tensor]
