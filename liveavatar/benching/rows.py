"""The rows of each suite: a competitor on a workload, or a measurement beside them. Loads no torch.

`weights` is the work without caches, for peers that know none: the like-for-like rows. `full` has caches that are full
from the first cell on; where a peer has nothing for them, they are moved as the published program moves them
(`+reference`), or our ring is lent to it (`+ring`).
It is long because both suites stand here, so that one can be read beside the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

SUITES = ("cpu", "gpu")
GPU_CAP_GIB = 24.0
PEERS = ("accelerate", "diffusers_leaf", "diffusers_block", "double_buffer", "fsdp2_units", "fsdp2_offload")
RECORDED = ("diffusers_leaf_record", "diffusers_block_record")
GROUPED: tuple[str, ...] = ("diffusers_leaf", "diffusers_block", *RECORDED)
NEEDS: dict[str, tuple[str, ...]] = dict.fromkeys(("accelerate", "accelerate_hook"), ("accelerate",))
NEEDS |= {name: ("accelerate", "diffusers") for name in GROUPED}  # noqa: C420 - of another type than fromkeys gives
HEADLINE = ("resident", "resident_plain", "stream_k1", "stream_k4", "stream_k4_auto", *PEERS)
ABLATIONS = ("stream_k4_prefix_auto", "stream_k4_pageable")
"""One choice of ours each, made otherwise: what that choice is worth is told by a card alone."""

CLAIMED = {"stream_k4": None, "accelerate": 2, "diffusers_block": 2}
"""Ways whose time on a CPU is told in words, with their repeats (None: as often as the reference); the others once."""

FOREIGN = (*PEERS, *RECORDED, "accelerate_hook", "fsdp2_reference")
"""Ways that are not ours: FSDP2 is PyTorch's, the double buffer is LightX2V's, written anew."""


@dataclass(frozen=True)
class Row:
    """One row: what its process is told (`job`), and what it is set beside (`against`, the name of a row).

    repeats: at most so many; 1 where only counts are read. needs: packages. cuda: it makes no sense without a GPU.
    timed: whether its seconds say anything.
    """

    name: str
    group: str
    job: dict[str, Any]
    against: str | None = None
    repeats: int | None = None
    needs: tuple[str, ...] = ()
    cuda: bool = False
    timed: bool = True
    timeout_s: float = 300.0
    about: str = ""

    def lacks(self, device: str) -> str:
        """Why this row cannot run here; nothing if it can."""
        if self.cuda and device != "cuda":
            return "needs a CUDA device"
        missing = [package for package in self.needs if find_spec(package) is None]
        return f"needs {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Ground:
    """What the rows of a suite have in common."""

    device: str
    shape: str
    dtype: str
    sizes: tuple[str, ...]
    warm: int = 1
    blocks: int = 2
    limit_s: float | None = None


def stream(
    ground: Ground,
    workload: str,
    way: str,
    size: str,
    cap: float | None = None,
    against: str | None = None,
    **more: Any,
) -> Row:
    """A row on the DiT."""
    repeats, timed, about = more.pop("repeats", None), more.pop("timed", True), more.pop("about", "")
    label, cuda = more.pop("label", way), more.pop("cuda", way in RECORDED)
    suffix = f"@{size.replace('*', 'x')}" if len(ground.sizes) > 1 else ""
    suffix += f",{cap:g}g" if cap is not None else ""
    job = {
        "kind": "stream",
        "way": way,
        "workload": workload,
        "shape": ground.shape,
        "size": size,
        "device": ground.device,
        "dtype": ground.dtype,
        "ranks": 1,
        "kv": "none" if workload == "weights" else "device",
        "resident": 0,
        "stage": 0,
        "stages": 4,
        "cap_gib": cap,
        "warm": ground.warm,
        "blocks": ground.blocks,
        "limit_s": ground.limit_s,
        "trace": True,
    }
    unknown = set(more) - set(job)
    assert not unknown, unknown
    needs = NEEDS.get(way, ())
    return Row(f"{workload}.{label}{suffix}", workload, job | more, against, repeats, needs, cuda, timed, 600.0, about)


def plain(ground: Ground, kind: str, label: str, group: str = "around", **more: Any) -> Row:
    """A row beside the DiT."""
    repeats, needs, cuda = more.pop("repeats", 1), more.pop("needs", ()), more.pop("cuda", False)
    about, timeout = more.pop("about", ""), more.pop("timeout_s", 300.0)
    base = {"kind": kind, "device": ground.device, "dtype": ground.dtype, "shape": ground.shape, "cap_gib": None}
    return Row(label, group, base | more, None, repeats, needs, cuda, True, timeout, about)


def cpu_rows(device: str = "cpu", shape: str = "small", short: bool = False) -> list[Row]:
    """What every machine can measure: counts exactly, seconds as ratios within one run."""
    ground = Ground(device, "tiny" if short else shape, "float32", ("64*64",), warm=1, blocks=1 if short else 2)
    found = [*_cpu_weights(ground, short), *_cpu_full(ground, short)]
    mid = {"shape": "tiny" if short else "mid", "size": "64*64", "layers": None if short else 2}
    for dtype, times in (("float32", 3),) if short else (("float32", 2), ("bfloat16", 1)):
        about = "a cell against the matrix products and attention that it makes itself, run bare, in turn"
        found.append(plain(ground, "cell", f"cell.{dtype}", "cell", dtype=dtype, about=about, times=times, **mid))
    about = "where the time of a cell goes"
    found.append(plain(ground, "profile", "profile.float32", "profile", about=about, **mid))
    around = _around(ground, short)
    return [*found, *around]


def _cpu_weights(ground: Ground, short: bool) -> Iterator[Row]:
    """Peers and ours like for like; these are timed, so more blocks are measured."""
    size, truth = ground.sizes[0], "weights.resident"
    ground = ground if short else replace(ground, blocks=6)
    yield stream(ground, "weights", "resident", size)
    ways = ["stream_k4", "accelerate"] if short else ["resident_plain", "stream_k1", "stream_k2", "stream_k4", *PEERS]
    for way in ways:
        yield stream(ground, "weights", way, size, against=truth, repeats=CLAIMED.get(way, 1))
    if not short:
        yield stream(ground, "weights", "accelerate_hook", size, against=truth, repeats=1)


def _cpu_full(ground: Ground, short: bool) -> Iterator[Row]:
    """Counts of our strategies and of FSDP2, on one process and on two; once, for they do not vary."""
    size, truth = ground.sizes[0], "full.resident"
    once: dict[str, Any] = {"repeats": 1, "timed": False}
    yield stream(ground, "full", "resident", size, **once)
    yield stream(ground, "full", "stream_k4", size, against=truth, **once)
    if short:
        return
    once["against"] = truth
    for way in ("stream_k1", "stream_k2", "stream_k4_r3", "stream_k4_plain", "stream_k4_fp8"):
        yield stream(ground, "full", way, size, **once)
    yield stream(ground, "full", "stream_k4", size, label="stream_k4_resident6", resident=6, **once)
    yield stream(ground, "full", "stream_k4", size, label="stream_k4+ring", kv="host", **once)
    for kv, label in (("reference", "+reference"), ("host", "+ring")):
        yield stream(ground, "full", "accelerate", size, label=f"accelerate{label}", kv=kv, **once)
    for way in ("stream_peers", "fsdp2_reference", "fsdp2_units", "fsdp2_offload"):
        blocks: dict[str, Any] = {"blocks": 1, "warm": 1} if way.startswith("fsdp2") else {}
        yield stream(ground, "full", way, size, label=f"{way}_x2", ranks=2, **once, **blocks)
    for stage in range(4):
        about = f"stage {stage} of 4 alone, with its activation hop"
        more = {"stage": stage, "about": about, "label": f"diagonal_stage{stage}"}
        yield stream(ground, "full", "diagonal_stage", size, repeats=1, timed=False, **more)


def _around(ground: Ground, short: bool) -> list[Row]:
    """Start, plan, machine; and the whole embedded model and its decoder, where there is time."""
    times = 2
    found = [plain(ground, "start", "start", times=times, about="a process until it is useful, in ratios to `python`")]
    product = {"link_bytes": 2**24 if short else 2**27, "product": [512, 512, 2048], "products": ["float32"]}
    about = "what this machine gives: copies, matrix products"
    found.append(plain(ground, "machine", "machine", "machine", about=about, **product))
    if short:
        return found
    about = "the plan of the 14B model on 4 × 24 GB"
    found.append(plain(ground, "plan", "plan", times=times, about=about))
    about = "12 frames of a stream through the embedded decoder, 128×128"
    needs = ("diffusers",)
    vae = {"shape": "tiny", "size": "128*128", "times": 3, "needs": needs, "about": about}
    found.append(plain(ground, "vae", "vae", "vae", **vae))
    whole = {"seconds": 2, "words": [], "needs": ("diffusers", "transformers", "av")}
    about = "the embedded model from sound to video, as a user runs it"
    found.append(plain(ground, "embedded", "embedded", about=about, **whole))
    return found


def gpu_rows(device: str = "cuda", shape: str = "14b", dtype: str = "bfloat16", short: bool = False) -> list[Row]:
    """One card, exact shapes, caches full: uncapped and under a true cap of 24 GiB. On a CPU, the same rows at a small
    shape, to try them."""
    from liveavatar.benching.sizes import SIZES

    sizes = SIZES[shape][:1] if short else SIZES[shape]
    warm, blocks = (1, 1) if short or device != "cuda" else (2, 8)
    ground = Ground(device, shape, dtype, sizes, warm, blocks, 60.0 if device == "cuda" else None)
    found: list[Row] = []
    big = device == "cuda"
    product = [3168, 5120, 13824] if big else [64, 64, 64]
    machine = {"link_bytes": 2**30 if big else 2**20, "product": product, "products": [dtype]}
    found.append(plain(ground, "machine", "machine", "machine", about="copies and matrix products", **machine))
    for size in sizes:
        found += [*_uncapped(ground, size), *_capped(ground, size, GPU_CAP_GIB)]
        suffix = f"@{size.replace('*', 'x')}" if len(sizes) > 1 else ""
        about = "where the time of a resident cell goes"
        found.append(plain(ground, "profile", f"profile{suffix}", "profile", size=size, about=about))
        more = {"size": size, "times": 5, "repeats": None, "layers": 8 if shape == "14b" else None}
        about = "a cell against its own matrix products and attention, run bare"
        found.append(plain(ground, "cell", f"cell{suffix}", "cell", about=about, **more))
        decoder = {"size": size, "times": 5, "needs": ("diffusers",), "about": "12 frames through the decoder"}
        found.append(plain(ground, "vae", f"vae{suffix}", "vae", **decoder))
    return [row if headline(row, sizes[0]) else replace(row, repeats=1) for row in found]


def headline(row: Row, size: str) -> bool:
    """Whether a row of the card is repeated: those that claims are made of, at the main picture."""
    if row.job["kind"] != "stream" or row.job["size"] != size or row.repeats is not None:
        return row.repeats != 1 and row.job.get("size", size) == size
    return row.job["way"] in HEADLINE


def truth(workload: str, ground: Ground, size: str) -> str:
    """The row that others on the same work are set beside: resident, uncapped."""
    return f"{workload}.resident" + (f"@{size.replace('*', 'x')}" if len(ground.sizes) > 1 else "")


def _uncapped(ground: Ground, size: str) -> Iterator[Row]:
    for workload in ("full", "weights"):
        beside = truth(workload, ground, size)
        yield stream(ground, workload, "resident", size)
        for way in ("resident_plain", "stream_k1", "stream_k4", "stream_k4_plain"):
            yield stream(ground, workload, way, size, against=beside)
    beside = truth("full", ground, size)
    for way in ("resident_fp8", "fsdp2_reference", "fsdp2_units"):
        yield stream(ground, "full", way, size, against=beside)
    for way in (*PEERS, *RECORDED):
        yield stream(ground, "weights", way, size, against=truth("weights", ground, size))
    for stage in range(4):
        more = {"stage": stage, "label": f"diagonal_stage{stage}", "about": f"stage {stage} of 4 alone, with its hop"}
        yield stream(ground, "full", "diagonal_stage", size, **more)


def _capped(ground: Ground, size: str, cap: float) -> Iterator[Row]:
    beside = truth("full", ground, size)
    about = "expected not to fit: its outcome is the result"
    for way in ("resident", "fsdp2_units", "accelerate_hook"):
        yield stream(ground, "full", way, size, cap, beside, about=about, repeats=1)
    ours = ("stream_k1", "stream_k2", "stream_k4", "stream_k4_auto", "stream_k4_plain", "stream_k4_r3", "stream_k4_fp8")
    for way in (*ours, *ABLATIONS):
        yield stream(ground, "full", way, size, cap, beside, label=f"{way}+ring", kv="host")
    yield stream(ground, "full", "stream_k4", size, cap, beside, about=f"ours, K = 4, caches resident: {about}")
    for way in (*PEERS, *RECORDED):
        if way == "fsdp2_units":
            continue
        for kv, label in (("reference", "+reference"), ("host", "+ring")):
            yield stream(ground, "full", way, size, cap, beside, label=f"{way}{label}", kv=kv)
    beside = truth("weights", ground, size)
    for way in ("stream_k1", "stream_k2", "stream_k4", "stream_k4_auto", *ABLATIONS, *PEERS, *RECORDED):
        yield stream(ground, "weights", way, size, cap, beside)
    yield stream(ground, "weights", "accelerate_hook", size, cap, beside, about=about, repeats=1)


def chosen(rows: list[Row], only: list[str] | None) -> list[Row]:
    """The rows of these names or patterns (`weights.*`). Raises ValueError, naming the key, for one without a row."""
    if not only:
        return rows
    found = [row for row in rows if any(fnmatchcase(row.name, word) for word in only)]
    for word in only:
        if not any(fnmatchcase(row.name, word) for row in rows):
            raise ValueError(
                f"only={word} names no row of this suite. There are: {', '.join(row.name for row in rows)}; "
                "patterns work too, for example only=[weights.*]"
            )
    return found
