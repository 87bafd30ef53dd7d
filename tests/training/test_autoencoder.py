"""The trainable path of the VAE is the codec's own arithmetic; its statistics can be folded away."""

from __future__ import annotations

import pytest
import torch

from liveavatar.models.vae import WanCodec
from liveavatar.training.autoencoder import Autoencoder, Moments, fold_statistics, initialise, latent_size
from liveavatar.training.losses import motion


@pytest.fixture
def codec() -> WanCodec:
    torch.manual_seed(0)
    return WanCodec(base_dim=4)


def video(frames: int) -> torch.Tensor:
    return torch.rand(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_one_pass_is_the_stream(codec: WanCodec, frames: int) -> None:
    given, model = video(frames), Autoencoder(codec)
    mean, _ = model.posterior(given)
    assert mean.shape == latent_size(given.shape, codec.z_dim)
    torch.testing.assert_close(codec.normalise(mean), codec.encode(given), atol=1e-5, rtol=1e-5)
    made = model.render(mean).clamp(-1, 1)
    torch.testing.assert_close(made, codec.decode(codec.normalise(mean)), atol=1e-4, rtol=1e-4)


def test_a_fresh_network_treats_a_clip_frame_by_frame_and_learns(codec: WanCodec) -> None:
    initialise(codec, 0)
    model, still = Autoencoder(codec), video(1).expand(-1, -1, 9, -1, -1)
    mean, log_variance = model.posterior(still)
    torch.testing.assert_close(mean[:, :, 1:], mean[:, :, :1].expand_as(mean[:, :, 1:]), atol=1e-5, rtol=1e-4)
    assert float(log_variance.detach().max()) < -1
    optimiser, losses = torch.optim.Adam(codec.parameters(), lr=3e-3), []
    for _ in range(20):
        made, *_ = model(video(1), torch.zeros(latent_size(video(1).shape, 16)))
        loss = (made - video(1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_first_step_reaches_all_temporal_taps_of_a_clip(codec: WanCodec) -> None:
    initialise(codec, 0)
    with torch.no_grad():
        for name, p in codec.named_parameters():
            if name.endswith(("conv2.weight", "proj.weight")):
                p.normal_(std=0.01)
    made, *_ = Autoencoder(codec)(video(9), torch.zeros(2, 16, 3, 4, 4))
    (made - video(9)).abs().mean().backward()
    quiet = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in quiet if "quant_conv" not in name] == []


@torch.no_grad()
def test_folding_gives_unit_latents_and_the_same_pictures(codec: WanCodec) -> None:
    given, model = video(5), Autoencoder(codec)
    before = codec.decode(codec.encode(given))
    moments = Moments()
    moments.add(model.posterior(given)[0])
    fold_statistics(codec, *moments.values())
    latents = codec.encode(given)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(latents.std((0, 2, 3, 4), correction=0), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(latents), before, atol=1e-4, rtol=1e-3)


def test_what_moves_has_a_loss_of_its_own() -> None:
    still = torch.zeros(1, 3, 3, 4, 4)
    blink = still.clone()
    blink[:, :, 1, 0, 0] = 1
    weight = torch.ones(1, 1, 3, 4, 4)
    shifted = motion(still + 0.5, still, weight, 1e-6)
    assert shifted < 1e-5
    # one pixel of sixteen is wrong by 1 in both differences
    assert motion(blink, still, weight, 1e-6) == pytest.approx(1 / 16, rel=1e-3)
    assert motion(blink[:, :, :1], still[:, :, :1], weight[:, :, :1], 1e-6) == 0
