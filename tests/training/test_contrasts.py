"""What a latent says of its four frames: read by one matrix, which tells an encoder to say it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liveavatar.config import make
from liveavatar.models.vae import WanCodec
from liveavatar.training.autoencoder import Autoencoder, encoder_half, initialise, latent_size
from liveavatar.training.contrasts import Contrasts, differences
from liveavatar.training.weights import load_exported
from tests.training.runs import config, journal, run


def blinking(frames: int = 9) -> torch.Tensor:
    """Two pictures in turn, in one cell of 4x4 pixels; all else stands still."""
    video = torch.zeros(1, 3, frames, 16, 16)
    video[:, 0, 1::2, 4:8, 8:12] = 1.0
    return video


def test_differences_are_those_of_each_cell_from_its_mean_over_four_frames() -> None:
    found = differences(blinking())
    assert found.shape == (1, 2, 2, 2, 48)
    lit = found[0, :, 0, 1].view(2, 4, 3, 2, 2)[:, :, 0, 1, 0]  # latent row 0, column 1; red; second row of cells
    torch.testing.assert_close(lit, torch.tensor([[0.5, -0.5, 0.5, -0.5]]).expand(2, -1))
    assert int((found != 0).sum()) == 8


def test_a_still_has_nothing_to_tell_apart_and_a_fresh_matrix_leaves_latents_alone() -> None:
    head, video = Contrasts(16), blinking()
    latents = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.ones(1, 1, 9, 16, 16)
    assert head.loss(latents[:, :, :1], video[:, :, :1], video[:, :, :1], weight[:, :, :1]) == 0
    missed = 8 * 0.5**2 / (2 * 2 * 2 * 48)
    loss = head.loss(latents, video, video, weight)
    assert loss.item() == pytest.approx(missed)  # a true picture: what was not read alone is wrong
    assert head.loss(latents, 0 * video, video, weight).item() == pytest.approx(2 * missed)
    (gradient,) = torch.autograd.grad(loss, latents)
    assert not gradient.any()


def test_latents_learn_to_tell_frames_apart() -> None:
    torch.manual_seed(0)
    codec, video = WanCodec(base_dim=4), blinking() + 0.3 * torch.rand(1, 3, 1, 16, 16)
    initialise(codec, 0)
    head = Contrasts(16)
    encoder = [p for half in encoder_half(codec) for p in half.parameters()]
    optimiser = torch.optim.Adam([*encoder, *head.parameters()], 5e-3)
    losses = []
    for _ in range(60):
        loss = head.loss(Autoencoder(codec).posterior(video)[0], video, video, torch.ones(1, 1, 9, 16, 16))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_noise_stands_in_proportion_to_the_latents() -> None:
    torch.manual_seed(0)
    codec, video = WanCodec(base_dim=4), torch.rand(1, 3, 5, 32, 32) * 2 - 1
    noise = torch.randn(latent_size(tuple(video.shape), 16))
    with torch.no_grad():
        mean, log_variance = Autoencoder(codec).posterior(video)
        deviation = (log_variance.exp() + 0.25 * mean.var((0, 2, 3, 4), keepdim=True)).sqrt()
        wanted = Autoencoder(codec).render(mean + noise * deviation)
        made, *_ = Autoencoder(codec, noise=0.5)(video, noise)
    torch.testing.assert_close(made, wanted)


def test_a_training_that_keeps_latents_steady_moves_them_less(tmp_path: Path) -> None:
    run(tmp_path, "vae")
    start = tmp_path / "vae" / "export"
    phases = "vae.phases=[{steps: 6, size: [32, 32], frames: 5, batch: 1}]"
    codec, moved = make_codec(start), []
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for steady in (1e-9, 100.0):
        given = [phases, f"train.init={start}", "vae.contrasts=1", f"vae.steady={steady}", "train.lr=0.003"]
        run(tmp_path, "vae", *given, f"output.dir={tmp_path / str(steady)}")
        assert all(line["contrasts"] > 0 for line in journal(tmp_path / str(steady)))
        after = make_codec(tmp_path / str(steady) / "export")
        with torch.no_grad():
            moved.append(float((after.encode(video) - codec.encode(video)).square().mean()))
    assert 0 < moved[1] < 0.5 * moved[0]


def make_codec(folder: Path) -> WanCodec:
    codec = make(config(folder, "vae").model.vae, "model.vae")
    load_exported(codec, folder / "vae.safetensors")
    return codec


@pytest.mark.parametrize("key", ["vae.steady=0.5", "vae.learns=decoder"])
def test_latents_are_kept_from_an_export_alone(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}.*train\.init=runs/vae/export"):
        run(tmp_path, "vae", key)
    with pytest.raises(ValueError, match=rf"{key}.*has no vae\.safetensors.*export/"):
        run(tmp_path, "vae", key, f"train.init={tmp_path}")
