"""What a folder of fetched files should be: sizes and hashes that were noted when it was fetched (`files.json`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

LISTING = "liveavatar-files.json"
PIECE = 2**24


@dataclass(frozen=True)
class Noted:
    """One file as its publisher describes it; `sha256` empty where the publisher gives none."""

    size: int
    sha256: str = ""


def write_listing(folder: Path, files: Mapping[str, Noted]) -> None:
    """Note what lies below a folder, beside what is noted there already; by paths relative to it."""
    known = read_listing(folder) | dict(files)
    draft = folder / f"{LISTING}.part"
    draft.write_text(
        json.dumps({"format": 1, "files": {name: asdict(noted) for name, noted in sorted(known.items())}}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    draft.replace(folder / LISTING)


def read_listing(folder: Path) -> dict[str, Noted]:
    """What was noted of a folder; nothing where nobody did. Raises ValueError for a file that is no listing."""
    path = folder / LISTING
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text("utf-8"))["files"]
        return {str(name): Noted(int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"weights.dir: {path} is damaged ({error}): delete it, then fetch again") from error


def check_listing(folder: Path, verify: bool, progress: Callable[[int], None] = lambda _: None) -> None:
    """Compare files with what was noted of them: sizes, and with `verify` hashes too.

    A file that is not there at all is left to whoever needs it. Raises ValueError with what was expected and found.
    """
    for name, noted in read_listing(folder).items():
        path = folder / name
        if path.is_file():
            check_file(path, noted, verify, progress)


def check_file(path: Path, noted: Noted, verify: bool, progress: Callable[[int], None] = lambda _: None) -> None:
    """Raises ValueError for a file of another size, or with `verify` another hash, than was noted."""
    size = path.stat().st_size
    if size != noted.size:
        raise ValueError(f"weights.dir: {path} has {size} bytes and should have {noted.size}: fetch it again")
    if verify and noted.sha256:
        found = hashed(path, progress)
        if found != noted.sha256:
            raise ValueError(
                f"weights.dir: {path} is damaged: its SHA-256 is {found} and should be {noted.sha256}. Delete it and "
                "fetch it again"
            )


def hashed(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file, in hexadecimal; `progress` is told the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read from the disk and not from memory where the system can be asked to."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(2**24):
            digest.update(piece)
    return digest.hexdigest()


def read_back(path: Path, written: str) -> None:
    """Raises ValueError where a file that was just written has another SHA-256 on the disk than its bytes had."""
    found = digest_of(path)
    if found != written:
        raise ValueError(f"to: {path} does not read back as it was written ({found} for {written}): is the disk sound?")
