"""Configurations of trainings that take a second, and the loss curves that they leave."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from liveavatar.config import compose
from liveavatar.train import train

PHASES = "vae.phases=[{steps: 2, size: [32, 32], frames: 1, batch: 2}, {steps: 2, size: [64, 64], frames: 5, batch: 1}]"


def overrides(tmp: Path, stage: str, *more: str) -> list[str]:
    return [
        "model=micro", f"stage={stage}", "size=[64,64]", "data._target_=tests.training.source.Discs",
        "data.identities=3", "data.seconds=1.4", "data.held_out=1", "train.log_every=1", "train.warmup=1",
        "fabric.accelerator=cpu", "fabric.devices=1", "fabric.threads=1", f"output.cache={tmp / 'cache'}", PHASES,
        "vae.picture_frames=5", "vae.statistics=2", "dit.clips=2", "dit.blocks=3", "dit.held_out_blocks=2",
        "dit.held_out_clips=1", "sampler.steps=2", "speech.left_s=0.2", "lora.rank=4", "lora.alpha=8", *more,
    ]  # fmt: skip


def config(tmp: Path, stage: str, *more: str) -> DictConfig:
    return compose("train", overrides(tmp, stage, f"output.dir={tmp / stage}", *more))


def run(tmp: Path, stage: str, *more: str) -> dict:
    return train(config(tmp, stage, *more))


def journal(folder: Path) -> list[dict]:
    """The logged steps without what depends on the clock, validations apart."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "loss" in line]
