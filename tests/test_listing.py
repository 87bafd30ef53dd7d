"""Lists of requests: each line is checked by itself, and every mistake is told with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from liveavatar.config import compose, kept
from liveavatar.listing import Job, checked, deal, finished_before, read_jobs
from liveavatar.settings import make_request
from tests.running import SMALL, picture, speech, write_wav

PROMPT = 'It costs ${seed}, \\${seed} and "more" {x: y}\nnext'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "me.png")
    write_wav(tmp_path / "voice.wav", speech(0.8))
    return tmp_path


def _config(folder: Path, *lines: Any, overrides: tuple[str, ...] = ()) -> DictConfig:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "list.jsonl").write_text(text, encoding="utf-8")
    given = [f"request.image={folder}/me.png", f"request.audio={folder}/voice.wav", f"requests={folder}/list.jsonl"]
    return compose("infer", [*SMALL, *given, *overrides])


def test_values_of_a_line_stand_over_the_request_of_the_configuration(folder: Path) -> None:
    lines = ({"prompt": PROMPT, "seed": 7, "size": "128*64", "name": "a b/c"}, "", {"max_seconds": 0.5})
    cfg = _config(folder, *lines)
    first, second = [checked(job, cfg, folder) for job in read_jobs(cfg)]
    assert (first.name, first.line, first.refused) == ("0001-a-b-c", 1, None)
    assert (second.name, second.line, second.refused) == ("0003-me", 3, None)  # the number of its line in the file
    asked = make_request(first.config(cfg, folder / "out"))
    assert (asked.prompt, asked.seed, asked.size, asked.image) == (PROMPT, 7, 128 * 64, folder / "me.png")
    assert make_request(second.config(cfg, folder)).seed == 0
    assert first.config(cfg, folder / "out").output.dir == str(folder / "out" / first.name)
    assert (first.seconds, second.seconds) == pytest.approx((0.8, 0.5))
    assert first.cost == pytest.approx(0.8 * 128 * 64)


BAD: list[tuple[Any, str]] = [
    ('{"seed": ', r"it is no JSON"),
    ("[1]", r"it is no JSON object"),
    ({"portrait": "me.png"}, r"'portrait' is no key of a request; choose from image, audio, .*seed, name"),
    ({"image": "gone.png"}, r"request\.image=gone\.png does not exist"),
    ({"image": None}, r"request\.image is empty"),
    ({"audio": ["a.wav"]}, r"request\.audio must be text, a number or null"),
    ({"seed": 1.5}, r"seed=1\.5 must be a whole number"),
    ({"size": "4*4"}, r"request\.size='4\*4'"),
    ({"max_seconds": -1}, r"request\.max_seconds=-1"),
    ({"pose": "gone.mp4"}, r"request\.pose=gone\.mp4 does not exist"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[str(line) for line, _ in BAD])
def test_a_mistake_is_told_with_file_line_and_key(folder: Path, line: Any, message: str) -> None:
    cfg = _config(folder, {}, line)
    good, bad = [checked(job, cfg, folder) for job in read_jobs(cfg)]
    assert good.refused is None
    assert bad.refused is not None
    with pytest.raises(ValueError, match=rf"list\.jsonl, line 2: .*{message}"):
        raise ValueError(bad.refused)


def test_a_list_that_cannot_be_used_at_all(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"requests=.*list\.jsonl holds no request"):
        read_jobs(_config(folder, "", "  "))
    with pytest.raises(ValueError, match=r"requests=.*gone\.jsonl cannot be read \(No such file"):
        read_jobs(_config(folder, {}, overrides=(f"requests={folder}/gone.jsonl",)))
    with pytest.raises(ValueError, match=r"requests=.*me\.png cannot be read \(it is not UTF-8"):
        read_jobs(_config(folder, {}, overrides=(f"requests={folder}/me.png",)))
    with pytest.raises(ValueError, match=r"output\.latents=a/b\.safetensors.*output\.latents=b\.safetensors"):
        read_jobs(_config(folder, {}, overrides=("output.latents=a/b.safetensors",)))
    with pytest.raises(ValueError, match=r"sink\.path=one\.mp4 would be written by every request"):
        read_jobs(_config(folder, {}, overrides=("sink.path=one.mp4",)))


def test_work_is_dealt_evenly_and_alike_on_every_rank() -> None:
    jobs = [Job(line, str(line), cost=cost) for line, cost in enumerate((3.0, 1.0, 7.0, 2.0, 2.0, 5.0), 1)]
    hands = deal(jobs, 2)
    assert [[job.cost for job in hand] for hand in hands] == [[7.0, 2.0, 1.0], [5.0, 3.0, 2.0]]
    assert hands == deal(list(reversed(jobs)), 2)
    assert deal(jobs[:1], 3) == [[jobs[0]], [], []]


def test_only_what_was_finished_with_the_same_words_counts_as_finished(folder: Path) -> None:
    cfg = _config(folder, {"prompt": PROMPT})
    (job,) = read_jobs(cfg)
    here = folder / job.name
    assert not finished_before(job, cfg, folder)
    here.mkdir()
    (here / "config.yaml").write_text(kept(job.config(cfg, folder)), encoding="utf-8")
    (here / "metrics.json").write_text('{"run/finished": false}')
    assert not finished_before(job, cfg, folder)
    (here / "metrics.json").write_text('{"run/finished": true}')
    assert finished_before(job, cfg, folder)
    assert finished_before(job, _config(folder, {"prompt": PROMPT}, overrides=("+strategy=fsdp_stream",)), folder)
    for changed in ("sampler.steps=2", "seed=1", "rollout.align_sound=false"):
        assert not finished_before(job, _config(folder, {"prompt": PROMPT}, overrides=(changed,)), folder)


def test_what_is_kept_reads_back_as_it_was(folder: Path) -> None:
    cfg = _config(folder, {"prompt": PROMPT})
    own = read_jobs(cfg)[0].config(cfg, folder / "${x}")
    again = OmegaConf.create(kept(own))
    assert isinstance(again, DictConfig)
    assert make_request(again) == make_request(own)
    assert make_request(own).prompt == PROMPT
    assert again.output.dir == own.output.dir == f"{folder}/${{x}}/0001-me"
    assert kept(again) == kept(own)
