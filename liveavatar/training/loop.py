"""The training loop: accumulation, clipping, EMA, logs, validation, checkpoints; what is learnt is a `Task`'s affair.

Everything random is a pure function of (seed, step, micro-batch, rank), so a run that was killed goes on from its last
checkpoint with the losses of an unbroken one.
It is long because a step, its log and its checkpoint have to agree on what counts as done.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from liveavatar.training.checkpoint import Checkpoints, State
from liveavatar.training.losses import one_cycle
from liveavatar.training.optimisers import NAMES, make_optimiser
from liveavatar.training.progress import Bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """How a stage is trained (the `train` node).

    steps: optimiser steps in all; null takes the stage's own count.
    accumulate: micro-batches whose gradients make one step.
    lr: peak learning rate; it rises over `warmup` steps and falls by half a cosine to `lr_floor` of the peak.
    optimiser: adamw, or muon for the matrices inside the blocks (stages that train whole blocks).
    betas, weight_decay, clip: AdamW's, and the largest norm of the gradient.
    ema: decay of the running average of the weights, which is what is validated and exported; 0 keeps none.
    autocast: null, or bf16 for products in bfloat16 (weights and their averages stay float32).
    products: null, or bf16: all tensors stay float32, but a processor that can multiply matrices in bfloat16 may; less
        is converted than with autocast, which pays where matrices are small.
    compile: let PyTorch fuse the stage's forward; pays after a minute.
    save_every, validate_every, log_every: steps; 0 never (the end is always saved and validated).
    save_minutes: save at the latest after so many minutes.
    stop_minutes: stop after so many minutes, saved, exported and ready to be resumed; null runs to the end.
    resume: go on from the checkpoint in output.dir, if there is one.
    init: a folder of exported weights to start from, null to start fresh.

    Raises ValueError, naming the key, for values that cannot work.
    """

    steps: int | None = None
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 50
    lr_floor: float = 0.02
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    autocast: str | None = None
    products: str | None = None
    compile: bool = False
    save_every: int = 0
    save_minutes: float = 5.0
    stop_minutes: float | None = None
    validate_every: int = 0
    log_every: int = 10
    resume: bool = True
    init: str | None = None

    def __post_init__(self) -> None:
        for key in ("accumulate", "lr", "clip", "log_every", "save_minutes"):
            if not getattr(self, key) > 0:
                raise ValueError(f"train.{key}={getattr(self, key)} must be above 0")
        for key in ("warmup", "lr_floor", "weight_decay", "ema", "save_every", "validate_every"):
            if getattr(self, key) < 0:
                raise ValueError(f"train.{key}={getattr(self, key)} cannot be negative")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"train.steps={self.steps} must be 1 or more, or null for the stage's own count")
        if self.ema >= 1:
            raise ValueError(f"train.ema={self.ema} would never take in a new weight; use a value below 1, as 0.999")
        if self.optimiser not in NAMES:
            raise ValueError(f"train.optimiser={self.optimiser!r} is unknown; write one of {', '.join(NAMES)}")
        for key in ("autocast", "products"):
            if getattr(self, key) not in (None, "bf16"):
                raise ValueError(f"train.{key}={getattr(self, key)!r} is unknown; write bf16 or null")


NO_RANK = 2**31
"""Stands where a rank's number stands in a key, and is no rank's."""


@dataclass(frozen=True)
class Draw:
    """Where in the training a batch belongs: all its random numbers come from here."""

    seed: int
    step: int
    micro: int = 0
    rank: int = 0

    @property
    def key(self) -> list[int]:
        return [self.seed, self.step, self.micro, self.rank]

    @property
    def common(self) -> list[int]:
        """A key that all ranks share: how often a batch passes a sharded model must be the same on each."""
        return [self.seed, self.step, self.micro, NO_RANK]

    def generator(self) -> torch.Generator:
        """Torch's numbers for this batch, on the host."""
        mixed = 0
        for part in self.key:
            mixed = (mixed * 1_000_003 + part + 1) % 2**63
        return torch.Generator().manual_seed(mixed)


class Task(Protocol):
    """What a stage asks the loop to do. `modules` hold what is trained, by the name of the component."""

    modules: Mapping[str, nn.Module]
    steps: int

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch, with its graph, and figures to log."""
        ...

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Figures on held-out data with the weights as they are; pictures go into `folder`."""
        ...

    def export(self, folder: Path) -> list[Path]:
        """Write the weights as they are for inference."""
        ...


