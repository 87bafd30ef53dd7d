"""Attention against its definition."""

import sys
from types import SimpleNamespace

import pytest
import torch

from liveavatar.ops.attention import PACKAGES, attend, attention, plain, use
from tests.scene import draw, make_dit


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_the_softmax_of_scaled_scores(heads: int) -> None:
    q, k, v = draw(0, 2, 5, heads, 6), draw(1, 2, 9, heads, 6), draw(2, 2, 9, heads, 6)
    scores = torch.einsum("bqhc,bkhc->bhqk", q.double(), k.double()) / 6**0.5
    expected = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v.double()).float()
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_the_order_of_keys_does_not_matter_but_their_pairing_does() -> None:
    q, k, v = draw(0, 1, 4, 2, 6), draw(1, 1, 7, 2, 6), draw(2, 1, 7, 2, 6)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(attend(q, k[:, order], v[:, order]), attend(q, k, v), rtol=1e-5, atol=1e-6)
    assert (attend(q, k[:, order], v) - attend(q, k, v)).abs().max() > 0.1


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["math", "flash"])
def test_kernels_that_a_cpu_has_compute_the_same(name: str) -> None:
    q, k, v = draw(0, 1, 20, 2, 16), draw(1, 1, 30, 2, 16), draw(2, 1, 30, 2, 16)
    found = attention(name, CPU, torch.float32)
    torch.testing.assert_close(found(q, k, v), attend(q, k, v), rtol=1e-5, atol=1e-6)


def test_three_plain_operations_compute_the_same_forward_and_back() -> None:
    given = [draw(i, 1, n, 2, 16) for i, n in enumerate((20, 30, 30))]
    ours, fused = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    torch.testing.assert_close(plain(*ours), attend(*fused), rtol=1e-5, atol=1e-6)
    plain(*ours).square().sum().backward()
    attend(*fused).square().sum().backward()
    for mine, theirs in zip(ours, fused, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_what_a_device_cannot_do_is_told_before_a_run(name: str) -> None:
    with pytest.raises(LookupError, match=f"{name} does not work on cpu with float32"):
        attention(name, CPU, torch.float32)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_used_where_they_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(LookupError, match=f"{name} needs the package {PACKAGES[name]}"):
        attention(name, CPU, torch.float32)
    calls = []

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        calls.append(q.shape)
        return (attend(q, k, v), None) if name == "flash_attn3" else attend(q, k, v)

    monkeypatch.setitem(sys.modules, PACKAGES[name], SimpleNamespace(flash_attn_func=flash_attn_func))
    q, k, v = draw(0, 1, 20, 2, 16), draw(1, 1, 30, 2, 16), draw(2, 1, 30, 2, 16)
    assert torch.equal(attention(name, CPU, torch.float32)(q, k, v), attend(q, k, v))
    assert calls[-1] == q.shape


def test_a_model_takes_the_backend_everywhere() -> None:
    dit, calls = make_dit(), []

    def counting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return attend(q, k, v)

    assert use(dit, counting) == 2 * dit.num_layers + 2  # self and cross per block, one per injector
    assert all(part.attend is counting for part in dit.modules() if hasattr(part, "attend"))
