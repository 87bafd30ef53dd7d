"""The Euler schedule against the public implementation of the same method."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from liveavatar.sampling.scheduler import EulerSampler
from tests.scene import draw


@pytest.mark.parametrize("steps", range(1, 9))
def test_levels_and_steps_are_those_of_the_public_scheduler(steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    theirs.set_timesteps(steps)
    ours = EulerSampler(steps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=1e-3)
    x = y = draw(0, 1, 16, 3, 4, 4)
    for index, t in enumerate(theirs.timesteps):
        velocity = draw(1 + index, *x.shape)
        y = theirs.step(velocity, t, y, return_dict=False)[0]
        x = ours.step(x, velocity, index)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_the_released_levels_and_the_plainly_shifted_ones() -> None:
    torch.testing.assert_close(
        EulerSampler(4).sigmas, torch.tensor([1, 0.857692, 0.602151, 0.0089286, 0]), rtol=0, atol=1e-6
    )
    plain = EulerSampler(4, twice=False).sigmas
    expected = [3 * s / (1 + 2 * s) for s in torch.linspace(1, 0.001, 4, dtype=torch.float64).tolist()]
    torch.testing.assert_close(plain, torch.tensor([*expected, 0.0]), rtol=0, atol=1e-6)
    assert EulerSampler(3, shift=1.0).sigmas.tolist() == pytest.approx([1, 0.5005, 0.001, 0])


def test_a_step_is_taken_in_float32_and_returned_as_the_velocity_is() -> None:
    sampler = EulerSampler(4)
    x, velocity = draw(0, 50), draw(1, 50).bfloat16()
    delta = float(sampler.sigmas[2] - sampler.sigmas[1])
    stepped = sampler.step(x, velocity, 1)
    assert stepped.dtype == torch.bfloat16
    assert torch.equal(stepped, (x + delta * velocity.float()).bfloat16())


def test_a_perfect_velocity_lands_on_the_picture_from_any_number_of_steps() -> None:
    picture, noise = draw(0, 50), draw(1, 50)
    for steps in range(1, 9):
        x = noise
        for index in range(steps):
            x = EulerSampler(steps).step(x, noise - picture, index)
        torch.testing.assert_close(x, picture, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -1, 9])
def test_step_counts_out_of_range_name_the_key(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"sampler\.steps={steps}.*1 to 8"):
        EulerSampler(steps)


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_a_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ValueError, match=r"sampler\.shift"):
        EulerSampler(4, shift=shift)
