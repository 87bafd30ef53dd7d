"""The published folder: found, refused where it is not right, and read to the same bits as its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from liveavatar.checkpoint.published import DIT_STEM, TEXT_FILE, Published, published
from liveavatar.checkpoint.read import RandomWeights, expect
from tests.checkpoint.writing import modules, tensors, write_published, write_shards
from tests.running import SMALL, picture, run_command, speech, write_wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    write_published(made)
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    write_published(tmp_path)
    return tmp_path


def _shapes() -> dict[str, torch.Size]:
    return {
        name if part == "dit" else f"{part}.{name}": parameter.shape
        for part, module in modules().items()
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("inner", ["", "Wan2.2-S2V-14B"])
def test_every_tensor_is_found_and_equal(folder: Path, inner: str) -> None:
    source, random = Published(folder / inner), RandomWeights(0)
    shapes = _shapes()
    expect(source, shapes)
    for name, shape in shapes.items():
        assert torch.equal(source.read(name, shape), random.read(name, shape)), name


def test_transformers_and_diffusers_folders_load_too(tmp_path: Path) -> None:
    random, made = RandomWeights(0), modules()
    base = write_published(tmp_path, only=("dit", "speech"))
    shapes = _shapes()
    text = {
        name.replace("text.stack.", "encoder.", 1): random.read(name, shape)
        for name, shape in shapes.items()
        if name.startswith("text.")
    }
    text["shared.weight"] = text.pop("encoder.embed_tokens.weight")
    write_shards(base / "text_encoder", "model", text, 2)
    vae = {name.removeprefix("vae."): random.read(f"vae.{name}", p.shape) for name, p in made["vae"].named_parameters()}
    write_shards(base / "vae", DIT_STEM, vae, 1)
    source = Published(tmp_path)
    expect(source, shapes)
    for name, shape in shapes.items():
        assert torch.equal(source.read(name, shape), random.read(name, shape)), name


def test_a_run_on_files_is_the_run_on_what_they_hold(folder: Path, tmp_path: Path) -> None:
    """The command line, from published files to latents, bit for bit those of the source that wrote the files."""
    picture(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", speech(0.6))
    given = [*SMALL, f"request.image={tmp_path}/a.png", f"request.audio={tmp_path}/a.wav", "sink=none"]
    found = {}
    for name, words in {
        "random": ["weights=random"],
        "files": ["weights=published", f"weights.dir={folder}"],
        "streamed": ["weights=published", f"weights.dir={folder}", "+strategy=fsdp_stream", "fabric.devices=2"],
    }.items():
        out = tmp_path / name
        done = run_command(*given, *words, f"output.dir={out}", f"output.latents={out}/x.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[name] = load_file(out / "x.safetensors")
        if name != "random":
            assert json.loads((out / "metrics.json").read_text())["weights"] == "Wan2.2-S2V-14B"
    for name in ("files", "streamed"):
        assert found[name].keys() == found["random"].keys()
        assert all(torch.equal(found[name][key], value) for key, value in found["random"].items()), name


def test_the_lora_beside_the_base_is_merged(fresh: Path) -> None:
    name, shape = "blocks.0.self_attn.q.weight", torch.Size((32, 32))
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    (fresh / "LiveAvatar").mkdir()
    for path in (fresh / "LiveAvatar" / "liveavatar.safetensors", fresh / "other.safetensors"):
        stem = "blocks.0.self_attn.q.lora"
        save_file({f"{stem}_A.default.weight": down, f"{stem}_B.default.weight": up}, path)
    base = RandomWeights(0).read(name, shape)
    once = base + 64 / 4 * up @ down
    for given in (fresh, fresh / "Wan2.2-S2V-14B"):
        torch.testing.assert_close(published(given).read(name, shape), once)
    assert torch.equal(published(fresh, lora=None).read(name, shape), base)
    both: list[Any] = [{"path": str(fresh / "other.safetensors"), "weight": 0.5}, str(fresh / "other.safetensors")]
    torch.testing.assert_close(published(fresh, lora=both).read(name, shape), base + 1.5 * 64 / 4 * up @ down)
    with pytest.raises(ValueError, match=r"weights\.lora: .* is neither a file nor"):
        published(fresh, lora=[{"file": "x"}])


def test_a_missing_shard_and_a_broken_index_are_named(fresh: Path) -> None:
    base = fresh / "Wan2.2-S2V-14B"
    shard = base / f"{DIT_STEM}-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=r"1 of 3 shards are missing .* being diffusion_pytorch_model-00002-of-00003"):
        Published(fresh)
    shard.write_bytes(content[:-30])
    sizes = rf"it has {len(content) - 30} bytes, .* {len(content)}"
    with pytest.raises(ValueError, match=rf"00002-of-00003\.safetensors is truncated: {sizes}"):
        Published(fresh)
    shard.write_bytes(content)
    index = base / f"{DIT_STEM}.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["blocks.9.nose"] = shard.name
    index.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"should hold 'blocks\.9\.nose'"):
        Published(fresh)
    document["weight_map"]["blocks.9.nose"] = "../../etc/passwd"
    index.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="outside its folder"):
        Published(fresh)
    index.write_text("{")
    with pytest.raises(ValueError, match="is not an index of shards"):
        Published(fresh)
    (base / TEXT_FILE).unlink()
    with pytest.raises(ValueError, match=r"no folder.*convert fetch"):
        Published(fresh / "nowhere")


def test_a_file_of_another_size_or_hash_than_was_fetched_is_named(fresh: Path) -> None:
    from liveavatar.checkpoint.listing import Noted, hashed, write_listing

    path = fresh / "Wan2.2-S2V-14B" / TEXT_FILE
    name, size = f"Wan2.2-S2V-14B/{TEXT_FILE}", path.stat().st_size
    write_listing(fresh, {name: Noted(size, hashed(path))})
    Published(fresh, verify=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Published(fresh)
    with pytest.raises(ValueError, match=rf"{TEXT_FILE} is damaged: its SHA-256 is [0-9a-f]{{64}} and should be"):
        Published(fresh, verify=True)
    path.write_bytes(content + b"more")
    with pytest.raises(ValueError, match=rf"{TEXT_FILE} has {size + 4} bytes and should have {size}"):
        Published(fresh)


def test_another_model_is_refused_with_three_names_of_each_kind(fresh: Path) -> None:
    base, made = fresh / "Wan2.2-S2V-14B", modules()
    held = tensors("dit", made["dit"], RandomWeights(0))
    lost = [name for name in sorted(held) if name.startswith("blocks.1.")]
    for name in lost:
        held[name.replace("blocks.1.", "blocks.7.")] = held.pop(name)
    held["head.head.weight"] = torch.zeros(8, 32)
    for path in base.glob(f"{DIT_STEM}*"):
        path.unlink()
    write_shards(base, DIT_STEM, held, 2)
    with pytest.raises(ValueError, match="is not the DiT of this configuration") as told:
        expect(Published(fresh), _shapes())
    words = str(told.value)
    assert words.count("blocks.1.") == words.count("blocks.7.") == 3
    assert f"and {len(lost) - 3} more" in words
    assert "head.head.weight [8, 32] for [64, 32]" in words
    with safe_open(base / f"{DIT_STEM}-00001-of-00002.safetensors", "pt") as file:
        assert file.keys()  # nothing was touched
