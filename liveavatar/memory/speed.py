"""Seconds per block of video (12 frames), and what binds them: a model of work and links, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from liveavatar.memory.given import GB, Ask, Topology
from liveavatar.memory.plan import Plan, suited


@dataclass(frozen=True)
class Pace:
    """Seconds per block on the slowest rank, by what they are spent on; the largest binds, the rest hides behind it.

    Decoding shares the device with denoising where a rank does both, and adds to its work; so does the exchange between
    ranks that share a cell, for which attention waits.
    """

    compute_s: float
    host_s: float
    peers_s: float
    disk_s: float
    decode_s: float
    exchange_s: float = 0.0

    @property
    def seconds(self) -> float:
        working = self.compute_s + self.decode_s + self.exchange_s
        return max(working, self.host_s, self.peers_s, self.disk_s)

    @property
    def bound_by(self) -> str:
        working = self.compute_s + self.decode_s + self.exchange_s
        waits = self.exchange_s > self.compute_s + self.decode_s
        named = {
            "compute": 0.0 if waits else working,
            "host link": self.host_s,
            "peer link": max(self.peers_s, working if waits else 0.0),
            "disk": self.disk_s,
        }
        return max(named, key=lambda name: named[name])


def cell_flops(ask: Ask) -> float:
    """Multiplications and additions of one cell, matrix products and attention."""
    return linear_flops(ask) + attention_flops(ask)


def linear_flops(ask: Ask) -> float:
    """Matrix products: each token through each matrix, and the words through their keys and values unless hoisted."""
    dit, tokens = ask.dit, ask.picture.tokens
    square = dit.dim * dit.dim
    hot = dit.layers * (6 * square + 2 * dit.dim * dit.ffn) + len(dit.inject) * 2 * square
    words = 0 if ask.hoisted else 2 * dit.text_len * dit.layers * 2 * square
    return 2.0 * tokens * hot + words


def attention_flops(ask: Ask) -> float:
    """Attention to ring and sink, and to the words."""
    return 4.0 * ask.picture.tokens * (ask.picture.context + ask.dit.text_len) * ask.dit.dim * ask.dit.layers


def pace(ask: Ask, plan: Plan, topology: Topology) -> Pace:
    """What a block takes in the steady state, all ranks busy."""
    setup, ask = plan.setup, suited(ask, plan.setup)
    rate = topology.fp32_tflops if ask.precision == "float32" else topology.bf16_tflops
    rate *= 1e12 * topology.efficiency
    cell = cell_flops(ask) / rate
    costs, total = ask.dit.layer_costs(), ask.dit.params
    stages = setup.stages or ((range(ask.steps), range(ask.dit.layers)),)
    work = [len(steps) * cell * sum(costs[i] for i in layers) / total / setup.ulysses for steps, layers in stages]
    busiest = max(
        range(len(work)), key=lambda rank: work[rank] + topology.decode_s * _scale(ask) * (rank == setup.shows)
    )
    decode = topology.decode_s * _scale(ask) if busiest == setup.shows else 0.0
    passes = max(len(steps) for steps, _ in stages) / setup.cells
    host, peers, disk = 0.0, 0.0, 0.0
    away = plan.streamed * (setup.ranks - 1) / setup.ranks
    if setup.source == "shards":
        peers = away * passes * setup.cells / GB / topology.received_gbs
        host = plan.streamed / setup.ranks * passes / GB / topology.host_gbs if setup.offload else 0.0
    elif setup.source == "peers":
        peers = away * passes / GB / topology.received_gbs
    elif setup.source == "host":
        host = plan.streamed * passes / GB / topology.host_gbs
    elif setup.source == "disk":
        disk = plan.streamed * passes / GB / topology.disk_gbs
    if setup.caches == "host":
        old = ask.picture.ring_tokens - ask.picture.tokens
        layers = max(len(layers) for _, layers in stages)
        host += max(len(steps) for steps, _ in stages) * layers * ask.row(old) / setup.ulysses / GB / topology.host_gbs
    if setup.stages:
        peers += passes * ask.picture.tokens * ask.dit.dim * ask.item / GB / topology.received_gbs
    return Pace(work[busiest], host, peers, disk, decode, exchanged(ask, setup.ulysses) / GB / topology.received_gbs)


def exchanged(ask: Ask, share: int) -> float:
    """Bytes that a rank receives in a block's cells from those it shares them with: q, k, v, and what was attended."""
    own = ask.picture.tokens / share * ask.dit.dim * ask.item
    return ask.steps * ask.dit.layers * 4 * own * (share - 1) / share


def _scale(ask: Ask) -> float:
    """Decoding against that of 704*384, for which topologies give their seconds."""
    return ask.vae_scale**2 * ask.picture.pixels / (704 * 384)
