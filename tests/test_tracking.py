"""The run directory: made or refused, logged into, and left with whole files only."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from liveavatar.tracking import check_output_file, make_run_directory, stamp, start_log, write_metrics


def test_a_run_directory_is_made_with_its_parents_and_reused(tmp_path: Path) -> None:
    made = make_run_directory(str(tmp_path / "a" / "b, c=d"))
    assert made.is_dir()
    assert make_run_directory(str(made)) == made
    assert list(made.iterdir()) == []  # the probe is gone


def test_without_a_name_every_run_gets_a_fresh_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("liveavatar.tracking.time.strftime", lambda form: form.replace("%", ""))
    made = [make_run_directory(None) for _ in range(3)]
    assert [path.name for path in made] == ["H-M-S", "H-M-S-1", "H-M-S-2"]
    assert all(path.parent == tmp_path / "outputs" / "Y-m-d" for path in made)


def test_a_place_that_cannot_be_written_is_refused_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for wrong in (file, file / "below"):
        with pytest.raises(ValueError, match=r"output\.dir=.*cannot be written"):
            make_run_directory(str(wrong))
    with pytest.raises(ValueError, match=r"output\.latents=.*cannot be written"):
        check_output_file(str(file / "l.safetensors"), "output.latents")
    with pytest.raises(ValueError, match=r"output\.latents=.*is a folder"):
        check_output_file(str(tmp_path), "output.latents")
    assert file.read_text() == "mine"


def test_a_place_for_latents_is_made_and_what_is_there_is_kept(tmp_path: Path) -> None:
    wanted = tmp_path / "new" / "l.safetensors"
    check_output_file(str(wanted), "output.latents")
    assert list(wanted.parent.iterdir()) == []
    wanted.write_text("earlier")
    check_output_file(str(wanted), "output.latents")
    assert wanted.read_text() == "earlier"


def test_the_log_says_it_short_on_the_screen_and_in_full_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_log(tmp_path)
    start_log(tmp_path)  # a second run in one process does not say things twice
    log = logging.getLogger("liveavatar.anything")
    try:
        raise OSError(errno.EIO, "the disk is ill")
    except OSError as error:
        log.error("it failed: %s", error, exc_info=error)
    assert capsys.readouterr().err == f"it failed: [Errno {errno.EIO}] the disk is ill\n"
    written = (tmp_path / "run.log").read_text()
    assert written.count("it failed") == 1
    assert "Traceback" in written
    start_log(None)
    log.info("unheard on other ranks")
    log.error("heard")
    assert capsys.readouterr().err == "heard\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_silences_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    start_log(tmp_path)
    logging.getLogger("liveavatar").info("still here")
    assert capsys.readouterr().err == "still here\n"


def test_metrics_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metrics(tmp_path, {"speed/rtf": 1.5, "run/finished": True, "weights": "random"})

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="space"):
        write_metrics(tmp_path, {"speed/rtf": 2.5})
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found == {"speed/rtf": 1.5, "run/finished": True, "weights": "random"}


def test_the_stamp_is_flat_and_says_what_a_number_was_measured_on() -> None:
    found = stamp("cpu", threads=1, ranks=2)
    assert json.loads(json.dumps(found)) == found
    assert all(key.startswith("run/") and not isinstance(value, (dict, list)) for key, value in found.items())
    assert found["run/torch"] == torch.__version__.split("+")[0]
    assert (found["run/threads"], found["run/ranks"], found["run/cores"]) == (1, 2, os.cpu_count())
    assert "run/gpu" not in found
