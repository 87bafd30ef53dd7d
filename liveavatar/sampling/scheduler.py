"""The flow-matching Euler schedule that the distilled weights were trained on (semantics, 7)."""

import torch
from jaxtyping import Float
from torch import Tensor

TRAIN_TIMESTEPS = 1000
MAX_STEPS = 8


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1: shift * s / (1 + (shift - 1) * s), as for high resolutions (arXiv:2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class EulerSampler:
    """Noise levels and the Euler step along the predicted velocity.

    `twice` applies the shift to the training levels and again to the chosen ones, as the released weights were
    trained: with 4 steps the levels are 1, 0.8577, 0.6022, 0.0089, 0. Stateless: the step number is an argument.

    Raises ValueError unless 1 <= steps <= 8 and shift > 0.
    """

    def __init__(self, steps: int = 4, shift: float = 3.0, twice: bool = True) -> None:
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(
                f"sampler.steps={steps}: a block is denoised in 1 to {MAX_STEPS} steps (each has its own cache); "
                "the released weights were distilled for sampler.steps=4"
            )
        if shift <= 0:
            raise ValueError(f"sampler.shift={shift} must be positive; the released weights use sampler.shift=3")
        smallest = torch.tensor(1 / TRAIN_TIMESTEPS, dtype=torch.float64)
        if twice:
            smallest = shifted(smallest, shift)
        levels = shifted(torch.linspace(1, float(smallest), steps, dtype=torch.float64), shift)
        self.steps = steps
        self.sigmas: Float[Tensor, " levels"] = torch.cat((levels, torch.zeros(1, dtype=torch.float64))).float()
        self.timesteps: Float[Tensor, " steps"] = self.sigmas[:-1] * TRAIN_TIMESTEPS

    def step(self, x: Float[Tensor, "..."], velocity: Float[Tensor, "..."], index: int) -> Float[Tensor, "..."]:
        """One Euler step from level `index` to the next, in float32, returned in the dtype of the velocity."""
        delta = float(self.sigmas[index + 1] - self.sigmas[index])
        return (x.float() + delta * velocity.float()).to(velocity.dtype)
