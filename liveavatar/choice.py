"""What a configuration chose, constructed and checked before a process is started or a weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig

from liveavatar.checkpoint.read import TensorSource
from liveavatar.config import make
from liveavatar.intake import SpeechSettings
from liveavatar.memory.profiler import ProfileSettings
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.ops import attention, compiled
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.settings import hoists, in_flight, make_fabric, ranks_compute, settled, storage_type, thread_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What a configuration chose, checked and constructed; no process is started and no weight is read yet.

    `cfg` is the configuration with everything decided that was left to the planner, and `reason` says why.
    """

    cfg: DictConfig
    reason: str
    strategy: Any
    sampler: EulerSampler
    rollout: RolloutSettings
    speech: SpeechSettings
    source: TensorSource
    threads: int
    dtypes: tuple[torch.dtype, torch.dtype]
    cells: int
    fabric: Fabric
    ranks: str
    hoist: int
    profile: ProfileSettings
    compile: str | None

    def launch(self) -> None:
        """Start or meet the other processes."""
        for library in ("lightning.fabric", "lightning.pytorch"):  # their banner says nothing that our log does not
            logging.getLogger(library).setLevel(logging.WARNING)
        with self.strategy.watched():
            self.fabric.launch()
        torch.set_num_threads(self.threads)


def choose(cfg: DictConfig) -> Chosen:
    """Construct all but the models. Raises ValueError, naming the key, for what cannot work together."""
    cfg, reason = settled(cfg)
    if cfg.attention.backend not in attention.BACKENDS:
        raise ValueError(
            f"attention.backend={cfg.attention.backend!r} is unknown; choose one of {', '.join(attention.BACKENDS)}"
        )
    backend = check_compile(cfg.get("compile"))
    strategy, sampler = make(cfg.strategy, "strategy"), make(cfg.sampler, "sampler")
    rollout, speech = make(cfg.rollout, "rollout"), make(cfg.speech, "speech")
    source: TensorSource = make(cfg.weights, "weights")
    threads = thread_count(cfg)
    dtypes = storage_type(cfg, "dit"), storage_type(cfg, "encoders")
    cells = in_flight(cfg, strategy, sampler.steps, rollout.mode)
    fabric = make_fabric(cfg, strategy)
    ranks = ranks_compute(cfg, strategy)
    if rollout.mode == "clipwise" and fabric.world_size > 1 and ranks == "same":
        raise ValueError(
            f"rollout=clipwise runs on one device, and fabric.devices={cfg.fabric.devices}: "
            "use rollout=streaming, or fabric.devices=1"
        )
    hoist = hoists(cfg, strategy, ranks)
    profile: ProfileSettings = make(cfg.profile, "profile")
    make(cfg.logger, "logger")  # what it lacks is said before anything is loaded
    return Chosen(
        cfg, reason, strategy, sampler, rollout, speech, source, threads, dtypes, cells, fabric, ranks, hoist, profile,
        backend,
    )  # fmt: skip


def choose_attention(dit: AvatarDiT, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Let the DiT compute attention as `attention.backend` says; what cannot work here is said, and left to PyTorch.

    Returns the name of what computes; behind `auto`, the kernel that PyTorch takes. Raises KeyError for an unknown one.
    """
    try:
        attention.use(dit, attention.attention(name, device, dtype, dit.head_dim))
    except LookupError as missing:
        log.warning("attention.backend=%s: %s. PyTorch chooses instead.", name, missing.args[0])
        name = "auto"
    if name == "auto":
        kernel = attention.taken(device, dtype, dit.head_dim)
        log.info("attention: PyTorch chooses, and takes %s", kernel)
        return f"auto ({kernel})"
    log.info("attention: %s", name)
    return name


def check_compile(asked: object) -> str | None:
    """The backend of torch.compile that `compile` names; None without one. Raises ValueError for an unknown one."""
    if asked in (None, False):
        return None
    name = "inductor" if asked is True else str(asked)
    if name not in compiled.BACKENDS:
        raise ValueError(f"compile={asked!r} is unknown; write true or false, or one of {', '.join(compiled.BACKENDS)}")
    return name


def choose_compile(dit: AvatarDiT, backend: str | None, device: torch.device) -> str:
    """Let the DiT's units compute compiled, where that is asked for and possible: what is missing is said.

    Returns the name of what compiles, or `none`.
    """
    if backend is None:
        return "none"
    try:
        count = compiled.compile_stretches(dit, backend, device)
    except LookupError as missing:
        log.warning("compile=%s: %s. Units compute as without it.", backend, missing.args[0])
        return "none"
    log.info("compile: %s; %d functions serve all units, compiled at their first use", backend, count)
    return backend
