"""Who holds what: components report their bytes, and a reading costs microseconds.

A component's bytes are told by role, not by place: `device` is what would lie on an accelerator, `host` what rests in
main memory beside it. On a CPU both are main memory, and the roles still tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Holdings = dict[str, tuple[int, int]]
"""Bytes by component: (device, host)."""

COMPONENTS = ("weights", "ring", "caches", "sink", "scratch", "hoisted", "text", "speech", "vae", "decoder")
"""Names in use, in the order in which figures stack them; others may be reported and come last."""

WORDS = {
    "weights": "DiT weights", "ring": "ring of units", "caches": "key and value caches", "sink": "sink cache",
    "scratch": "attention scratch", "hoisted": "hoisted tensors", "text": "text encoder", "speech": "speech encoder",
    "vae": "VAE", "decoder": "decoder state", "activations": "activations", "process": "interpreter and libraries",
    "slack": "allocator's reserve", "others": "driver, context and other processes", "other": "not told apart",
}  # fmt: skip
"""What a component is called in front of people."""


class Ledger:
    """Collects reports. `live` reports are asked at every reading; modules are counted at `refresh` alone."""

    def __init__(self) -> None:
        self._live: list[Callable[[], Mapping[str, tuple[int, int]]]] = []
        self._modules: dict[str, Any] = {}
        self._counted: Holdings = {}

    def add(self, report: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Ask `report` at every reading from now on."""
        self._live.append(report)

    def drop(self, report: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Ask it no longer: what it spoke of is gone."""
        self._live = [kept for kept in self._live if kept != report]

    def add_module(self, name: str, module: Any, device: Any) -> None:
        """Count a module's tensors; those that lie elsewhere than on `device` are the host's."""
        self._modules[name] = (module, device)
        self._counted[name] = module_bytes(module, device)

    def refresh(self) -> None:
        """Count the modules anew: they may have been moved or given up."""
        self._counted = {name: module_bytes(*pair) for name, pair in self._modules.items()}

    def read(self) -> Holdings:
        """What everybody holds now, in the order of `COMPONENTS`; components of nothing are left out."""
        found: Holdings = dict(self._counted)
        for report in self._live:
            for name, (device, host) in report().items():
                had = found.get(name, (0, 0))
                found[name] = (had[0] + device, had[1] + host)
        return {name: found[name] for name in ordered(found) if any(found[name])}


def ordered(names: Iterable[str]) -> list[str]:
    """Known components first, in their order."""
    place = {name: number for number, name in enumerate(COMPONENTS)}
    return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def module_bytes(module: Any, device: Any) -> tuple[int, int]:
    """Bytes of a module's parameters and buffers, shared ones once: on the device, and elsewhere."""
    here, elsewhere, seen = 0, 0, set()
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) in seen or tensor.is_meta:
            continue
        seen.add(id(tensor))
        if tensor.device.type == device.type:
            here += tensor.nbytes
        else:
            elsewhere += tensor.nbytes
    return here, elsewhere


def in_words(nbytes: float) -> str:
    """A size as people read it: 21.3 GB, 38.6 MB, 512 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
