"""What each rank holds, phase by phase, in closed form: known before anything is loaded.

Loads no torch. Numbers are bytes unless a name ends in `_gb` (1e9 bytes) or `_s`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from liveavatar.memory.given import ITEMS, SMALL, Ask, Setup
from liveavatar.memory.moments import Moments, gathered
from liveavatar.memory.sizes import DECODE_BYTES, DECODE_STATE, ENCODE_BYTES, Picture

PHASES = ("load", "encode", "prefill", "steady", "decode")
Parts = dict[str, int]


@dataclass(frozen=True)
class RankPlan:
    """What one rank needs: parts in each phase (bytes), and where the largest moment of a pass lies."""

    phases: Mapping[str, Parts]
    unit: str

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    def playing(self, without: Sequence[str]) -> int:
        """The largest moment of denoising, some parts left out."""
        moments = (self.phases[phase].items() for phase in ("prefill", "steady"))
        return max(sum(size for name, size in parts if name not in without) for parts in moments)

    @cached_property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.peak_phase)


@dataclass(frozen=True)
class Plan:
    """A setup with what its ranks hold, and what this machine's host memory holds for them."""

    setup: Setup
    ranks: tuple[RankPlan, ...] = field(repr=False)
    host: int = 0
    streamed: int = 0  # bytes of weights that come to a rank in one pass

    @property
    def peak(self) -> int:
        return max(rank.peak for rank in self.ranks)

    def fullest(self, without: Sequence[str]) -> int:
        """The rank with the largest moment of denoising, some parts left out."""
        return max(range(len(self.ranks)), key=lambda rank: self.ranks[rank].playing(without))

    @property
    def worst(self) -> int:
        return max(range(len(self.ranks)), key=lambda rank: self.ranks[rank].peak)


def draw_up(ask: Ask, setup: Setup) -> Plan:
    """The plan of a setup."""
    ask = suited(ask, setup)
    ranks = range(setup.ranks) if setup.stages else range(1 if setup.ranks == 1 else 2)
    drawn = [_rank(ask, setup, rank) for rank in ranks]
    plans = tuple(drawn) if setup.stages else tuple(drawn[min(rank, 1)] for rank in range(setup.ranks))
    return Plan(setup, plans, _host(ask, setup), streamed(ask, setup))


def suited(ask: Ask, setup: Setup) -> Ask:
    """What is asked, as a setup can do it: conditioning is prepared ahead only where it hoists."""
    return replace(ask, hoisted=False) if ask.hoisted and not setup.hoists else ask


def settled(layers: int, resident: int) -> list[str]:
    """Blocks that stay on the device, evenly spread (as `strategies.stream`)."""
    return [f"blocks.{(2 * i + 1) * layers // (2 * resident)}" for i in range(resident)]


def streamed(ask: Ask, setup: Setup) -> int:
    """Bytes of weights that come to a rank in one pass."""
    if setup.source == "device":
        return 0
    layers = max((len(stage[1]) for stage in setup.stages), default=ask.dit.layers)
    kept = set(settled(ask.dit.layers, setup.resident))
    names = [name for name in ask.dit.stage(range(ask.dit.layers)) if name not in kept]
    share = layers / ask.dit.layers
    cold = sum(ask.dit.cold(name) for name in names) if ask.hoisted else 0
    return int(share * (sum(ask.unit(name) for name in names) - cold * ask.weight_bytes))


def _rank(ask: Ask, setup: Setup, rank: int) -> RankPlan:
    steps, layers = setup.stages[rank] if setup.stages else (range(ask.steps), range(ask.dit.layers))
    units = ask.dit.stage(layers)
    resting = _resting(ask, setup, units)
    caches = _caches(ask, setup, rank, steps, layers)
    moments = Moments(ask.dit, ask.picture, ask.item, share=setup.ulysses, hoisted=ask.hoisted, small=ask.small)
    prefill, unit = _pass(ask, setup, units, moments, prefill=True)
    steady, where = _pass(ask, setup, units, moments, prefill=False)
    kept, text, reading = _encoders(ask)
    shows = rank == setup.shows
    pixels = ask.picture.pixels * ITEMS[ask.encoders] * ask.vae_scale
    state = {"decoder state": int(DECODE_STATE * pixels)} if shows else {}
    decoding = {"decoding": int((DECODE_BYTES - DECODE_STATE) * pixels)} if shows else {}
    second = {"second sink": caches["sink"]} if rank in setup.second_sinks else {}
    carried = moments.light(setup.cells, False) if layers else 0
    phases = {
        "load": resting | kept,
        "encode": resting | kept | max(text | {"encoding": reading}, caches, key=lambda parts: sum(parts.values())),
        "prefill": resting | kept | caches | state | prefill,
        "steady": resting | kept | caches | state | second | steady,
        "decode": resting | kept | caches | state | second | decoding | {"activations": carried},
    }
    return RankPlan(phases, unit if sum(prefill.values()) > sum(steady.values()) else where)


