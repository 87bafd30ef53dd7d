"""The checkpoint folder: are its files there, whole and readable? Headers only; no tensor is loaded."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from liveavatar.doctor.finding import FAIL, NOTE, OK, WARN, Finding
from liveavatar.memory.ledger import in_words

GROUP = "weights"
DEPTH = 4
HEADER = 100_000_000
"""Bytes: no header of a safetensors file is longer."""

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
"""Folders of weights that ship with the package, by the name of the model."""

PARTIAL = (".incomplete", ".part", ".tmp", ".aria2", ".crdownload")
TORCH = (".pth", ".pt", ".bin", ".ckpt")
POINTER = b"version https://git-lfs"
FETCH = "python -m liveavatar.convert fetch weights.dir={folder}"


def check_weights(config: Mapping[str, Any]) -> list[Finding]:
    """What `weights` names: random ones, a folder, or a LoRA file; and the tokenizer's folder of the model."""
    node: Mapping[str, Any] = config.get("weights") or {}
    found = []
    target = str(node.get("_target_", ""))
    shipped = SHIPPED / str(node.get("model"))
    if target.endswith(".embedded") and shipped.is_dir():
        found += check_folder(shipped)
    elif target.endswith((".embedded", ".RandomWeights")):
        found.append(
            Finding(
                GROUP,
                "weights",
                NOTE,
                "random: the picture will be noise, and the machinery is shown",
                "weights.dir=… once you have a checkpoint",
            )
        )
    if node.get("dir"):
        found += check_folder(Path(str(node["dir"])).expanduser())
    for path in _loras(node.get("lora")):
        trouble = _trouble(path) if path.is_file() else "does not exist"
        found.append(
            Finding(
                GROUP,
                "weights.lora",
                FAIL if trouble else OK,
                f"{path}: {trouble or 'readable'}",
                "weights.lora=FILE" if trouble else "",
            )
        )
    tokenizer = ((config.get("model") or {}).get("tokenizer") or {}).get("folder")
    if tokenizer:
        found.append(_tokenizer(Path(str(tokenizer)).expanduser()))
    return found


def _loras(given: Any) -> list[Path]:
    """The LoRA files that `weights.lora` names; `auto` names none."""
    if given in (None, "auto"):
        return []
    entries = given if isinstance(given, list) else [given]
    paths = [entry.get("path", "") if isinstance(entry, Mapping) else entry for entry in entries]
    return [Path(str(path)).expanduser() for path in paths]


def check_folder(folder: Path) -> list[Finding]:
    """Every file of weights below a folder, the indices that name them, and leftovers of broken downloads."""
    mend = FETCH.format(folder=folder)
    if not folder.is_dir():
        return [Finding(GROUP, "weights.dir", FAIL, f"{folder} is no folder", mend)]
    files = [path for path in _below(folder, DEPTH) if path.suffix in (".safetensors", *TORCH)]
    found = []
    for path in _below(folder, DEPTH):
        if path.name.endswith(".index.json"):
            found += _index(path, mend)
        elif path.suffix in PARTIAL:
            found.append(Finding(GROUP, path.name, WARN, f"{path}: left over from a broken download", mend))
    broken = {path: trouble for path in files if (trouble := _trouble(path))}
    found += [Finding(GROUP, path.name, FAIL, f"{path}: {trouble}", mend) for path, trouble in broken.items()]
    if not files:
        return [*found, Finding(GROUP, "weights.dir", FAIL, f"{folder} holds no file of weights", mend)]
    size = sum(path.stat().st_size for path in files)
    whole = len(files) - len(broken)
    said = f"{folder}: {whole} of {len(files)} files whole, {in_words(size)}"
    return [Finding(GROUP, "weights.dir", OK if not broken else FAIL, said, "" if not broken else mend), *found]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Files below a folder; the download tool's own hidden folder too, for its leftovers."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and depth > 0:
            yield from _below(path, depth - 1)
        elif path.is_file():
            yield path


def _index(path: Path, mend: str) -> list[Finding]:
    try:
        named = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return [Finding(GROUP, path.name, FAIL, f"{path} is no readable index: {error}", mend)]
    missing = [name for name in named if not (path.parent / name).is_file()]
    if missing:
        return [
            Finding(
                GROUP, path.name, FAIL, f"{path} names {len(missing)} missing files: {', '.join(missing[:3])}", mend
            )
        ]
    return [Finding(GROUP, path.name, OK, f"all {len(named)} files of the index are there")]


def _trouble(path: Path) -> str | None:
    """What is wrong with a file of weights, by its header and its size; None for nothing."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(POINTER):
                return "a Git LFS pointer, not the file itself (git lfs pull)"
            if path.suffix == ".safetensors":
                file.seek(0)
                return _safetensors(file, size)
        if start[:2] == b"PK" and not zipfile.is_zipfile(path):
            return "cut short: the end of the archive is missing"
        return "empty" if size == 0 else None
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _safetensors(file: BinaryIO, size: int) -> str | None:
    if size < 8:
        return "cut short: no header"
    (count,) = struct.unpack("<Q", file.read(8))
    if count > HEADER:
        return "no safetensors file"
    if 8 + count > size:
        return "cut short: the header is not whole"
    try:
        header = json.loads(file.read(count))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "its header cannot be read"
    wanted = 8 + count + end
    return None if size == wanted else f"{in_words(size)} instead of {in_words(wanted)}: cut short or damaged"


def _tokenizer(folder: Path) -> Finding:
    names, given = ("tokenizer.json", "spiece.model"), folder
    below = "google/umt5-xxl"
    found = (folder / below, *sorted(folder.glob(f"*/{below}")))
    folder = next((path for path in found if path.is_dir()), folder)  # as `models.text.UmT5Tokenizer` looks
    if folder.is_dir() and any((folder / name).is_file() for name in names):
        return Finding(GROUP, "tokenizer", OK, str(folder))
    return Finding(
        GROUP,
        "tokenizer",
        FAIL,
        f"{folder} holds neither {' nor '.join(names)}",
        FETCH.format(folder=given),
    )
