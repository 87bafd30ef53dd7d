"""What the planner says of a row, before it is measured. Loads no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from liveavatar.config import compose, make
from liveavatar.memory.given import Ask, Setup, Topology
from liveavatar.memory.plan import draw_up, suited
from liveavatar.memory.sizes import DitSizes, Picture
from liveavatar.memory.speed import Pace, cell_flops, linear_flops, pace
from liveavatar.strategies.auto import ask_of, best, most_resident, options

AWAY = ("speech", "vae", "text", "encoding", "decoder state", "decoding")
CACHES = ("caches", "sink", "scratch")
MARGIN_GB = 1.2
"""What context and libraries take beside tensors: a guess of the planner, until a card has said."""


def ask_for(keywords: dict[str, Any], size: str, dtype: str, hoisted: bool, weights: str | None = None) -> Ask:
    """The DiT alone: rows of a bench have no encoders and decode nothing."""
    height, width = (int(side) for side in size.split("*"))
    return Ask(
        "bench",
        DitSizes.of(keywords),
        0,
        0,
        0,
        0.0,
        Picture(height, width),
        precision=dtype,
        weights=weights or dtype,
        cache=dtype,
        encoders=dtype,
        hoisted=hoisted,
        refresh=10**6,
    )


def card(cap_gib: float | None, machine: dict[str, Any] | None = None) -> Topology:
    """The card that a row runs on, with what was measured of it where it was; else the planner's figures of an H200."""
    told = machine or {}
    whole = told.get("card_bytes", 139e9) / 1e9
    return Topology(
        "card",
        device_gb=whole if cap_gib is None else cap_gib * 2**30 / 1e9,
        margin_gb=told.get("context_bytes", MARGIN_GB * 1e9) / 1e9,
        host_gb=1000,
        host_gbs=told.get("h2d_gbs", 54),
        bf16_tflops=told.get("bfloat16_tflops", 790),
        efficiency=1.0 if "bfloat16_tflops" in told else 0.7,
        decode_s=0.0,
    )


def setup_for(plan: dict[str, Any], kv: str, ask: Ask, topology: Topology, auto: bool) -> Setup:
    """The planner's setup of a way. With `auto`, as many blocks rest on the device as there is room for."""
    caches = "device" if kv == "device" else "host"  # without caches, hardly anything of them is on the device
    strategy = {"device": "single_device", "shards": "fsdp_full"}.get(plan["source"], "fsdp_stream")
    setup = Setup(strategy, caches=caches, **plan)
    setup = most_resident(ask, setup, topology) if auto else setup
    return replace(setup, caches="device") if kv == "none" else setup  # nothing of caches is on the way


def predict(
    keywords: dict[str, Any], job: dict[str, Any], plan: dict[str, Any], machine: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Seconds a cell, bytes of tensors at the peak, and resident blocks of a row, as planned."""
    fp8 = job["way"].endswith("fp8")
    ask = ask_for(keywords, job["size"], job["dtype"], "plain" not in job["way"], "fp8" if fp8 else None)
    topology = card(job["cap_gib"], machine)
    setup = setup_for(plan, job["kv"], ask, topology, job["way"].endswith("_auto"))
    drawn = draw_up(ask, setup)
    nothing = (*AWAY, *CACHES) if job["kv"] == "none" else AWAY
    found = {"predicted_peak_bytes": drawn.ranks[0].playing(nothing), "resident": setup.resident}
    if job["device"] == "cuda":
        paced = pace(ask, drawn, topology)
        if job["kv"] == "none":
            paced = without_caches(suited(ask, setup), topology, paced)
        found |= {"predicted_s_per_cell": paced.seconds / ask.steps, "predicted_bound": paced.bound_by}
    return found


def without_caches(ask: Ask, topology: Topology, paced: Pace) -> Pace:
    """The pace where a cell attends to its own tokens and the words alone."""
    own = 4.0 * ask.picture.tokens * (ask.picture.tokens + ask.dit.text_len) * ask.dit.dim * ask.dit.layers
    rate = topology.bf16_tflops * 1e12 * topology.efficiency
    return replace(paced, compute_s=ask.steps * (linear_flops(ask) + own) / rate)


def ways_weighed() -> tuple[int, int]:
    """How many strategies the planner weighs for the 14B model on 4 × 24 GB, and how many of them fit."""
    cfg = compose("plan", ["model=s2v_14b", "topology=4x24gb", "request.size=704*384"])
    found = options(ask_of(cfg), make(cfg.topology, "topology"))
    return len(found), sum(best(ways).fits for ways in found.values())


def floor_s(keywords: dict[str, Any], size: str, dtype: str, tflops: float) -> float:
    """Seconds of a cell's multiplications at the measured rate of matrix products."""
    return cell_flops(ask_for(keywords, size, dtype, True)) / (tflops * 1e12)


def resident_blocks(keywords: dict[str, Any], job: dict[str, Any], plan: dict[str, Any], context_bytes: float) -> int:
    """How many blocks rest on the device under the cap of a job, whose context takes so much."""
    return predict(keywords, job, plan, {"context_bytes": context_bytes} if context_bytes else None)["resident"]
