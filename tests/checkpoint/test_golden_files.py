"""The recorded generation, from files of the published format through the command line; and files that are damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from liveavatar.assemble import assemble
from liveavatar.checkpoint.keymap_encoders import TEXT, TEXT_TRANSFORMERS, VAE, VAE_DIFFUSERS
from liveavatar.checkpoint.listing import Noted, hashed, write_listing
from liveavatar.checkpoint.published import DIT_STEM, SPEECH_FOLDER, TEXT_FILE, VAE_FILE
from liveavatar.config import compose
from tests.checkpoint.writing import write_published, write_shards
from tests.goldens.case import Case
from tests.running import SMALL
from tests.strategies.launch import ROOT, clean_environment

CASE, TOLD = (ROOT / "tests/data/goldens" / name for name in ("pipeline_e2e", "pipeline_tpp_e2e"))
LORA = ("blocks.0.self_attn.q", "blocks.1.cross_attn.v", "blocks.2.ffn.0")
RANK, ALPHA = 4, 64


def _base_and_lora(prefix: str, adapter: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The case's DiT taken apart: a base, and a file of adapters that makes it what it is when it is merged."""
    held, file = load_file(CASE / "weights_dit.safetensors"), {}
    draw = torch.Generator().manual_seed(0)
    for name in LORA:
        weight = held[f"{name}.weight"]
        down, up = (torch.randn(n, m, generator=draw) * 0.02 for n, m in ((RANK, weight.shape[1]), (len(weight), RANK)))
        held[f"{name}.weight"] = weight - ALPHA / RANK * up @ down
        file[f"{prefix}{name}.lora_A{adapter}.weight"] = down
        file[f"{prefix}{name}.lora_B{adapter}.weight"] = up
    return held, file


def _original(base: Path) -> None:
    """Text encoder and VAE under the names of their first release."""
    torch.save(load_file(CASE / "weights_t5.safetensors"), base / TEXT_FILE)
    torch.save(load_file(CASE / "weights_vae.safetensors"), base / VAE_FILE)


def _of_the_libraries(base: Path) -> None:
    """The same as transformers and diffusers keep them."""
    text = load_file(CASE / "weights_t5.safetensors")
    vae = load_file(CASE / "weights_vae.safetensors")
    ours = {TEXT.to_ours(name): tensor for name, tensor in text.items()}
    kept = {TEXT_TRANSFORMERS.to_published(name): tensor for name, tensor in ours.items() if name is not None}
    write_shards(base / "text_encoder", "model", kept, 2)
    named = {VAE.to_ours(name): tensor for name, tensor in vae.items()}
    kept = {VAE_DIFFUSERS.to_published(name): tensor for name, tensor in named.items() if name is not None}
    write_shards(base / "vae", DIT_STEM, kept, 1)


@pytest.mark.parametrize(
    ("prefix", "adapter", "encoders"),
    [
        pytest.param("base_model.model.", ".default", _original, id="original_names_and_an_adapter_by_name"),
        pytest.param("", "", _of_the_libraries, id="folders_of_the_libraries_and_bare_names"),
    ],
)
def test_published_files_reproduce_the_recorded_generation(
    prefix: str, adapter: str, encoders: Callable[[Path], None], tmp_path: Path
) -> None:
    base = tmp_path / "Wan2.2-S2V-14B"
    held, lora = _base_and_lora(prefix, adapter)
    write_shards(base, DIT_STEM, held, 3)
    write_shards(base / SPEECH_FOLDER, "model", load_file(CASE / "weights_wav2vec2.safetensors"), 1)
    encoders(base)
    (tmp_path / "LiveAvatar").mkdir()
    save_file(lora, tmp_path / "LiveAvatar" / "liveavatar.safetensors")
    case, told = Case(CASE), Case(TOLD)
    asked = case.info["generate_args"]
    words = [
        "model=micro", "model.text.vocab_size=80", "+model.tokenizer.vocab=80", "model.dit.audio_layers=25",
        "model.speech.num_layers=24", "fabric.threads=1", "sink=none",
        "model.tokenizer._target_=tests.goldens.pipeline.StubTokenizer", "weights=published", f"weights.dir={tmp_path}",
        f"request.image={CASE / asked['ref_image']}", f"request.audio={CASE / asked['audio']}",
        f"request.size={asked['max_area']}", f"request.prompt={asked['input_prompt']}", f"seed={asked['seed']}",
        f"sampler.steps={asked['sampling_steps']}", "rollout.align_sound=false", "rollout.whole_clips=true",
        "rollout.masks_follow_block=false", "profile.memory=false", "profile.probe=false", "metrics=none",
        f"output.dir={tmp_path}/run", f"output.latents={tmp_path}/latents.safetensors",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.golden_command", str(CASE), *words],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "latents.safetensors")
    stacked = torch.stack([found[name].reshape(16, 3, *found[name].shape[-2:]) for name in sorted(found)])
    clips = stacked.unflatten(0, (-1, 4)).transpose(1, 2).flatten(2, 3)
    told.check("latents", clips)
    assert not told.failures, told.failures


def test_a_damaged_shard_is_named_and_nothing_runs(tmp_path: Path) -> None:
    """By its hash where a bit has turned, by its size where it is cut, by its name where it is gone."""
    base = write_published(tmp_path / "w")
    shard = base / f"{DIT_STEM}-00002-of-00003.safetensors"
    name, content = str(shard.relative_to(tmp_path / "w")), shard.read_bytes()
    write_listing(tmp_path / "w", {name: Noted(len(content), hashed(shard))})
    words = [*SMALL, "weights=published", f"weights.dir={tmp_path}/w", "sink=none", f"output.dir={tmp_path}/run"]

    def refused(*more: str) -> str:
        with pytest.raises(ValueError, match=r"00002-of-00003\.safetensors") as told:
            assemble(compose("infer", [*words, *more]))
        assert not (tmp_path / "run").exists()
        return str(told.value)

    flipped = bytearray(content)
    flipped[-1000] ^= 1
    shard.write_bytes(flipped)
    assert "is damaged: its SHA-256 is" in refused("weights.verify=true")
    shard.write_bytes(content[:-30])
    assert f"has {len(content) - 30} bytes" in refused()
    shard.unlink()
    assert "missing" in refused()
