"""Plain values of a configuration, checked and made into what the library works with. Every error names its key."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf

from liveavatar.config import conf_dir, make, started_by_slurm, tasks_per_node
from liveavatar.media.image import parse_area
from liveavatar.memory.given import GB, Setup, Topology
from liveavatar.strategies.auto import advice, ask_of, choose, most_resident, options
from liveavatar.types import AvatarRequest

MAX_CPU_RANKS = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def in_flight(cfg: DictConfig, strategy: Any, steps: int, mode: str) -> int:
    """Cells that share a pass: the strategy's own word, else what the schedule allows."""
    schedule = cfg.parallel.schedule
    if schedule not in ("sequential", "wavefront"):
        raise ValueError(f"parallel.schedule={schedule!r} is unknown; write sequential or wavefront")
    cells = strategy.cells_in_flight
    if cells is not None and not 1 <= cells <= steps:
        raise ValueError(
            f"strategy.cells_in_flight={cells}: with sampler.steps={steps} at most {steps} cells are independent; "
            f"choose 1 to {steps}"
        )
    if cells is None:
        cells = steps if schedule == "wavefront" else 1
    if mode == "clipwise" and cells > 1:
        raise ValueError(
            "rollout=clipwise needs each clip finished before the next begins: use rollout=streaming, or "
            "parallel.schedule=sequential and strategy.cells_in_flight=1"
        )
    return cells


def hoists(cfg: DictConfig, strategy: Any, ranks: str) -> int:
    """The blocks whose conditioning is made ready at once, ahead of their cells; 0: every cell makes its own."""
    asked = cfg.parallel.hoist
    if asked != "auto" and not (isinstance(asked, int) and asked >= 0):
        raise ValueError(f"parallel.hoist={asked!r} is unknown; write auto, true, false or a number of blocks")
    able = strategy.hoists and not (ranks == "requests" and strategy.gathers)
    if asked == "auto":
        return int(able)
    if asked and not able:
        raise ValueError(
            f"parallel.hoist={asked}, but strategy {strategy.name} as set up brings in whole units, and "
            "nothing can be prepared ahead: write parallel.hoist=auto, or choose +strategy=fsdp_stream"
        )
    return int(asked)


def make_request(cfg: DictConfig) -> AvatarRequest:
    """The request that `cfg.request` and `cfg.seed` describe."""
    asked = cfg.request
    for key, suffix in (("image", "jpg"), ("audio", "wav")):
        if not asked[key]:
            raise ValueError(f"request.{key} is empty: name a file, as in request.{key}=me.{suffix}")
    longest = asked.max_seconds
    if longest is not None and not (_is_number(longest) and longest > 0):
        raise ValueError(
            f"request.max_seconds={longest} must be a number of seconds above 0, or null for the whole voice"
        )
    if not _is_number(cfg.seed) or cfg.seed != int(cfg.seed):
        raise ValueError(f"seed={cfg.seed!r} must be a whole number, as in seed=0")
    return AvatarRequest(
        image=Path(asked.image).expanduser(),
        audio=_paths(asked.audio),
        prompt=str(asked.prompt or ""),
        size=parse_area(asked.size, cfg.model.size_multiple),
        seed=int(cfg.seed),
        max_seconds=None if longest is None else float(longest),
        pose=None if asked.pose is None else Path(asked.pose).expanduser(),
        masks=_paths(asked.masks) if asked.masks else (),
    )


def ranks_compute(cfg: DictConfig, strategy: Any) -> str:
    """What each rank computes: `same`, all of them one request, or `requests`, each one of its own.

    Raises ValueError for what the strategy cannot do, or where there is but one request.
    """
    asked, known = cfg.parallel.ranks, strategy.computes
    if asked not in (None, "same", "requests"):
        raise ValueError(f"parallel.ranks={asked!r} is unknown; write same or requests, or null for what fits")
    if asked is not None and asked not in known:
        instead = "leave it out" if asked == "requests" else "leave it out, or choose another strategy"
        raise ValueError(f"parallel.ranks={asked}, but strategy {strategy.name} knows only {known[0]}: {instead}")
    if cfg.parallel.ulysses_size != 1 or cfg.parallel.decode == "split":
        if asked == "requests":
            raise ValueError(
                "parallel.ranks=requests gives each rank a request of its own, and parallel.ulysses_size above 1 or "
                "parallel.decode=split lets ranks share one: leave parallel.ranks out, or write "
                "parallel.ulysses_size=1 parallel.decode=inline"
            )
        return "same"
    if cfg.requests is not None:
        return asked or known[0]
    if asked == "requests":
        raise ValueError(
            "parallel.ranks=requests gives each rank a request of its own, and there is one request: name a list, as "
            "in requests=list.jsonl, or leave parallel.ranks out"
        )
    return "same"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _paths(joined: str) -> tuple[Path, ...]:
    """`a.wav+b.wav` as two paths, unless a file has a plus sign in its name."""
    whole = Path(str(joined)).expanduser()
    return (whole,) if whole.exists() else tuple(Path(part).expanduser() for part in str(joined).split("+"))


