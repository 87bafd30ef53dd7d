"""What a plan starts from: the machine, what is to be run on it, and one way to run it. Loads no torch.

Numbers are bytes unless a name ends in `_gb` (1e9 bytes) or `_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from liveavatar.memory.sizes import DitSizes, Picture, speech_params, text_params, vae_params

GB = 1e9
ITEMS = {"float32": 4, "bfloat16": 2, "fp8": 1, "int8": 1}
SMALL = ("fp8", "int8")


@dataclass(frozen=True)
class Topology:
    """Machines as the planner sees them; every rate may be replaced by a measured one.

    device_gb is what a process may use of one device, context and libraries included; margin_gb what they take beside
    tensors. received_gbs is what a rank takes in during an all-gather. Raises ValueError for numbers without sense.
    """

    name: str
    accelerator: str = "cuda"
    devices: int = 1
    device_gb: float = 23.5
    margin_gb: float = 1.2
    host_gb: float = 128
    host_gbs: float = 25
    received_gbs: float = 12
    peer_access: bool = False
    disk_gbs: float = 3
    bf16_tflops: float = 165
    fp32_tflops: float = 80
    efficiency: float = 0.7
    decode_s: float = 0.6

    def __post_init__(self) -> None:
        if self.accelerator not in ("cuda", "cpu"):
            raise ValueError(f"topology.accelerator={self.accelerator!r} is unknown; write cuda or cpu")
        if isinstance(self.devices, bool) or not isinstance(self.devices, int) or not 1 <= self.devices <= 16:
            raise ValueError(f"topology.devices={self.devices} must be a whole number from 1 to 16")
        if not 0 <= self.margin_gb < self.device_gb:
            raise ValueError(
                f"topology.device_gb={self.device_gb} leaves nothing beside topology.margin_gb={self.margin_gb}: "
                "name the gigabytes that one device offers"
            )
        rates = ("host_gb", "host_gbs", "received_gbs", "disk_gbs", "bf16_tflops", "fp32_tflops")
        for key in (*rates, "efficiency"):
            if not getattr(self, key) > 0:
                raise ValueError(f"topology.{key}={getattr(self, key)} must be above 0")

    @property
    def room(self) -> int:
        """Bytes that tensors may take on one device."""
        return int((self.device_gb - self.margin_gb) * GB)


@dataclass(frozen=True)
class Ask:
    """What is to be run: sizes of the models, the picture, the steps, and the numbers' kinds.

    weights, cache: `float32`, `bfloat16`, `fp8` or `int8`.
    text: `freed`, brought in for the prompt and let go, or `resident`. hoisted: conditioning is prepared ahead.
    """

    model: str
    dit: DitSizes
    text_params: int
    speech_params: int
    vae_params: int
    vae_scale: float
    picture: Picture
    steps: int = 4
    precision: str = "bfloat16"
    weights: str = "bfloat16"
    cache: str = "bfloat16"
    encoders: str = "bfloat16"
    text: str = "freed"
    hoisted: bool = False
    refresh: int = 4
    speech_seconds: float = 60.0

    @classmethod
    def of(cls, model: Mapping[str, Any], seen: Picture, **more: Any) -> Ask:
        """From a `model` node of plain values."""
        return cls(
            model["name"],
            DitSizes.of(model["dit"]),
            text_params(model["text"]),
            speech_params(model["speech"]),
            vae_params(model["vae"]),
            model["vae"]["base_dim"] / 96,
            seen,
            **more,
        )

    @property
    def item(self) -> int:
        return ITEMS[self.precision]

    @property
    def small(self) -> bool:
        """Whether matrices take one byte a number, and all else what activations take."""
        return self.weights in SMALL

    @property
    def wide(self) -> int:
        """Bytes of a number that is not in one of those matrices."""
        return self.item if self.small else ITEMS[self.weights]

    @cached_property
    def weight_bytes(self) -> float:
        """Per parameter, on average; scales are in it."""
        units = self.dit.units.items()
        return sum(sum(self.dit.stored(name, n, self.wide, self.small)) for name, n in units) / self.dit.params

    def unit(self, name: str, parts: int = 1) -> int:
        """Bytes of a unit's slab."""
        return self.dit.slab(name, self.wide, parts, self.small)

    def held(self, name: str) -> int:
        """Bytes of a unit's parameters, not aligned."""
        return sum(self.dit.stored(name, self.dit.units[name], self.wide, self.small))

    def row(self, tokens: int) -> int:
        """Keys and values of one layer for so many tokens."""
        scales = 4 * self.dit.heads if self.cache in SMALL else 0
        return 2 * tokens * (self.dit.dim * ITEMS[self.cache] + scales)


@dataclass(frozen=True)
class Setup:
    """One way to run: a strategy with its settings. `stages` gives steps and layers per rank of a pipeline.

    source: where weights rest: `device`, `shards` (FSDP2), `peers`, `host` or `disk`. second_sinks: ranks that hold two
    sinks for a while. missing: why the runtime cannot do it yet.
    """

    strategy: str
    settings: tuple[str, ...] = ()
    ranks: int = 1
    source: str = "device"
    slots: int = 2
    cells: int = 1
    resident: int = 0
    caches: str = "device"
    wrap: str = "units"
    prefetch: int = 1
    offload: bool = False
    stages: tuple[tuple[range, range], ...] = ()
    shows: int = 0
    ulysses: int = 1
    second_sinks: frozenset[int] = frozenset()
    missing: str = ""

    @property
    def hoists(self) -> bool:
        """Whether conditioning can be prepared ahead: not where FSDP2 lends units, nor in lock-step."""
        return self.source != "shards" and not (self.stages and self.source == "peers")

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to type for it, beside model and request."""
        laid = () if self.strategy == "single_device" else (f"+strategy={self.strategy}",)
        count = () if self.ranks == 1 else (f"fabric.devices={self.ranks}",)
        return (*laid, *count, *self.settings)
