"""Recognising a shortage of memory, and telling it: by every library's words, and in one paragraph."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from liveavatar.memory.advice import fitting, savings
from liveavatar.memory.failure import Failure, Saving, asked_for, on_device, shortage
from liveavatar.memory.readings import Room
from tests.memory.test_rest import _plain

GB = 10**9
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.02 GiB is free."
)


def _raised(act: object) -> BaseException:
    assert callable(act)
    with pytest.raises(BaseException) as raised:
        act()
    return raised.value


@pytest.mark.parametrize(
    ("error", "asked", "device"),
    [
        (torch.OutOfMemoryError(CUDA), int(2.5 * 2**30), True),
        (RuntimeError("CUDA error: out of memory"), None, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."), 12, False),
        (MemoryError(), None, False),
        (MemoryError("Unable to allocate 3.00 GiB for an array with shape (3,)"), 3 * 2**30, False),
        (RuntimeError("std::bad_alloc"), None, False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None, False),
    ],
)  # fmt: skip
def test_shortages_are_recognised(error: BaseException, asked: int | None, device: bool) -> None:
    found = shortage(error)
    assert found is error
    assert (asked_for(error), on_device(error)) == (asked, device)


def test_what_the_libraries_here_really_raise() -> None:
    torchs = _raised(lambda: torch.empty(1 << 46, dtype=torch.uint8))
    assert shortage(torchs) is torchs
    assert asked_for(torchs) == 1 << 46
    numpys = _raised(lambda: np.empty(1 << 46, dtype=np.uint8))
    assert shortage(numpys) is numpys
    assert asked_for(numpys) == 1 << 46
    pythons = _raised(lambda: bytearray(1 << 46))
    assert shortage(pythons) is pythons


def test_the_cause_of_another_error_is_found() -> None:
    def wrap() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("the picture cannot be read") from error

    assert isinstance(shortage(_raised(wrap)), MemoryError)


@pytest.mark.parametrize("error", [ValueError("memory"), RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "full")])
def test_other_failures_are_left_alone(error: BaseException) -> None:
    assert shortage(error) is None


def _failure(**changes: object) -> Failure:
    given: dict[str, object] = {
        "phase": "steady", "unit": "blocks.7", "cells": ((3, 1),), "device": "cuda:0", "rank": 0, "asked": 2 * GB,
        "room": Room(GB, 24 * GB, "the card"), "short": GB, "planned": (20 * GB, 21 * GB), "said": "CUDA out of memory",
        "held": {"weights": (8 * GB, 0), "caches": (10 * GB, 0), "text": (11, 0)},
        "advice": (Saving("strategy.caches=host", 10 * GB), Saving("strategy.resident=0", 2 * GB), Saving("third")),
    }  # fmt: skip
    return Failure(**(given | changes))  # type: ignore[arg-type]


def test_the_paragraph_says_where_what_and_what_to_write() -> None:
    said = _failure().sentence("phase steady, block 3, step 1, blocks.7", "out/memory.json")
    for words in (
        "out of memory on cuda:0 in phase steady, block 3, step 1, blocks.7", "2.0 GB asked, 1.0 GB free of 24.0 GB",
        "key and value caches 10.0 GB, DiT weights 8.0 GB", "The plan foresaw 20.0 GB here and 21.0 GB at its peak",
        "strategy.caches=host (saves about 10.0 GB) or strategy.resident=0", "out/memory.json",
    ):  # fmt: skip
        assert words in said
    assert "third" not in said
    assert len(said) < 600
    assert "\n" not in said


def test_the_paragraph_claims_no_more_than_is_known() -> None:
    said = _failure(short=100 * GB, planned=None, rank=2, asked=None, held={}).sentence("phase steady", None)
    assert said.startswith("rank 2: ")
    assert "No one setting saves that much" in said
    assert "plan" not in said
    assert "unknown amount" in said
    assert "nothing yet" in said


HELD = {"weights": (32 * GB, 0), "caches": (40 * GB, 0), "activations": (2 * GB, 0), "scratch": (GB, 0)}


def _settings(*overrides: str, held: dict[str, tuple[int, int]] = HELD, cpu: bool = False, short: int = 1) -> list[str]:
    config = _plain("model=s2v_14b", "precision=bf16", *overrides)
    return [saving.setting for saving in savings(config, held, "steady", cpu, short, unit_bytes=GB)]


def test_advice_follows_what_is_held_and_what_was_chosen() -> None:
    assert _settings()[0] == "+strategy=fsdp_stream strategy.source=host"
    assert _settings(cpu=True)[0] == "+strategy=fsdp_stream strategy.source=disk"
    streamed = _settings("+strategy=fsdp_stream", "strategy.resident=3", "strategy.slots=4")
    assert streamed[:3] == ["strategy.resident=0", "strategy.slots=2", "strategy.source=host"]
    for pipeline in ("diagonal_pipeline", "timestep_pipeline"):  # they keep their cut, and rest less on the card
        assert _settings(f"+strategy={pipeline}")[:2] == ["strategy.caches=host", "strategy.source=host"]
        assert _settings(f"+strategy={pipeline}", "strategy.caches=host")[0] == "strategy.source=host"
    wavefront = _settings("+strategy=fsdp_stream", "strategy.source=host", "parallel.schedule=wavefront")
    assert wavefront[:2] == [
        "strategy.caches=host",
        "+strategy=diagonal_pipeline fabric.devices=2 (with a second card)",
    ]
    assert not any("fsdp_stream" in setting for setting in _settings(held={"weights": (GB, 0)}))  # it would cost more


def test_what_saves_enough_comes_first_and_the_picture_shrinks_last() -> None:
    chosen = ("+strategy=fsdp_stream", "strategy.source=host", "strategy.resident=3")
    assert _settings(*chosen, short=5 * GB)[0] == "strategy.caches=host"
    assert _settings(*chosen)[0] == "strategy.resident=0"
    small = _settings(*chosen, "strategy.resident=0", "strategy.caches=host", "fabric.devices=2")
    assert small == ["request.size=448*256"]


def test_what_would_fit_is_found_by_trying() -> None:
    config = _plain("model=s2v_14b")
    main = Room(0, 100 * GB, "the machine's memory")
    on_card = [saving.setting for saving in fitting(config, 1, main, 48 * GB)]
    assert on_card == ["+strategy=fsdp_stream strategy.source=host", "+strategy=fsdp_stream strategy.source=disk"]
    assert next(saving.setting for saving in fitting(config, 1, main, 24 * GB)).endswith("precision=bf16")
    assert fitting(config, 1, main, 8 * GB) == ()