def make_fabric(cfg: DictConfig, strategy: Any) -> Fabric:
    """Fabric for the asked devices; raises ValueError for a number that this machine or strategy has no use for."""
    devices, accelerator = cfg.fabric.devices, cfg.fabric.accelerator
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ValueError(f"fabric.accelerator={accelerator!r} is unknown; write auto, cpu or cuda")
    if accelerator == "cuda" and not gpus:
        raise ValueError("fabric.accelerator=cuda, but PyTorch finds no GPU here: write fabric.accelerator=cpu")
    if accelerator == "auto":
        accelerator = "cuda" if gpus else "cpu"
    most = gpus if accelerator == "cuda" else MAX_CPU_RANKS
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"fabric.devices={devices!r} must be a whole number from 1 to {most}")
    if devices > most:
        advice = "write fabric.accelerator=cpu to run on the CPU" if accelerator == "cuda" else "more only slow it down"
        raise ValueError(f"fabric.devices={devices}, but {accelerator} offers at most {most} here: {advice}")
    if devices > strategy.max_devices:
        raise ValueError(
            f"fabric.devices={devices}, but strategy {strategy.name} uses {strategy.max_devices}: "
            "add +strategy=fsdp_stream to divide the weights among them, or +strategy=replicated with "
            f"parallel.ulysses_size={devices} to share each cell by sequence"
        )
    nodes = node_count(cfg)
    if nodes > 1 and strategy.max_devices == 1:
        raise ValueError(
            f"fabric.num_nodes={nodes}, but strategy {strategy.name} uses one device: add +strategy=fsdp_stream to "
            "divide the weights among them"
        )
    strategy.settle(accelerator)
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)


def node_count(cfg: DictConfig) -> int:
    """Machines of this run: `fabric.num_nodes`, or what torchrun or Slurm has set.

    Raises ValueError where the two differ, or the processes do not divide evenly among the machines.
    """
    asked, devices = cfg.fabric.num_nodes, cfg.fabric.devices
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ValueError(f"fabric.num_nodes={asked!r} must be a whole number from 1, or null for what started this run")
    if "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ:
        starter, world, here = "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    elif started_by_slurm():
        starter, world, here = "Slurm", int(os.environ["SLURM_NTASKS"]), tasks_per_node()
    else:
        return asked or 1
    if devices != here or world % here:
        raise ValueError(
            f"fabric.devices={devices}, but {starter} has started {here} processes on this machine and {world} in all: "
            "leave fabric.devices out, and start as many on every machine"
        )
    if asked is not None and asked != world // here:
        raise ValueError(
            f"fabric.num_nodes={asked}, but {starter} has started {world} processes, {here} to a machine, which makes "
            f"{world // here}: leave fabric.num_nodes out"
        )
    return world // here


