"""From a configuration to a training: models, data and task of a stage."""

from __future__ import annotations

import contextlib
import logging
import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from liveavatar.assemble import build_parts
from liveavatar.config import make
from liveavatar.intake import Parts
from liveavatar.models.vae.codec import WanCodec
from liveavatar.ops import attention
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.settings import make_fabric, storage_type, thread_count
from liveavatar.tracking import make_run_directory, stamp, start_log, write_metrics
from liveavatar.training.autoencoder import initialise
from liveavatar.training.data import Pictures
from liveavatar.training.dit_stage import DitTask, initialise_dit
from liveavatar.training.draws import DitSettings
from liveavatar.training.latents import LatentStore
from liveavatar.training.loop import LoopSettings, Task, Trainer
from liveavatar.training.lora_stage import Adapters, LoraTask, average_gradients
from liveavatar.training.sources import Source
from liveavatar.training.speech_stage import SpeechTask, checked_source
from liveavatar.training.text_stage import TextTask, checked_wishes
from liveavatar.training.vae_stage import VaeSettings, VaeTask
from liveavatar.training.weights import load_exported, load_initial

log = logging.getLogger(__name__)

STEPS = 20_000
"""Optimiser steps of the stages that name none."""

STAGES = ("vae", "speech", "text", "latents", "dit", "lora")


@dataclass
class Setting:
    """What every stage is built from."""

    cfg: DictConfig
    loop: LoopSettings
    source: Source
    size: tuple[int, int]
    cache: Path
    device: torch.device
    strategy: Any


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
    made = make_run_directory(cfg.output.dir) if fabric.is_global_zero else None
    directory: Path = fabric.broadcast(made)  # type: ignore[assignment] - that of rank 0, everywhere
    start_log(directory if fabric.is_global_zero else None)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    setting = Setting(
        cfg, loop, source, (int(cfg.size[0]), int(cfg.size[1])), Path(cfg.output.cache), strategy.device, strategy
    )
    if cfg.stage == "latents":
        return encode_clips(setting)
    task = build_task(setting)
    tracker = make_tracker(cfg, directory if fabric.is_global_zero else None, plain)
    trainer = Trainer(task, loop, int(cfg.seed), plain, directory, strategy.device, fabric.global_rank, tracker)
    ranks = fabric.world_size
    trainer.agree = fabric.broadcast
    trainer.share = lambda parameters: average_gradients(parameters, fabric.all_reduce, ranks)
    if fabric.is_global_zero:
        OmegaConf.save(cfg, directory / "config.yaml", resolve=True)
    try:
        figures = trainer.run()
    finally:
        if tracker is not None:
            tracker.finish()
    metrics = stamp(str(strategy.device), threads, fabric.world_size) | {"step": trainer.step} | figures
    if fabric.is_global_zero:
        write_metrics(directory, metrics)
    return metrics


def build_task(setting: Setting) -> Task:
    """The task of the configured stage."""
    tasks = {"vae": vae_task, "speech": speech_task, "text": text_task, "dit": dit_task, "lora": lora_task}
    return tasks[setting.cfg.stage](setting)


def vae_task(setting: Setting) -> Task:
    """The VAE from fresh start values, or from exported ones."""
    cfg, settings = setting.cfg, make(setting.cfg.vae, "vae")
    assert isinstance(settings, VaeSettings)
    settings.check_start(setting.loop.init)
    codec = make(cfg.model.vae, "model.vae")
    initialise(codec, int(cfg.seed))
    if setting.loop.init:
        load_initial({"vae": codec}, Path(setting.loop.init).expanduser())
    source, frames = setting.source, settings.picture_frames
    kept = Pictures(source, source.kept, frames, setting.size, setting.cache)
    held_out = Pictures(source, source.held_out, frames, setting.size, setting.cache)
    for pictures in (held_out, kept):
        pictures.prepare()
    return VaeTask(codec, settings, kept, held_out, setting.device, setting.loop.compile)


def speech_task(setting: Setting) -> Task:
    """The speech encoder from fresh start values, or from exported ones; then a second stays as they were, if asked."""
    cfg, hear, speech = setting.cfg, make(setting.cfg.hear, "hear"), make(setting.cfg.speech, "speech")
    source = checked_source(setting.source)
    torch.manual_seed(int(cfg.seed))
    encoder = make(cfg.model.speech, "model.speech")
    if setting.loop.init:
        load_initial({"speech": encoder}, Path(setting.loop.init).expanduser())
    elif hear.keep:
        raise ValueError(f"hear.keep={hear.keep} keeps to an encoder that there is not: name its folder as train.init")
    known = deepcopy(encoder).to(setting.device) if hear.keep else None
    lead = make(cfg.rollout, "rollout").lead_frames
    return SpeechTask(encoder.to(setting.device), hear, speech, lead, source, setting.device, STEPS, known)


def text_task(setting: Setting) -> Task:
    """The text encoder from fresh start values, or from exported ones."""
    cfg, read, source = setting.cfg, make(setting.cfg.read, "read"), checked_wishes(setting.source)
    torch.manual_seed(int(cfg.seed))
    encoder, tokenizer = make(cfg.model.text, "model.text"), make(cfg.model.tokenizer, "model.tokenizer")
    if setting.loop.init:
        load_initial({"text": encoder}, Path(setting.loop.init).expanduser())
    return TextTask(encoder.to(setting.device), tokenizer, read, source, setting.device, STEPS)


