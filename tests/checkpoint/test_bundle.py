"""Bundles: what was written is read back, missing components are random and said to be, and errors name the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from liveavatar.checkpoint.bundle import Bundle, write_bundle
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.training.pack import pack

SHAPE = torch.Size((3, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"head.weight": torch.arange(12.0).reshape(3, 4)}
    write_bundle(tmp_path / "faces", {"dit": tensors, "vae": tensors}, torch.bfloat16, {"step": "7"})
    return tmp_path / "faces"


def test_what_was_written_is_read_back(folder: Path) -> None:
    bundle = Bundle(folder)
    assert torch.equal(bundle.read("head.weight", SHAPE).float(), torch.arange(12.0).reshape(3, 4))
    assert bundle.read("vae.head.weight", SHAPE).dtype == torch.bfloat16


def test_missing_components_are_random_and_said_to_be(folder: Path) -> None:
    bundle = Bundle(folder, seed=3)
    assert torch.equal(bundle.read("text.head.weight", SHAPE), RandomWeights(3).read("text.head.weight", SHAPE))
    assert bundle.origin == "faces (text, speech: random)"


def test_errors_name_the_file_and_the_tensor(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle(folder)
    with pytest.raises(ValueError, match=r"dit\.safetensors holds no tensor 'tail\.weight'"):
        bundle.read("tail.weight", SHAPE)
    with pytest.raises(ValueError, match=r"has shape \[3, 4\].*wants \[5, 4\]"):
        bundle.read("head.weight", torch.Size((5, 4)))
    with pytest.raises(ValueError, match="is no folder"):
        Bundle(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds none of dit\.safetensors"):
        Bundle(tmp_path / "empty")
    (folder / "text.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a readable"):
        Bundle(folder)


def test_a_failed_write_keeps_what_was_there(folder: Path) -> None:
    before = (folder / "dit.safetensors").read_bytes()
    with pytest.raises(TypeError):
        write_bundle(folder, {"dit": {"head.weight": torch.zeros(3, 4)}}, torch.float32, {"step": 8})  # type: ignore[dict-item]
    assert (folder / "dit.safetensors").read_bytes() == before
    assert [p.name for p in sorted(folder.iterdir())] == ["dit.safetensors", "vae.safetensors"]
    with pytest.raises(ValueError, match=r"no component \['ears'\]"):
        write_bundle(folder, {"ears": {}}, torch.float32, {})


def test_exports_of_several_stages_become_one_bundle(tmp_path: Path) -> None:
    tensors = {"head.weight": torch.arange(12.0).reshape(3, 4) + 1e-4}
    write_bundle(tmp_path / "vae", {"vae": tensors}, torch.float32, {"stage": "vae"})
    write_bundle(tmp_path / "dit", {"dit": tensors, "text": tensors}, torch.float32, {"stage": "dit"})
    made = pack([tmp_path / "vae", tmp_path / "dit"], tmp_path / "all")
    assert sorted(path.name for path in made) == ["dit.safetensors", "text.safetensors", "vae.safetensors"]
    assert Bundle(tmp_path / "all").read("vae.head.weight", SHAPE).dtype == torch.bfloat16
    with safe_open(tmp_path / "all" / "vae.safetensors", "pt") as file:
        assert file.metadata() == {"stage": "vae"}
    with pytest.raises(ValueError, match=r"holds none of dit\.safetensors"):
        pack([tmp_path], tmp_path / "none")


def test_runs_become_their_mean(tmp_path: Path) -> None:
    one = torch.arange(12.0).reshape(3, 4)
    for name, scale in (("first", 1.0), ("second", 3.0)):
        write_bundle(tmp_path / name, {"dit": {"head.weight": scale * one}}, torch.float32, {"stage": name})
    write_bundle(tmp_path / "first", {"vae": {"head.weight": one}}, torch.float32, {})
    both = [tmp_path / "first", tmp_path / "second"]
    pack(both, tmp_path / "mean", torch.float32, shares=[1, 3])
    assert torch.equal(Bundle(tmp_path / "mean").read("head.weight", SHAPE), 2.5 * one)
    assert torch.equal(Bundle(tmp_path / "mean").read("vae.head.weight", SHAPE), one)
    pack(both, tmp_path / "last", torch.float32)
    assert torch.equal(Bundle(tmp_path / "last").read("head.weight", SHAPE), 3 * one)
    for shares in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match=r"--shares 1.*one above 0 for each of the 2 folders"):
            pack(both, tmp_path / "none", shares=shares)
    write_bundle(tmp_path / "wide", {"dit": {"head.weight": torch.zeros(3, 5)}}, torch.float32, {})
    with pytest.raises(ValueError, match=r"wide.dit\.safetensors has other tensors than .*first"):
        pack([tmp_path / "first", tmp_path / "wide"], tmp_path / "none", shares=[1, 1])
