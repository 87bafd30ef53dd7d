"""Getting the published files: what is needed first, then one after another, each checked when it is there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from liveavatar.checkpoint.listing import Noted, check_file, write_listing
from liveavatar.checkpoint.published import BASE

log = logging.getLogger(__name__)

RESERVE = 2**30
"""Bytes of the disk that stay free."""


@dataclass(frozen=True)
class Repository:
    """A repository, the folder below `weights.dir` that it goes to, and the files that are needed of it."""

    repo: str
    folder: str
    patterns: tuple[str, ...]


REPOSITORIES = (
    Repository(
        "Wan-AI/Wan2.2-S2V-14B",
        BASE,
        (
            "config.json", "diffusion_pytorch_model*", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth",
            "google/umt5-xxl/*", "wav2vec2-large-xlsr-53-english/*",
        ),
    ),
    Repository("Quark-Vision/Live-Avatar", "LiveAvatar", ("liveavatar.safetensors",)),
)  # fmt: skip
SAFE = "model.safetensors"
UNUSED = ("*.msgpack", "*.h5", "*.gguf", "*/eval.py", "*/*.txt", "*/language_model/*", "*/log_*", "*/alphabet.json")


@dataclass(frozen=True)
class File:
    """One file to be fetched; `name` in its repository, `revision` the commit that was listed."""

    repo: str
    revision: str
    name: str
    folder: str
    noted: Noted


def fetch_published(folder: Path) -> Path:
    """Fetch what a run of `model=s2v_14b` needs into `folder`, go on where an earlier call stopped, and check it all.

    Sizes are known before the first byte: a disk that is too small is refused at once. Each file is compared with its
    publisher's size and SHA-256, which are noted beside the files. Raises ValueError for a repository that cannot be
    listed, a disk that is too small, and a file that is not what its publisher says.
    """
    files = [file for published in REPOSITORIES for file in _listed(published)]
    left = [file for file in files if not _there(folder, file)]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sum(file.noted.size for file in left) - _begun(folder)
    free = shutil.disk_usage(folder).free
    log.info("%d files, %.1f GB; %d of them, %.1f GB, to fetch", len(files), _gb(files), len(left), _gb(left))
    if wanted + RESERVE > free:
        raise ValueError(
            f"weights.dir={folder}: {wanted / 1e9:.1f} GB are still to be fetched, and its disk has "
            f"{free / 1e9:.1f} GB free: make room, or name a folder on another disk"
        )
    for file in left:
        _fetch(folder, file)
        path = folder / file.folder / file.name
        check_file(path, file.noted, verify=True)
        write_listing(folder, {f"{file.folder}/{file.name}": file.noted})
    return folder


def _listed(published: Repository) -> Iterator[File]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(published.repo, files_metadata=True)
    except Exception as error:
        raise ValueError(
            f"{published.repo} cannot be listed ({error}): is there a network, and HF_TOKEN where one is needed? "
            "Files that were fetched elsewhere can be put into weights.dir by hand"
        ) from error
    safe = {Path(sibling.rfilename).parent for sibling in info.siblings or [] if sibling.rfilename.endswith(SAFE)}
    for sibling in info.siblings or []:
        name = sibling.rfilename
        if name.endswith("pytorch_model.bin") and Path(name).parent in safe:
            continue  # the same tensors twice
        wanted = any(fnmatch(name, pattern) for pattern in published.patterns)
        if not wanted or any(fnmatch(name, pattern) for pattern in UNUSED) or Path(name).is_absolute() or ".." in name:
            continue
        lfs: Any = sibling.lfs
        size = sibling.size if sibling.size is not None else 0
        noted = Noted(int(lfs.size if lfs else size), str(lfs.sha256 if lfs else ""))
        yield File(published.repo, str(info.sha), name, published.folder, noted)


def _there(folder: Path, file: File) -> bool:
    """Whether a file is there as an earlier call has checked it."""
    from liveavatar.checkpoint.listing import read_listing

    path = folder / file.folder / file.name
    known = read_listing(folder).get(f"{file.folder}/{file.name}")
    return path.is_file() and path.stat().st_size == file.noted.size and known == file.noted


def _fetch(folder: Path, file: File) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(file.repo, file.name, revision=file.revision, local_dir=folder / file.folder)
    except Exception as error:
        raise ValueError(
            f"fetching {file.name} of {file.repo} stopped ({error}): the same command goes on from here"
        ) from error


def _begun(folder: Path) -> int:
    """Bytes of files that an earlier call has begun."""
    return sum(path.stat().st_size for path in folder.glob("*/.cache/**/*.incomplete"))


def _gb(files: list[File]) -> float:
    return sum(file.noted.size for file in files) / 1e9
