"""Who holds what: reports add up, modules are counted once, sizes are told in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from liveavatar.memory.ledger import Ledger, in_words, module_bytes
from liveavatar.models.dit.cache import CacheShape, StreamCaches
from liveavatar.strategies.base import Traffic
from liveavatar.strategies.kv import HostCaches

CPU = torch.device("cpu")


def test_reports_add_up_in_order_and_go_away_again() -> None:
    ledger = Ledger()

    def more() -> dict[str, tuple[int, int]]:
        return {"vae": (5, 0), "weights": (1, 2), "mine": (7, 0), "sink": (0, 0)}

    ledger.add(lambda: {"weights": (10, 20)})
    ledger.add(more)
    assert list(ledger.read().items()) == [("weights", (11, 22)), ("vae", (5, 0)), ("mine", (7, 0))]
    ledger.drop(more)
    assert ledger.read() == {"weights": (10, 20)}


def test_bound_methods_can_be_dropped() -> None:
    caches = StreamCaches(CacheShape(1, 2, 4, 1, 2), 2, torch.empty(0))
    ledger = Ledger()
    ledger.add(caches.held)
    assert ledger.read()
    ledger.drop(caches.held)
    assert ledger.read() == {}


def test_a_module_counts_once_by_where_it_lies() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    module.append(module[0])
    with torch.device("meta"):
        module.append(nn.Linear(100, 100))
    floats = 4 * (16 + 4 + 4 + 4 + 4) + 8
    assert module_bytes(module, CPU) == (floats, 0)
    assert module_bytes(module, torch.device("cuda")) == (0, floats)


def test_modules_are_counted_anew_at_refresh_alone() -> None:
    ledger, module = Ledger(), nn.Linear(4, 4, bias=False)
    ledger.add_module("text", module, CPU)
    assert ledger.read() == {"text": (64, 0)}
    module.weight = nn.Parameter(torch.empty(0))
    assert ledger.read() == {"text": (64, 0)}
    ledger.refresh()
    assert ledger.read() == {}


def test_caches_tell_their_parts_and_an_old_sink_that_is_still_seen() -> None:
    caches = StreamCaches(CacheShape(layers=3, heads=2, channels=4, frame_tokens=5, sink_tokens=7), 2, torch.empty(0))
    held = caches.held()
    assert sum(device for device, _ in held.values()) == caches.nbytes
    old = caches.sink
    caches.sink = old.another()
    assert caches.held()["sink"][0] == 2 * held["sink"][0]
    del old
    assert caches.held() == held


def test_caches_in_host_memory_are_the_hosts() -> None:
    shape = CacheShape(layers=3, heads=2, channels=4, frame_tokens=5, sink_tokens=7)
    traffic = Traffic()
    caches = HostCaches(shape, range(2), torch.empty(0), 0, traffic)
    held = caches.held()
    assert held["caches"] == (0, traffic.parked)
    assert held["scratch"][0] + held["sink"][0] == caches.nbytes


@pytest.mark.parametrize(
    ("nbytes", "words"), [(21.34e9, "21.3 GB"), (38_550_784, "38.6 MB"), (1500, "1.5 kB"), (3, "3 bytes")]
)
def test_sizes_in_words(nbytes: float, words: str) -> None:
    assert in_words(nbytes) == words
