"""From a configuration to a training: models, data and task of a stage."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from liveavatar.config import make
from liveavatar.settings import make_fabric, thread_count
from liveavatar.tracking import make_run_directory, stamp, start_log, write_metrics
from liveavatar.training.autoencoder import initialise
from liveavatar.training.data import Pictures, Source
from liveavatar.training.loop import LoopSettings, Task, Trainer
from liveavatar.training.vae_stage import VaeSettings, VaeTask
from liveavatar.training.weights import load_exported

log = logging.getLogger(__name__)

STAGES = ("vae", "latents", "dit", "lora")


@dataclass
class Setting:
    """What every stage is built from."""

    cfg: DictConfig
    loop: LoopSettings
    source: Source
    size: tuple[int, int]
    cache: Path
    device: torch.device


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run the stage of a configuration to its end; returns its last figures.

    Raises ValueError, naming the key, for a configuration or data that cannot work.
    """
    start_log(None)
    if cfg.stage not in STAGES:
        raise ValueError(f"stage={cfg.stage!r} is unknown; write one of {', '.join(STAGES)}")
    strategy = make(cfg.strategy, "strategy")
    loop, source = make(cfg.train, "train"), make(cfg.data, "data")
    threads = thread_count(cfg)
    fabric = make_fabric(cfg, strategy)
    for library in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(library).setLevel(logging.WARNING)
    fabric.launch()
    torch.set_num_threads(threads)
    directory = make_run_directory(cfg.output.dir) if strategy.is_output_rank else None
    start_log(directory)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    setting = Setting(cfg, loop, source, (int(cfg.size[0]), int(cfg.size[1])), Path(cfg.output.cache), strategy.device)
    task = build_task(setting)
    tracker = make_tracker(cfg, directory, plain)
    trainer = Trainer(task, loop, int(cfg.seed), plain, directory, strategy.device, fabric.global_rank, tracker)
    if directory is not None:
        OmegaConf.save(cfg, directory / "config.yaml", resolve=True)
    try:
        figures = trainer.run()
    finally:
        if tracker is not None:
            tracker.finish()
    metrics = stamp(str(strategy.device), threads, fabric.world_size) | {"step": trainer.step} | figures
    if directory is not None:
        write_metrics(directory, metrics)
    return metrics


def build_task(setting: Setting) -> Task:
    """The task of the configured stage."""
    return {"vae": vae_task}[setting.cfg.stage](setting)


def vae_task(setting: Setting) -> Task:
    """The VAE from fresh start values, or from exported ones."""
    cfg, settings = setting.cfg, make(setting.cfg.vae, "vae")
    assert isinstance(settings, VaeSettings)
    codec = make(cfg.model.vae, "model.vae")
    initialise(codec, int(cfg.seed))
    if setting.loop.init:
        load_exported(codec, Path(setting.loop.init) / "vae.safetensors")
    source, frames = setting.source, settings.picture_frames
    kept = Pictures(source, source.kept, frames, setting.size, setting.cache)
    held_out = Pictures(source, source.held_out, frames, setting.size, setting.cache)
    for pictures in (held_out, kept):
        pictures.prepare()
    return VaeTask(codec, settings, kept, held_out, setting.device, setting.loop.compile)


def make_tracker(cfg: DictConfig, directory: Path | None, plain: dict[str, Any]) -> Any:
    """A W&B run where one is asked for, else None; offline unless the user says online."""
    mode = cfg.logger.wandb
    if mode is None or directory is None:
        return None
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.wandb={mode!r} is unknown; write offline, online or null")
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "logger.wandb is set, but wandb is not installed: pip install 'liveavatar[train]', or logger.wandb=null"
        ) from error
    with contextlib.suppress(OSError):
        os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.init(project="liveavatar", dir=str(directory), mode=mode, config=plain, name=directory.name)
