"""From a configuration to a run: the only place that instantiates anything from config."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.board import NoBoard
from liveavatar.checkpoint.adapters import Adapters
from liveavatar.checkpoint.adapters import attach as attach_files
from liveavatar.checkpoint.load import Lent, materialise
from liveavatar.checkpoint.quantised import check_kind, quantised
from liveavatar.checkpoint.read import TensorSource, expect
from liveavatar.choice import Chosen, choose, choose_attention, choose_compile
from liveavatar.config import conf_dir, first_rank, kept, literal, make
from liveavatar.intake import Parts, check_request
from liveavatar.memory.attend import WatchedSource
from liveavatar.memory.explain import explained, foresee
from liveavatar.memory.given import GB, SMALL, Setup
from liveavatar.memory.heap import keep_pages
from liveavatar.memory.plan import suited
from liveavatar.memory.profiler import MemoryProfiler, Peaks, ProfileSettings
from liveavatar.metrics.speed import SpeedMeter
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.run import Run, encoders
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession
from liveavatar.settings import make_request, storage_type
from liveavatar.strategies.auto import ask_of, best, options, setup_of
from liveavatar.strategies.auto import choose as prefer
from liveavatar.strategies.rehearsal import Stage, rehearse
from liveavatar.tracking import check_output_file, make_run_directory, stamp, start_log
from liveavatar.types import AvatarRequest

log = logging.getLogger(__name__)

AWAY = ("speech", "vae", "text", "decoder state", "second sink")
"""Parts of a plan that a rehearsal of the DiT does not play."""


@dataclass
class Loaded:
    """Models with their weights in place, ready for any number of requests, one after another.

    `loading` is what loading them took, by phase; `setup` is what the planner calls this division of the work.
    """

    session: AvatarSession
    strategy: Any
    profile: ProfileSettings
    rank: int
    loading: Mapping[str, Peaks]
    adapters: Adapters
    metrics: dict[str, Any] = field(default_factory=dict)
    setup: Setup | None = None
    grouped: bool = False
    """Whether its runs belong together: those of a list of requests."""

    def run(self, cfg: DictConfig, request: AvatarRequest, directory: Path | None) -> Run:
        """One request on these models; it shares nothing with other runs but them."""
        memory = MemoryProfiler(self.strategy.device, self.profile, rank=self.rank)
        memory.phases |= {name: replace(peaks) for name, peaks in self.loading.items()}
        attach(memory, self.strategy, self.session.parts, self.adapters)
        board = make(cfg.logger, "logger") if self.rank == 0 else NoBoard()
        return Run(
            cfg, request, self.session, self.strategy, directory, SpeedMeter(), memory, dict(self.metrics), self.setup,
            self.adapters, board, directory.parent.name if directory and self.grouped else None,
        )  # fmt: skip


def attach(memory: MemoryProfiler, strategy: Any, parts: Parts, adapters: Adapters) -> None:
    """Let what is in place report to a profiler."""
    memory.ledger.add(strategy.holdings)
    memory.ledger.add(lambda: {"adapters": (adapters.nbytes, 0)} if adapters.attached else {})
    for name, module in encoders(parts).items():
        memory.ledger.add_module(name, module, strategy.device)


def load(cfg: DictConfig, chosen: Chosen, directory: Path | None = None) -> Loaded:
    """Build the models and bring the weights to life, on processes that are running.

    Raises OutOfMemory, with the explanation as its message and in `directory`, where memory does not suffice.
    """
    began = time.perf_counter()
    strategy, sampler, source = chosen.strategy, chosen.sampler, chosen.source
    rank, world = chosen.fabric.global_rank, chosen.fabric.world_size
    if strategy.device.type == "cpu":
        keep_pages()
    memory = MemoryProfiler(strategy.device, chosen.profile, rank=rank)
    with explained(memory, cfg, directory), strategy.watched():
        foresee(memory, cfg, world)
        parts = build_parts(cfg, WatchedSource(source, memory), strategy, sampler, *chosen.dtypes, chosen.hoist)
        attention = choose_attention(parts.dit, cfg.attention.backend, strategy.device, chosen.dtypes[0])
        compiled = choose_compile(parts.dit, chosen.compile, strategy.device)
        if chosen.ranks == "requests":
            strategy.take_requests(parts.dit)
        adapters = Adapters(parts.dit, strategy.device, chosen.dtypes[0])
        attach_files(adapters, cfg.adapters)
        attach(memory, strategy, parts, adapters)
        memory.end()
    memory.close()
    if chosen.reason:
        log.info(chosen.reason)
    log.info(strategy.summary())
    if "random" in source.origin:
        log.warning(
            "weights: %s. The picture will be noise: this shows that the machinery runs, not an avatar.", source.origin
        )
    metrics = stamp(str(strategy.device), chosen.threads, world)
    metrics |= {
        "run/finished": False,
        "weights": source.origin,
        "strategy": strategy.name,
        "model": cfg.model.name,
    }
    metrics |= {"attention": attention, "compile": compiled}
    metrics |= {"run/precision": cfg.precision.dit, "speed/load_s": time.perf_counter() - began}
    session = AvatarSession(
        parts,
        sampler,
        chosen.rollout,
        chosen.speech,
        strategy.device,
        cfg.decode.online,
        shows=strategy.is_output_rank or chosen.ranks == "requests",
        relay=partial(strategy.relay, sampler.steps, chosen.cells),
        caches=strategy.make_caches,
        split=strategy.split_codec,
    )
    session.intake.knows_db = getattr(source, "knows_db", 0.0)
    shared = cfg.parallel.decode, cfg.parallel.ulysses_size
    planned = chosen.rollout.mode != "clipwise" and chosen.ranks == "same"
    setup = setup_of(strategy, world, chosen.cells, *shared) if planned else None
    return Loaded(
        session, strategy, chosen.profile, rank, memory.phases, adapters, metrics, setup, cfg.requests is not None
    )


def assemble(cfg: DictConfig) -> Run:
    """Start processes where several are asked for, build the models, bring the weights to life.

    Raises ValueError, naming the key, for anything in the configuration that cannot work; what can be checked is
    checked before a process is started.
    """
    start_log(None)
    if cfg.requests is not None:
        raise ValueError(f"requests={cfg.requests} is a list: liveavatar.infer.infer runs it; a Run is one request")
    request = make_request(cfg)
    chosen = choose(cfg)
    cfg = chosen.cfg
    if first_rank():
        check_request(request)
        if cfg.output.latents is not None:
            check_output_file(cfg.output.latents, "output.latents")
        if cfg.output.dir is not None:
            make_run_directory(cfg.output.dir)
    chosen.launch()
    directory = make_run_directory(cfg.output.dir) if chosen.strategy.is_output_rank else None
    start_log(directory)
    if directory is not None:
        cfg = OmegaConf.merge(cfg, {"output": {"dir": literal(str(directory))}})  # type: ignore[assignment]
        (directory / "config.yaml").write_text(kept(cfg), encoding="utf-8")
    return load(cfg, chosen, directory).run(cfg, request, directory)


def build_parts(
    cfg: DictConfig,
    source: TensorSource,
    strategy: Any,
    sampler: EulerSampler,
    dit_dtype: torch.dtype,
    dtype: torch.dtype,
    hoist: int,
) -> Parts:
    """Build every model on meta and fill it: the DiT by the strategy, the others resident on its device."""
    with torch.device("meta"):
        dit = make(cfg.model.dit, "model.dit")
        names = ("text", "speech", "vae")
        others: dict[str, nn.Module] = {name: make(cfg.model[name], f"model.{name}") for name in names}
    dit.hoist, parallel = hoist, cfg.parallel
    if (kind := check_kind(cfg.precision.weights)) is not None:
        source = quantised(source, kind, quantise_linears(dit, kind))
    dit.cache_kind = check_kind(cfg.precision.get("cache"), "cache")
    expect(source, _shapes(dit, others))
    strategy.arrange(dit, sampler.steps, parallel.decode, parallel.ulysses_size)  # refuses what cannot work, in time
    tokenizer = make(cfg.model.tokenizer, "model.tokenizer")
    lent = Lent(others["text"], _Named(source, "text"), strategy.device, dtype)
    for name, module in others.items():
        if name != "text" or cfg.memory.text == "resident":
            materialise(module, _Named(source, name), strategy.device, dtype)
    strategy.place(dit.eval(), source, dit_dtype)
    text = others["text"] if cfg.memory.text == "resident" else lent
    return Parts(dit, text, tokenizer, others["speech"], others["vae"], cfg.model.size_multiple)  # type: ignore[arg-type]


def _shapes(dit: nn.Module, others: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    """Every tensor that a run asks its source for, by name."""
    shapes = {name: parameter.shape for name, parameter in dit.named_parameters()}
    for component, module in others.items():
        shapes |= {f"{component}.{name}": parameter.shape for name, parameter in module.named_parameters()}
    return shapes


def rehearsals(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The best way of each strategy that the runtime has, played on fake tensors, beside what the plan says of it.

    Only the fullest rank is played, and of the strategies `plan.only` (null: the two that the plan prefers). Raises
    ValueError for a configuration that cannot be planned.
    """
    ask, topology = ask_of(cfg), make(cfg.topology, "topology")
    found, told = options(ask, topology), {}
    wanted = [way.label for way in prefer(found)][:2] if cfg.plan.only is None else [cfg.plan.only]
    wanted = [label for label in found if label in wanted or "all" in wanted]
    if not wanted and cfg.plan.only is not None:
        raise ValueError(f"plan.only={cfg.plan.only} is none of {', '.join(found)}; all plays every one")
    for label in wanted:
        way = best([way for way in found[label] if not way.plan.setup.missing] or found[label])
        if way.plan.setup.missing:
            continue
        setup, rank = way.plan.setup, way.plan.fullest(AWAY)
        began = time.perf_counter()
        node = OmegaConf.load(Path(conf_dir()) / "strategy" / f"{setup.strategy}.yaml")
        laid = OmegaConf.from_dotlist([word for word in setup.settings if word.startswith("strategy.")])
        strategy = make(OmegaConf.merge(node, laid.get("strategy", {})), "strategy")
        with torch.device("meta"):
            dit = make(cfg.model.dit, "model.dit").eval()
        dit.hoist = int(suited(ask, setup).hoisted)
        dit.cache_kind = ask.cache if ask.cache in SMALL else None
        decode = "rank" if "parallel.decode=rank" in setup.settings else "inline"
        seen = rehearse(
            dit,
            strategy,
            make(cfg.sampler, "sampler"),
            make(cfg.rollout, "rollout"),
            Stage(*ask.picture.latent, setup.cells, None, 1, setup.cells, setup.cells + 1),
            storage_type(cfg, "dit"),
            setup.ranks,
            rank,
            decode,
            setup.ulysses,
        )
        planned = way.plan.ranks[rank].playing(AWAY)
        told[label] = {
            "rank": rank,
            "peak_gb": seen.peak.nbytes / GB,
            "planned_gb": planned / GB,
            "error": planned / seen.peak.nbytes - 1,
            "unit": seen.unit,
            "parts": seen.peak.parts,
            "units_gb": {name: peak.nbytes / GB for name, peak in seen.peaks.items() if name},
            "seconds": time.perf_counter() - began,
        }
        log.info("%s: %.3f GB, %.1f s", label, seen.peak.nbytes / GB, told[label]["seconds"])
    return told


@dataclass(frozen=True)
class _Named:
    """A source seen from below a component's name, so that equal names in two components get different numbers."""

    source: TensorSource
    component: str

    @property
    def origin(self) -> str:
        return self.source.origin

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self.source.read(f"{self.component}.{name}", shape)