def _resting(ask: Ask, setup: Setup, units: Sequence[str]) -> Parts:
    """Weights on this rank's device for good, and the ring."""
    whole = [ask.unit(name) for name in units]
    if setup.source == "device" or not units:
        return {"weights": sum(whole)}
    if setup.source == "shards":
        held = sum(ask.held(name) for name in units) / setup.ranks
        return {"weights": 0 if setup.offload else int(held)}
    kept = set(settled(ask.dit.layers, setup.resident))
    parts = setup.ranks if setup.source == "peers" else 1
    cold = {name: int(ask.dit.cold(name) * ask.weight_bytes) if ask.hoisted else 0 for name in units}
    moving = {name: cold[name] if name in kept else ask.unit(name, parts) for name in units}
    hot = {
        name: ask.dit.hot_slab(name, ask.wide, ask.small) if ask.hoisted else ask.unit(name, parts) for name in units
    }
    largest = max((hot[name] for name in units if name not in kept), default=0)
    shards = sum(moving.values()) // parts if setup.source == "peers" else 0
    resident = sum(hot[name] for name in units if name in kept)
    return {"weights": shards + resident, "ring": setup.slots * largest}


def _caches(ask: Ask, setup: Setup, rank: int, steps: range, layers: range) -> Parts:
    """Rings of the steps taken here, the sink, and the room in which attention finds its keys and values."""
    seen, share = ask.picture, setup.ulysses
    rings = len(steps) * len(layers) * ask.row(seen.ring_tokens) // share
    rooms = (2 if setup.caches == "host" else 1) if layers else 0
    found = {
        "caches": rings if setup.caches == "device" else 0,
        "sink": len(layers) * ask.row(seen.sink_tokens) // share,
        "scratch": rooms * 2 * seen.context * ask.dit.dim * ask.item // share,
    }
    if setup.caches == "host" and ask.cache in SMALL and layers:  # they arrive as they rest
        found["scratch"] += rooms * ask.row(seen.ring_tokens) // share
    if ask.hoisted:
        found["prepared"] = _prepared(ask, len(layers))
    if setup.stages and layers:
        inner = layers.start > 0, layers.stop < ask.dit.layers
        found["mail"] = sum(inner) * 2 * (seen.tokens + seen.sink_tokens) * ask.dit.dim * ask.item
    if share > 1:
        found["mail"] = _exchange(ask, share)
    return found


def _prepared(ask: Ask, layers: int) -> int:
    """Keys and values of the prompt, kept for these layers."""
    return layers * 2 * ask.dit.text_len * ask.dit.dim * ask.item if ask.hoisted else 0


def _exchange(ask: Ask, share: int) -> int:
    """Rooms for what leaves and what comes where ranks share cells: queries, keys and values, or a block of tokens."""
    tokens = ask.picture.tokens
    return 0 if share == 1 else 2 * max(3 * -(-tokens // share), tokens) * ask.dit.dim * ask.item


def _pass(ask: Ask, setup: Setup, units: Sequence[str], moments: Moments, prefill: bool) -> tuple[Parts, str]:
    """Activations and gathered weights at the largest moment of a pass."""
    if not units:
        return {"activations": 0}, ""
    if setup.source != "shards":
        heaviest = max(units, key=moments.inside)
        active = moments.light(setup.cells, prefill) + moments.inside(heaviest)
        ahead = moments.preparing() if prefill and "embed" in units else 0
        ahead -= _exchange(ask, setup.ulysses) + _prepared(
            ask, sum(name.startswith("blocks.") for name in units)
        )  # neither is there at that time
        return ({"activations": ahead}, "embed") if ahead > active else ({"activations": active}, heaviest)
    sizes = [(name, ask.held(name)) for name in units]
    wrapped = [pair for pair in sizes if setup.wrap == "units" or pair[0].startswith("blocks.")]
    root = sum(size for _, size in sizes) - sum(size for _, size in wrapped)
    light = moments.light(setup.cells, prefill)

    def times(name: str) -> int:
        return setup.cells + (prefill and (name == "embed" or name.startswith("blocks.")))

    most, where = gathered(wrapped, times, setup.prefetch, root, light, moments.inside)
    active = min(most, light + moments.inside(where)) if where != "root" else light
    return {"gathered": most - light, "activations": light} if active > most else {
        "gathered": most - active, "activations": active
    }, where  # fmt: skip


def _encoders(ask: Ask) -> tuple[Parts, Parts, int]:
    """Speech encoder and VAE, which stay; the text encoder, which may go; and the largest moment of encoding."""
    item = ITEMS[ask.encoders]
    kept = {"speech": ask.speech_params * item, "vae": ask.vae_params * item}
    text = {"text": ask.text_params * item}
    pictures = int(ENCODE_BYTES * item * ask.vae_scale * ask.picture.pixels)
    if ask.text == "resident":
        return kept | text, {}, pictures
    lent = text["text"]
    return (kept, text, 0) if lent >= pictures else (kept, {}, pictures)


def _host(ask: Ask, setup: Setup) -> int:
    """Bytes in this machine's memory while it runs: weights and caches that rest there."""
    names = list(ask.dit.units)
    kept = set(settled(ask.dit.layers, setup.resident))
    host = sum(ask.unit(name) for name in names if name not in kept) if setup.source == "host" else 0
    if setup.offload:
        host = sum(ask.unit(name) for name in names)
    if setup.caches == "host":
        copies = 1 if setup.stages else setup.ranks / setup.ulysses
        host += int(copies * ask.steps * ask.dit.layers * ask.row(ask.picture.ring_tokens))
    return host


def smaller(ask: Ask, multiple: int) -> list[Ask]:
    """The same with smaller pictures, largest first."""
    seen, found = ask.picture, []
    for tenths in range(9, 2, -1):
        sides = [max(64, int(side * tenths / 10) // multiple * multiple) for side in (seen.height, seen.width)]
        found.append(replace(ask, picture=Picture(sides[0], sides[1], seen.window)))
    return found
