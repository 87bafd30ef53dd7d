"""What one rank of a group does with cells and pictures that it shares with others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.shards import Shards
from liveavatar.models.dit.context import Grid
from liveavatar.models.vae import WanCodec, stream_decode
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.strategies import exchange as exchange_module
from liveavatar.strategies.replicated import Replicated
from tests.goldens import build
from tests.goldens.case import Case
from tests.goldens.dit import run_of
from tests.scene import draw, sink_of
from tests.strategies.cases import BLOCKS
from tests.strategies.shares import GOLDENS, KINDS, SHARES, SPLITS, TOO_FEW, ShareCase, SplitCase
from tests.strategies.topologies import TIMEOUT_S
from tests.strategies.topology_worker import DATA, Late, _recorded, launched


class Ledger:
    """What each exchange was really given and when room was made for one, noted beside the strategy's own account."""

    def __init__(self) -> None:
        self.left = self.came = self.grown = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        move, make = dist.all_to_all_single, exchange_module.allocate

        def moved(output: Tensor, given: Tensor, received: list[int], sent: list[int], group: Any) -> Any:
            own = dist.get_rank(group)
            row = given.nbytes // max(1, len(given))
            self.left += (len(given) - sent[own]) * row
            self.came += output.nbytes - received[own] * row
            return move(output, given, received, sent, group=group)

        def made(*given: Any) -> Tensor:
            self.grown += 1
            return make(*given)

        dist.all_to_all_single, exchange_module.allocate = moved, made
        try:
            yield
        finally:
            dist.all_to_all_single, exchange_module.allocate = move, make


def run(case: ShareCase, folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy, model = launched(KINDS[case.strategy](timeout_s=TIMEOUT_S, **case.options), world), case.model()
    strategy.arrange(model, case.steps, "inline", case.degree)
    strategy.place(model, RandomWeights(0), getattr(torch, case.dtype))
    rollout = case.rollout(model)
    rollout.caches = strategy.make_caches(rollout.caches.shape, rollout.relay.steps, rollout.caches.sink.k[:0], 0)
    late = Late(model.residency, rank)
    if case.delays:
        model.residency = late
    before, ledger, found, grown = strategy.traffic.received, Ledger(), {}, []
    with ledger.open():
        for block in rollout.blocks(BLOCKS, sink_of(rollout)):
            found[f"block_{block.index}"] = block.latents[0].clone()
            grown.append(ledger.grown)
    assert strategy.traffic.received - before >= ledger.came
    rings = sum(ring.k.nbytes + ring.v.nbytes for ring in rollout.caches.rings)
    about = {
        "rings": rings,
        "caches": rollout.caches.nbytes,
        "tokens": [3 * rollout.grid.frame_tokens, Grid(case.side, case.side).sink_tokens],
        "left": ledger.left,
        "came": ledger.came,
        "grown": grown,
        "traffic": vars(strategy.traffic),
        "summary": strategy.summary(),
        "output": strategy.is_output_rank,
    }
    strategy.release()
    save_file(found, folder / f"{case.name}-{rank}.safetensors", {"about": json.dumps(about)})


@cache
def codec(dtype: str) -> WanCodec:
    torch.manual_seed(3)
    made = WanCodec(base_dim=8 if dtype == "float32" else 4).to(getattr(torch, dtype))
    for name, parameter in made.named_parameters():
        if name.endswith("gamma"):
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made


def latents_of(case: SplitCase) -> Tensor:
    return draw(7, 1, 16, sum(case.pieces), case.h, case.w).to(getattr(torch, case.dtype))


def split(case: SplitCase, folder: Path) -> None:
    """Decode a stream in pieces, each rank its lines; the first rank collects the frames."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy = launched(Replicated(timeout_s=TIMEOUT_S), world)
    strategy.arrange(ShareCase("", 1).model(), 1, "split")
    shared = strategy.split_codec(codec(case.dtype))
    assert shared is not None
    state, frames, shapes = None, [], []
    ledger, grown = Ledger(), []
    with torch.no_grad(), ledger.open():
        for piece in latents_of(case).split(case.pieces, dim=2):
            own, state = stream_decode(shared, piece, state)
            shapes.append(list(own.shape))
            whole = shared.collect(own)
            frames += [] if whole is None else [whole]
            grown.append(ledger.grown)
    about = {
        "shapes": shapes,
        "state": state.nbytes() if state else 0,
        "grown": grown,
        "moved": [strategy.traffic.received == ledger.came, strategy.traffic.sent == ledger.left],
        "summary": strategy.computing(),
        "refused": _refusal(strategy) if world > TOO_FEW.lines else "",
    }
    found = {"frames": torch.cat(frames, dim=2)} if frames else {}
    save_file(found, folder / f"{case.name}-{rank}.safetensors", {"about": json.dumps(about)})


def _refusal(strategy: Replicated) -> str:
    try:
        stream_decode(strategy.split_codec(codec("float32")), latents_of(TOO_FEW).float())
    except ValueError as error:
        return str(error)
    return ""


def golden(name: str, folder: Path) -> None:
    """All streams that a recorded case names, each cell shared by all ranks."""
    case, rank, world = Case(DATA / name), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    strategy = launched(Replicated(timeout_s=TIMEOUT_S), world)
    weights, sampler = case.folder / "weights.safetensors", EulerSampler(case.info["protocol"]["steps"])
    model = build.meta_dit(case.info["config"], weights)
    strategy.arrange(model, sampler.steps, "inline", world)
    strategy.place(model, Shards([weights], DIT), torch.float32)
    found = {}
    for run_name in sorted({run_of(stored) for stored in case.names()}):
        blocks = [block.latents[0].clone() for block in _recorded(case, run_name, model, sampler, strategy)]
        found[run_name] = torch.stack(blocks)
    save_file(found, folder / f"{name}-shared-{rank}.safetensors")


def main(world: int, folder: Path) -> None:
    """Everything of this world size."""
    for case in SHARES.get(world, ()):
        run(case, folder)
    for picture in SPLITS.get(world, ()):
        split(picture, folder)
    for name in GOLDENS if world == 2 else ():
        golden(name, folder)
