"""Tensor bytes on a device that keeps no account of its own: operations are followed one by one, for a moment.

A CPU's allocator says nothing of what it gave out. Inside this mode every new storage is counted while it lives, which
is the figure that a GPU's allocator reports and that a plan predicts. It costs microseconds an operation, so it is
meant for one pass, not for a stream.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode


class TensorWatch(TorchDispatchMode):
    """Counts storages that come to life inside it: `live` now, `peak` since the last `mark`. Bytes.

    Storages that were there before (weights, caches) count nothing, and neither do views of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}
        self._resize: Any = None

    def mark(self) -> None:
        """Begin a new peak."""
        self.peak = self.live

    def __enter__(self) -> TensorWatch:
        real, watch = UntypedStorage.resize_, self

        def resize(storage: UntypedStorage, size: int) -> Any:
            done = real(storage, size)
            if id(storage) in watch._sizes:
                watch._count(size - watch._sizes[id(storage)])
                watch._sizes[id(storage)] = size
            return done

        self._resize = real
        UntypedStorage.resize_ = resize  # type: ignore[method-assign]  # how FSDP2 takes and gives back gathered weights
        return super().__enter__()

    def __exit__(self, *ended: Any) -> None:
        UntypedStorage.resize_ = self._resize
        super().__exit__(*ended)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet(args, new=False)
        if not kwargs:
            made = func(*args)
        else:
            self._meet(tuple(kwargs.values()), new=False)
            made = func(*args, **kwargs)
        self._meet(made, new=True)
        return made

    def _meet(self, value: Any, new: bool) -> None:
        """Note a tensor, or those in a list: operations take and give nothing deeper."""
        kind = type(value)
        if kind is tuple or kind is list:
            for part in value:
                self._meet(part, new)
            return
        if kind is not Tensor and kind is not nn.Parameter:
            return
        storage = value.untyped_storage()
        key = id(storage)  # one Python object for as long as the storage lives
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key))
        if new:
            self._sizes[key] = storage.nbytes()
            self._count(self._sizes[key])

    def _gone(self, key: int) -> None:
        self._known.pop(key, None)
        self._count(-self._sizes.pop(key, 0))

    def _count(self, change: int) -> None:
        self.live += change
        self.peak = max(self.peak, self.live)