class Journal:
    """log.jsonl: one line a logged step. A resumed run first forgets what came after its checkpoint."""

    def __init__(self, path: Path | None, step: int, tracker: Any = None) -> None:
        self.path, self.tracker = path, tracker
        if path is not None and path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) is not None]
            kept = [line for line in kept if (_step_of(line) or 0) <= step]
            path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(dict(values), step=step)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _step_of(line: str) -> int | None:
    """The step of a line of the journal; None for half a line that a kill left behind."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


@dataclass
class Trainer:
    """Runs a task to its end. `directory` None writes nothing.

    Of several ranks the one with number 0 writes, and all read the checkpoint that they resume from.
    `share` gives every rank the mean of all ranks' gradients, `agree` the wish of rank 0; `rank` tells the batches of
    ranks apart.

    Raises FloatingPointError when the loss is no number: with the step, the batch's seed and the last good checkpoint.
    """

    task: Task
    settings: LoopSettings
    seed: int
    config: Mapping[str, Any]
    directory: Path | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    tracker: Any = None
    share: Callable[[list[nn.Parameter]], None] = lambda parameters: None
    agree: Callable[[bool], bool] = lambda wish: wish

    def __post_init__(self) -> None:
        self.steps = self.settings.steps or self.task.steps
        self.parameters = [p for module in self.task.modules.values() for p in module.parameters() if p.requires_grad]
        given = self.settings
        self.optimiser = make_optimiser(self.task.modules, given.optimiser, given.lr, given.betas, given.weight_decay)
        self.average = [p.detach().clone() for p in self.parameters] if self.settings.ema else None
        self.checkpoints = Checkpoints(self.directory, self.config)
        self.shown = self.directory if self.rank == 0 else None
        self.step = 0

    def run(self) -> dict[str, float]:
        """Train from where the last checkpoint stands, validate, export; returns the last figures."""
        self._resume()
        self.journal = Journal(self.shown / "log.jsonl" if self.shown else None, self.step, self.tracker)
        began = saved = time.monotonic()
        figures: dict[str, float] = {}
        with Bar("training", self.steps, quiet=self.shown is None) as shown:
            shown(self.step, "")
            while self.step < self.steps:
                with _products(self.settings.products):
                    figures = self._advance()
                shown(self.step, f"loss {figures['loss']:.4f}")
                now = time.monotonic()
                if self._due(self.settings.validate_every):
                    self._validate()
                if self._due(self.settings.save_every) or now - saved > 60 * self.settings.save_minutes:
                    self._save()
                    saved = now
                if self.settings.stop_minutes and self.agree(now - began > 60 * self.settings.stop_minutes):
                    break
        self._save(final=True)
        self.export()
        if self.step < self.steps:
            log.info(f"stopped at step {self.step} of {self.steps} as asked; the same command goes on from here")
            return figures
        return figures | self._validate()

    def export(self) -> None:
        """The averaged weights as safetensors, in `export/` of the run directory."""
        if self.shown is not None:
            folder = self.shown / "export"
            folder.mkdir(exist_ok=True)
            with self.averaged():
                written = self.task.export(folder)
            log.info("exported %s", ", ".join(str(path) for path in written))

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their running averages."""
        return _Swapped(self.parameters, self.average) if self.average is not None else nullcontext()

    def _advance(self) -> dict[str, float]:
        """One optimiser step."""
        settings = self.settings
        rate = settings.lr * one_cycle(self.step, self.steps, settings.warmup, settings.lr_floor)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        began, figures, total = time.perf_counter(), {}, 0.0
        for micro in range(settings.accumulate):
            draw = Draw(self.seed, self.step, micro, self.rank)
            with self._autocast():
                loss, figures = self.task.loss(draw)
            value = float(loss.detach())
            self._check(value, "loss", draw)
            (loss / settings.accumulate).backward()
            total += value / settings.accumulate
        self.share(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, settings.clip))
        self._check(norm, "gradient", Draw(self.seed, self.step, 0, self.rank))
        self.optimiser.step()
        self._average()
        self.step += 1
        values = {"loss": total, **figures, "lr": rate, "grad_norm": norm, "seconds": time.perf_counter() - began}
        if self._due(settings.log_every) or self.step == self.steps:
            self.journal.write(self.step, values)
        return values

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _check(self, value: float, what: str, draw: Draw) -> None:
        if math.isfinite(value):
            return
        good = self.checkpoints.last
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
        raise FloatingPointError(
            f"the {what} is {value} at step {self.step} (batch seed {draw.key}): {kept}. Lower train.lr or train.clip "
            "and start from it with train.init, or look at that batch"
        )

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is None:
            return
        # early on the average would be mostly the start value: it may look back no further than the run is long
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _validate(self) -> dict[str, float]:
        folder = None
        if self.shown is not None:
            folder = self.shown / "validation"
            folder.mkdir(exist_ok=True)
        with self.averaged(), torch.no_grad():
            found = {f"validation/{key}": value for key, value in self.task.validate(self.step, folder).items()}
        self.journal.write(self.step, found)
        log.info("step %d: %s", self.step, ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
        return found

    def _save(self, final: bool = False) -> None:
        if self.shown is None:
            return
        state = State(self.step, self.task.modules, self.optimiser, self.average)
        self.checkpoints.save(state, final)

    def _resume(self) -> None:
        if self.settings.resume and self.checkpoints.last is not None:
            self.step = self.checkpoints.load(self.task.modules, self.optimiser, self.average, self.device)
            log.info("resumed at step %d from %s", self.step, self.checkpoints.last)


@contextmanager
def _products(kind: str | None) -> Iterator[None]:
    """Inside, float32 products may be made in bfloat16 where `kind` says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if kind == "bf16" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Swapped(AbstractContextManager[None]):
    """Weights and their averages change places, and back."""

    def __init__(self, parameters: list[nn.Parameter], average: list[Tensor]) -> None:
        self.pairs = list(zip(parameters, average, strict=True))

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self.pairs:
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *ended: object) -> None:
        self._swap()
