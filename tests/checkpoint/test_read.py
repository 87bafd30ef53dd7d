"""Where tensors come from: seeded random ones, and files under published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.read import RandomWeights, SafetensorsWeights

MAP = KeyMap("toy", [("layers.{i}.{*}", "blocks.{i}.{*}")], ignored={"steps": "a counter"})
SHAPE = torch.Size((3, 4))


def test_random_tensors_are_a_pure_function_of_seed_and_name() -> None:
    first, second = RandomWeights(5), RandomWeights(5)
    names = ["blocks.0.q.weight", "blocks.1.q.weight", "blocks.0.norm.weight", "blocks.0.q.bias"]
    there = {name: first.read(name, SHAPE) for name in names}
    back = {name: second.read(name, SHAPE) for name in reversed(names)}  # in any order
    assert all(torch.equal(there[name], back[name]) for name in names)
    assert not torch.equal(there[names[0]], there[names[1]])
    assert not torch.equal(there[names[0]], RandomWeights(6).read(names[0], SHAPE))
    assert first.origin == "random"


def test_random_tensors_let_signals_through() -> None:
    source = RandomWeights(0)
    matrix = source.read("blocks.0.ffn.0.weight", torch.Size((400, 900)))
    assert float(matrix.std()) == pytest.approx(1 / 30, rel=0.02)
    assert matrix.dtype == torch.float32
    assert float(source.read("blocks.0.norm3.weight", torch.Size((900,))).mean()) == pytest.approx(1, abs=0.01)
    assert float(source.read("blocks.0.q.bias", torch.Size((900,))).abs().max()) < 0.1
    assert float(source.read("blocks.0.modulation", torch.Size((1, 6, 900))).std()) == pytest.approx(0.3, rel=0.05)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"layers.0.weight": torch.arange(12.0).reshape(3, 4), "steps": torch.zeros(1)}, path)
    return path


def test_files_are_read_under_our_names(file: Path) -> None:
    source = SafetensorsWeights(file, MAP)
    assert torch.equal(source.read("blocks.0.weight", SHAPE), torch.arange(12.0).reshape(3, 4))
    assert list(source.names()) == ["blocks.0.weight"]
    assert source.origin == "model.safetensors"


def test_what_a_file_lacks_is_named(file: Path) -> None:
    source = SafetensorsWeights(file, MAP)
    with pytest.raises(ValueError, match=r"model\.safetensors holds no tensor 'layers\.1\.weight'"):
        source.read("blocks.1.weight", SHAPE)
    with pytest.raises(ValueError, match=r"'layers\.0\.weight' has shape \[3, 4\].*wants \[4, 3\]"):
        source.read("blocks.0.weight", torch.Size((4, 3)))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.dir"):
        SafetensorsWeights(tmp_path / "absent.safetensors", MAP)
    for number, content in enumerate((b"", b"garbage that is no header", b"\xff" * 64)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            SafetensorsWeights(path, MAP)
    stranger = tmp_path / "stranger.safetensors"
    save_file({"nose.weight": torch.zeros(1)}, stranger)
    with pytest.raises(ValueError, match=r"stranger\.safetensors: .*'nose\.weight'"):
        SafetensorsWeights(stranger, MAP)
