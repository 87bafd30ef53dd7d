"""The wheel carries the configurations and the demo's inputs, and works from wherever it is put."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_USE = """
from pathlib import Path
import liveavatar
from liveavatar.config import asset, compose, conf_dir
home = Path(liveavatar.__file__).parent
assert Path(conf_dir()) == home / "conf", conf_dir()
config = compose("infer", ["+strategy=fsdp_stream"])
assert Path(config.request.image) == home / "assets" / "toon.jpg", config.request.image
print(home)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="comes with the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_everything_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, folder in (("conf", "liveavatar/conf"), ("liveavatar", "liveavatar")):
        for file in (ROOT / kind).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{folder}/{file.relative_to(ROOT / kind).as_posix()}" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith("NOTICE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"liveavatar"}  # no tests, no experiments


def test_the_console_script_is_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "liveavatar-infer = liveavatar.infer:main" in archive.read(entry).decode()


def test_it_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "site packages", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(place)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
    use = subprocess.run(
        [sys.executable, "-c", _USE], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert use.returncode == 0, use.stderr
    assert use.stdout.strip() == str(place / "liveavatar")
