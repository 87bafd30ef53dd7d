"""A rented card has torch, Lightning, Hydra, diffusers and transformers: a training asks for nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liveavatar.bare import _Absent
from liveavatar.config import compose, conf_dir, make

CHILD = """
import sys
from pathlib import Path
from tests.bench.jobs import blocked
blocked("jaxtyping", "av", "soxr", "ftfy", "rich", "torchaudio", "sentencepiece", "matplotlib", "peft", "wandb")
from liveavatar.train import train
from tests.training.runs import config
tmp = Path(sys.argv[1])
train(config(tmp, "vae", "train.steps=2"))
train(config(tmp, "dit", f"dit.vae={tmp / 'vae' / 'export'}", "train.steps=1", "train.validate_every=1"))
"""


def test_vae_and_dit_train_on_a_bare_machine(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "dit" / "export" / "dit.safetensors").is_file()
    made = [path.name for path in (tmp_path / "dit").rglob("*") if path.suffix in (".png", ".mp4")]
    assert any(name.endswith(".png") for name in made)
    assert not any(name.endswith(".mp4") for name in made)  # those need PyAV


def test_what_stands_in_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match=r"av is not installed.*av\.container\.open"):
        _Absent("av.container").open("x.mp4")


GOING_ON = ("tiny_vae_motion", "tiny_vae_decoder", "tiny_dit_walk", "tiny_speech_timbre")
RECIPES = sorted(path.stem for path in (Path(conf_dir()) / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_of_one_piece(name: str) -> None:
    cfg = compose("train", [f"+experiment={name}", *(["data.dir=clips"] if name == "lora" else [])])
    loop = make(cfg.train, "train")
    assert cfg.stage in name or (cfg.stage, name) == ("vae", "tiny_vae_decoder")
    assert cfg.train.init is None or name in GOING_ON
    assert loop.stop_minutes is None or loop.stop_minutes < 9
    if cfg.stage == "vae":
        assert make(cfg.vae, "vae").schedule()
