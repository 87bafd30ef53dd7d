"""Files of tensors: both formats are read alike, and each kind of damage is named."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint import files
from liveavatar.checkpoint.files import TensorFile

HELD = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "half": torch.arange(7).to(torch.bfloat16),
    "one": torch.tensor(5.0),
    "none": torch.zeros(0, 3),
    "whole": torch.arange(5),
}


def _written(path: Path, held: dict[str, Tensor] = HELD) -> Path:
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    file = TensorFile(_written(tmp_path / name))
    assert set(file.places) == set(HELD)
    for key, tensor in HELD.items():
        found = file.read(key)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)


def test_views_parameters_and_wrapped_dictionaries_of_torch_files(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    held = {"turned": base.t(), "part": base[1:3, 2:5], "parameter": torch.nn.Parameter(base.clone())}
    torch.save({"state_dict": held, "step": 7}, tmp_path / "a.pth")
    file = TensorFile(tmp_path / "a.pth")
    for key, tensor in held.items():
        assert torch.equal(file.read(key), tensor.detach()), key


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_cut_file_says_so(tmp_path: Path, name: str) -> None:
    path = _written(tmp_path / name)
    content = path.read_bytes()
    for size in (len(content) - 20, len(content) // 2, 12):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"weights\.dir: .*{name}.*truncated") as told:
            TensorFile(path)
        assert str(size) in str(told.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pth does not exist"):
        TensorFile(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="is it a file"):
        TensorFile(tmp_path)
    for number, content in enumerate((b"", b"garbage, and no header", b"\xff" * 64)):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(ValueError, match="neither a safetensors file nor"):
            TensorFile(tmp_path / f"{number}")
    for header in (b"[1, 2]", b"{nothing", b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'):
        (tmp_path / "header").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        with pytest.raises(ValueError, match=r"header of .* is not that of a safetensors file"):
            TensorFile(tmp_path / "header")


def test_a_pickle_that_wants_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is a pickle that wants to run code, and is refused"):
        TensorFile(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_shrinks_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.safetensors")
    file = TensorFile(path)
    os.truncate(path, path.stat().st_size - 40)
    last = max(file.places, key=lambda name: file.places[name].offset)
    with pytest.raises(ValueError, match=r"ended at .* bytes, though it had"):
        file.read(last)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_slow_mount_gives_the_same_and_one_that_goes_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = TensorFile(_written(tmp_path / name)), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, rooms, at: real(fd, [rooms[0][:3]], at))  # three bytes an answer
    for key, tensor in HELD.items():
        assert torch.equal(file.read(key), tensor), key

    def going(fd: int, rooms: list[memoryview], at: int) -> int:
        if at > file.places["matrix"].offset:
            raise OSError(5, "Input/output error")
        return real(fd, [rooms[0][:8]], at)

    monkeypatch.setattr(os, "preadv", going)
    with pytest.raises(ValueError, match=rf"{name} failed after \d+ bytes \(Input/output error\): .* mount still"):
        file.read("matrix")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice about files")
def test_a_disk_is_told_what_is_read_soon_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of a large tensor is announced once, none outside it, and a system that refuses changes nothing."""
    tensor = torch.arange(6 * files.PIECE // 4 + 5, dtype=torch.int32)
    file = TensorFile(_written(tmp_path / "a.safetensors", {"small": torch.zeros(3), "large": tensor}))
    told: list[range] = []

    def advise(number: int, offset: int, nbytes: int, what: int) -> None:
        told.append(range(offset, offset + nbytes))
        raise OSError

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    assert torch.equal(file.read("large"), tensor)
    place = file.places["large"]
    assert told[0].start == place.offset
    assert all(first.stop == second.start for first, second in itertools.pairwise(told))
    assert place.offset + place.span - files.LARGE < told[-1].stop <= place.offset + place.span
    told.clear()
    file.read("small")
    assert not told