def encode_clips(setting: Setting) -> dict[str, Any]:
    """Stage `latents`: encode the clips of the data with the VAE of `dit.vae`, and nothing else."""
    settings = make(setting.cfg.dit, "dit")
    stores = latent_stores(setting, exported_codec(setting, settings))
    made = sum(store.prepare() for store in stores)
    log.info("%d clips encoded, %d in all in %s", made, sum(len(s.numbers) for s in stores), stores[0].folder)
    return {"latents/made": made}


def latent_stores(setting: Setting, codec: WanCodec) -> tuple[LatentStore, LatentStore]:
    """The clips to train on and those to validate with."""
    source, given = setting.source, (setting.size, codec, setting.cache, setting.device)
    return LatentStore(source, source.kept, *given), LatentStore(source, source.held_out, *given)


def exported_codec(setting: Setting, settings: DitSettings) -> WanCodec:
    """The VAE that stage `vae` exported, frozen."""
    if settings.vae is None:
        raise ValueError(
            "dit.vae is not set: name the export/ folder of a finished stage=vae, as in dit.vae=runs/vae/export"
        )
    codec = make(setting.cfg.model.vae, "model.vae")
    load_exported(codec, Path(settings.vae).expanduser() / "vae.safetensors")
    return codec.to(setting.device).eval().requires_grad_(False)


def dit_task(setting: Setting) -> Task:
    """DiT, text and speech encoder from fresh start values, or from exported ones."""
    cfg, settings = setting.cfg, make(setting.cfg.dit, "dit")
    codec = exported_codec(setting, settings)
    stores = latent_stores(setting, codec)
    for store in stores:
        store.prepare()
    torch.manual_seed(int(cfg.seed))  # the encoders are started by their own library
    models = {name: make(cfg.model[name], f"model.{name}") for name in ("dit", "text", "speech")}
    initialise_dit(models["dit"], int(cfg.seed))
    if setting.device.type == "cpu":
        attention.use(models["dit"], attention.plain)
    if setting.loop.init:
        load_initial(models, Path(setting.loop.init).expanduser())
    trains = ["dit", "text", "speech"]
    for name, folder in (("speech", settings.speech), ("text", settings.text)):
        if folder is not None:
            trains.remove(name)
            load_exported(models[name], Path(folder).expanduser() / f"{name}.safetensors")
            models[name].requires_grad_(False)
    for module in models.values():
        module.to(setting.device)
    tokenizer = make(cfg.model.tokenizer, "model.tokenizer")
    parts = Parts(models["dit"], models["text"], tokenizer, models["speech"], codec, cfg.model.size_multiple)
    return DitTask(parts, *conditions(cfg, settings), stores, setting.device, STEPS, trains)


def conditions(cfg: DictConfig, settings: DitSettings) -> tuple[DitSettings, EulerSampler, RolloutSettings, Any]:
    """What a clip is conditioned on, as inference would."""
    rollout = make(cfg.rollout, "rollout")
    if rollout.mode != "streaming":
        raise ValueError("rollout=clipwise cannot be trained: its motion is the decoded clip; write rollout=streaming")
    return settings, make(cfg.sampler, "sampler"), rollout, make(cfg.speech, "speech")


def lora_task(setting: Setting) -> Task:
    """Adapters of the models that `weights` names; those rest as the strategy places them."""
    cfg, settings, lora = setting.cfg, make(setting.cfg.dit, "dit"), make(setting.cfg.lora, "lora")
    if setting.loop.optimiser != "adamw":
        raise ValueError(f"train.optimiser={setting.loop.optimiser} is for whole matrices; adapters take adamw")
    given = conditions(cfg, settings)
    source = make(cfg.weights, "weights")
    dtypes = storage_type(cfg, "dit"), storage_type(cfg, "encoders")
    parts = build_parts(cfg, source, setting.strategy, given[1], *dtypes, hoist=0)
    stores = latent_stores(setting, parts.codec)
    for store in stores:
        store.prepare()
    adapters = Adapters(parts.dit, lora, int(cfg.seed), setting.device)
    return LoraTask(adapters, parts, *given, stores, setting.device, STEPS, checkpointing=lora.checkpointing)


def make_tracker(cfg: DictConfig, directory: Path | None, plain: dict[str, Any]) -> Any:
    """A W&B run where one is asked for, else None; offline unless the user says online."""
    mode = cfg.logger.wandb
    if mode is None or directory is None:
        return None
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.wandb={mode!r} is unknown; write offline, online or null")
    try:
        import wandb  # type: ignore[import-not-found] - an extra
    except ImportError as error:
        raise ValueError(
            "logger.wandb is set, but wandb is not installed: pip install 'liveavatar[train]', or logger.wandb=null"
        ) from error
    with contextlib.suppress(OSError):
        os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.init(project="liveavatar", dir=str(directory), mode=mode, config=plain, name=directory.name)