def thread_count(cfg: DictConfig) -> int:
    """The intra-op threads of each process: the last bit of a matrix product depends on them."""
    threads = cfg.fabric.threads
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        devices = cfg.fabric.devices
        return max(1, cores // devices) if isinstance(devices, int) and devices > 0 else 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"fabric.threads={threads!r} must be a whole number from 1, or null for cores ÷ processes")
    return threads


def settled(cfg: DictConfig) -> tuple[DictConfig, str]:
    """The configuration with everything decided that was left to the planner, and the reason in words.

    `+strategy=auto` becomes the fastest strategy that fits, strategy.resident=auto the number of blocks that fit. The
    machine is that of `+topology=…` where one is laid over, else the one at hand: memory of the whole device, so that
    every rank comes to the same end. Raises ValueError where nothing fits.
    """
    if cfg.strategy._target_.rsplit(".", 1)[-1] == "Auto":
        return _chosen(cfg)
    if cfg.strategy.get("resident") == "auto":
        return _resident(cfg)
    return cfg, ""


def _chosen(cfg: DictConfig) -> tuple[DictConfig, str]:
    topology, ask = hardware(cfg, make(cfg.strategy, "strategy").devices), ask_of(cfg)
    found = options(ask, topology)
    order = choose(found)
    if not order:
        ways = {name: advice(name, ask, topology, found, cfg.model.size_multiple) for name in found}
        told = "; ".join(f"{name}: {words}" for name, words in ways.items())
        raise ValueError(f"+strategy=auto: nothing fits {topology.name} ({topology.device_gb:.1f} GB a device). {told}")
    way, setup = order[0], order[0].plan.setup
    node = OmegaConf.load(Path(conf_dir()) / "strategy" / f"{setup.strategy}.yaml")
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "strategy"])
    laid = [word for word in setup.overrides if not word.startswith("+")]
    laid += [] if setup.ranks > 1 else ["fabric.devices=1"]
    OmegaConf.set_struct(plain, False)
    merged = OmegaConf.merge(plain, {"strategy": node}, OmegaConf.from_dotlist(laid))
    assert isinstance(merged, DictConfig)
    needs = max(rank.peak for rank in way.plan.ranks) / GB + topology.margin_gb
    others = f"; next best {order[1].label}" if len(order) > 1 else ""
    reason = (
        f"auto: {' '.join(setup.overrides) or 'single_device'}, for it needs {needs:.2f} of {topology.device_gb:.1f} "
        f"GB a device on {topology.name} and is the fastest that fits (about {way.pace.seconds:.3g} s for 12 frames, "
        f"bound by {way.pace.bound_by}){others}"
    )
    return merged, reason


def _resident(cfg: DictConfig) -> tuple[DictConfig, str]:
    if not cfg.strategy._target_.endswith("FsdpStream"):
        raise ValueError("strategy.resident=auto belongs to +strategy=fsdp_stream: give a number of blocks here")
    node, ranks = cfg.strategy, cfg.fabric.devices
    topology = replace(hardware(cfg, ranks), devices=ranks)
    source = node.source if node.source != "auto" else "peers" if ranks > 1 else "host"
    cells = node.cells_in_flight or (cfg.sampler.steps if cfg.parallel.schedule == "wavefront" else 1)
    setup = Setup("fsdp_stream", (), ranks, source, node.slots, cells, 0, node.caches)
    number = most_resident(ask_of(cfg), setup, topology).resident
    copy = OmegaConf.merge(cfg, {"strategy": {"resident": number}})
    assert isinstance(copy, DictConfig)
    return copy, f"auto: strategy.resident={number}, as many blocks as fit {topology.device_gb:.1f} GB a device"


def hardware(cfg: DictConfig, devices: int | None) -> Topology:
    """The machine to plan for: `topology` where the configuration has one, else what PyTorch and the system tell.

    Rates that cannot be asked for are those of the topology in conf/ whose devices are about as large.
    """
    if cfg.get("topology") is not None:
        return make(cfg.topology, "topology")
    page = Path(conf_dir()) / "topology"
    asked = devices or (cfg.fabric.devices if isinstance(cfg.fabric.devices, int) else 1)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    if not torch.cuda.is_available() or cfg.fabric.accelerator == "cpu":
        like = OmegaConf.load(page / "cpu.yaml")
        found = {"name": "this CPU", "devices": asked, "device_gb": total, "host_gb": total}
        return make(OmegaConf.merge(like, found), "topology")
    gpus = torch.cuda.device_count()
    held = torch.cuda.get_device_properties(0).total_memory / GB
    like = OmegaConf.load(page / ("1x24gb.yaml" if held < 32 else "1x48gb.yaml" if held < 64 else "1x80gb.yaml"))
    fixed = devices is None and asked == 1 and "LOCAL_WORLD_SIZE" not in os.environ
    count = gpus if fixed else min(asked, gpus)
    found = {"name": f"{count} × {torch.cuda.get_device_name(0)}", "devices": count, "host_gb": total}
    return make(OmegaConf.merge(like, found, {"device_gb": 0.97 * held}), "topology")


def storage_type(cfg: DictConfig, what: str) -> torch.dtype:
    """What the matrices of the `dit` or the `encoders` are stored as."""
    name = cfg.precision[what]
    if name not in DTYPES:
        raise ValueError(f"precision.{what}={name!r} is unknown; choose {' or '.join(DTYPES)}")
    return DTYPES[name]
