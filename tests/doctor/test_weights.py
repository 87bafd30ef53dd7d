"""The health of a checkpoint folder: whole files, broken ones, and what a broken download leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from liveavatar.doctor.finding import FAIL, OK, WARN, Finding
from liveavatar.doctor.weights import check_folder, check_weights


def _folder(path: Path) -> Path:
    save_file({"a": torch.ones(40, 30)}, path / "one.safetensors")
    save_file({"b": torch.ones(10)}, path / "two.safetensors")
    torch.save({"c": torch.ones(100)}, path / "three.pth")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _states(found: list[Finding]) -> dict[str, str]:
    return {each.name: each.state for each in found}


def test_a_whole_folder_is_well(tmp_path: Path) -> None:
    found = check_folder(_folder(tmp_path))
    assert _states(found) == {"weights.dir": OK, "model.safetensors.index.json": OK}
    assert "3 of 3 files whole" in found[0].said


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("one.safetensors", 2000, "cut short or damaged"),
        ("one.safetensors", 20, "the header is not whole"),
        ("one.safetensors", 3, "no header"),
        ("three.pth", 500, "the end of the archive is missing"),
        ("three.pth", 0, "empty"),
    ],
)
def test_files_cut_short_are_found(tmp_path: Path, name: str, keep: int, words: str) -> None:
    path = _folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[:keep])
    found = check_folder(tmp_path)
    assert _states(found)["weights.dir"] == FAIL
    (broken,) = [each for each in found if each.name == name]
    assert words in broken.said
    assert broken.mend.startswith("python -m liveavatar.convert fetch")


def test_pointers_strangers_and_leftovers(tmp_path: Path) -> None:
    _folder(tmp_path)
    (tmp_path / "one.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "two.safetensors").write_bytes(b"\xff" * 400)
    hidden = tmp_path / ".cache" / "huggingface" / "download"
    hidden.mkdir(parents=True)
    (hidden / "x.incomplete").write_text("")
    found = {each.name: each for each in check_folder(tmp_path)}
    assert "Git LFS pointer" in found["one.safetensors"].said
    assert "no safetensors file" in found["two.safetensors"].said
    assert found["x.incomplete"].state == WARN


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_an_index_that_leads_nowhere(tmp_path: Path, text: str) -> None:
    _folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert _states(check_folder(tmp_path))["model.safetensors.index.json"] == FAIL


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    assert _states(check_folder(tmp_path)) == {"weights.dir": FAIL}
    assert _states(check_folder(tmp_path / "none")) == {"weights.dir": FAIL}


def test_what_the_configuration_names(tmp_path: Path) -> None:
    _folder(tmp_path)
    random = check_weights({"weights": {"_target_": "liveavatar.checkpoint.read.RandomWeights"}})
    assert [each.state for each in random] == ["note"]
    named = {"dir": str(tmp_path), "lora": str(tmp_path / "one.safetensors")}
    states = _states(check_weights({"weights": named}))
    assert states["weights.lora"] == states["weights.dir"] == OK
    assert _states(check_weights({"weights": {"lora": str(tmp_path / "x")}})) == {"weights.lora": FAIL}
