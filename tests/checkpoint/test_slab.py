"""Slabs: places, views, and shards that are slices of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from liveavatar.checkpoint import files
from liveavatar.checkpoint.files import TensorFile
from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.shards import Shards
from liveavatar.checkpoint.slab import ALIGN, SlabLayout, allocate, point, vacate

CPU = torch.device("cpu")


def _unit() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(5, 7), "b": nn.LayerNorm(3), "c": nn.Linear(40, 30, bias=False)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_every_parameter_has_an_aligned_place_of_its_own(dtype: torch.dtype, parts: int) -> None:
    unit = _unit()
    layout = SlabLayout.of(unit, dtype, parts)
    assert layout.nbytes % (ALIGN * parts) == 0
    end = 0
    for name, parameter in unit.named_parameters():
        entry = layout.entries[name]
        assert entry.offset % ALIGN == 0
        assert entry.offset >= end
        assert entry.nbytes == parameter.numel() * dtype.itemsize
        end = entry.offset + entry.nbytes
    assert end <= layout.nbytes < end + ALIGN * (parts + 1)


def test_views_are_the_slab() -> None:
    layout = SlabLayout.of(_unit(), torch.float32)
    slab = allocate(layout.nbytes, CPU)
    assert slab.data_ptr() % ALIGN == 0
    assert slab.numel() == layout.nbytes
    views = layout.views(slab)
    views["a.weight"].fill_(3.0)
    entry = layout.entries["a.weight"]
    assert slab.view(torch.float32).sum() == 3.0 * 35
    assert views["a.weight"].data_ptr() == slab.data_ptr() + entry.offset
    assert all(view.data_ptr() % ALIGN == 0 for view in views.values())


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_are_slices_of_the_whole(parts: int, dtype: torch.dtype) -> None:
    layout = SlabLayout.of(_unit(), dtype, parts)
    whole = allocate(layout.nbytes, CPU)
    layout.fill(whole, RandomWeights(0), "unit")
    size = layout.nbytes // parts
    shards = []
    for part in range(parts):
        shards.append(allocate(size, CPU))
        layout.fill(shards[-1], RandomWeights(0), "unit", start=part * size)
    assert torch.equal(torch.cat(shards), whole)
    for name, view in layout.views(whole).items():
        assert torch.equal(view, RandomWeights(0).read(f"unit.{name}", view.shape).to(dtype))


def test_a_shard_reads_only_what_lies_in_it() -> None:
    class Counting(RandomWeights):
        asked: list[str]

        def read(self, name: str, shape: torch.Size) -> torch.Tensor:
            self.asked.append(name)
            return super().read(name, shape)

    layout = SlabLayout.of(_unit(), torch.float32, 3)
    found = []
    for part in range(3):
        source = Counting(0)
        source.asked = []
        layout.fill(allocate(layout.nbytes // 3, CPU), source, "unit", start=part * (layout.nbytes // 3))
        found.append(source.asked)
    assert "unit.a.weight" in found[0]
    assert found[2] == ["unit.c.weight"]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_files_are_read_straight_into_the_slab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, stored: torch.dtype
) -> None:
    """The bits of a copied read, whether a tensor was stored as it rests or not; copied whole are rows kept apart."""
    monkeypatch.setattr(files, "STAGED", 256)  # several pieces of a tensor
    unit, layout = _unit(), SlabLayout.of(_unit(), torch.bfloat16, parts)
    random = RandomWeights(0)
    held = {f"unit.{name}": random.read(name, p.shape).to(stored) for name, p in unit.named_parameters()}
    held["unit.c.weight"] = held["unit.c.weight"].t().contiguous().t()  # torch files may hold rows apart
    torch.save(held, tmp_path / "a.pth")
    source, real = Shards([tmp_path / "a.pth"], KeyMap("unit", [("{*}", "{*}")])), TensorFile.at
    copied: list[int] = []
    monkeypatch.setattr(TensorFile, "at", lambda self, place: (copied.append(place.offset), real(self, place))[1])
    found, size = [], layout.nbytes // parts
    for part in range(parts):
        found.append(allocate(size, CPU))
        layout.fill(found[-1], source, "unit", start=part * size)
    for name, view in layout.views(torch.cat(found)).items():
        assert torch.equal(view, held[f"unit.{name}"].to(torch.bfloat16)), name
    assert set(copied) == {source.place("unit.c.weight").offset}


def test_units_are_vacated_and_pointed_without_a_copy() -> None:
    unit = _unit()
    layout = SlabLayout.of(unit, torch.bfloat16)
    vacate(unit, torch.bfloat16, CPU)
    assert sum(parameter.numel() for parameter in unit.parameters()) == 0
    assert not any(parameter.requires_grad for parameter in unit.parameters())
    slab = allocate(layout.nbytes, CPU)
    point(unit, layout.views(slab))
    assert unit["c"].weight.shape == (30, 40)  # type: ignore[index]
    assert unit["c"].weight.untyped_storage().data_ptr() == slab.untyped_storage().data_ptr()  # type: ignore[index]
