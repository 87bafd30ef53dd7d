"""What moves the weights: AdamW for all, or Muon for matrices and kernels inside a network and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NAMES = ("adamw", "muon")


class Optimiser(Protocol):
    """The part of `torch.optim.Optimizer` that the loop uses."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> None: ...


class Together:
    """Several optimisers as one, each with parameters of its own (an `Optimiser`)."""

    def __init__(self, members: Mapping[str, torch.optim.Optimizer]) -> None:
        self.members = dict(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for member in self.members.values() for group in member.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for member in self.members.values():
            member.zero_grad(set_to_none)

    def step(self) -> None:
        for member in self.members.values():
            member.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state_dict: Any) -> None:
        for name, member in self.members.items():
            member.load_state_dict(state_dict[name])


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is made orthogonal, matrix by matrix (Jordan et al. 2024).

    The step's length is matched to AdamW's (Liu et al. 2025, arXiv:2502.16982). As `torch.optim.Muon`, in the numbers
    that the gradients have: that one rounds to bfloat16 on the way, which CPUs without such products take ten times as
    long over. A kernel of a convolution is the matrix [out, in x taps]. Matrices of one shape are worked on together.
    """

    COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            steps: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                steps.setdefault(ahead.shape, []).append((parameter, ahead))
            for shape, pairs in steps.items():
                length = group["lr"] * 0.2 * max(shape) ** 0.5
                turned = orthogonal(torch.stack([ahead for _, ahead in pairs]), self.COEFFICIENTS, self.ROUNDS)
                for (parameter, _), step in zip(pairs, turned, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(step.view_as(parameter), alpha=-length)


def orthogonal(stack: Tensor, coefficients: tuple[float, float, float], rounds: int) -> Tensor:
    """The nearest orthogonal matrix of each [n, rows, columns], roughly: singular values end between 0.7 and 1.2."""
    a, b, c = coefficients
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is stack else x.mT


def _inside(name: str, parameter: Tensor) -> bool:
    if parameter.dim() == 2:
        return name.startswith("blocks.")
    # a time_conv starts as an average of frames, which is not to be turned at once
    return parameter.dim() >= 4 and "_block" in name and name.endswith("weight") and "time_conv" not in name


def make_optimiser(
    modules: Mapping[str, nn.Module], name: str, lr: float, betas: Sequence[float], weight_decay: float
) -> Optimiser:
    """The optimiser of all trainable parameters.

    Muon takes the matrices of `blocks.…` and the kernels of residual blocks of any module, at AdamW's learning rate;
    embeddings, heads, norms and what stands at the ends of a codec stay with AdamW.
    """
    named = [(key, p) for module in modules.values() for key, p in module.named_parameters() if p.requires_grad]
    inner = [p for key, p in named if name == "muon" and _inside(key, p)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay)
    if not inner:
        return adamw
    return Together({"adamw": adamw, "muon": Muon(inner, lr, weight_decay=weight_decay)})
