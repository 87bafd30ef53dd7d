"""The stages as a user runs them: resumable after a kill, refusing what cannot work, never losing what was saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.config import make
from liveavatar.training import loop, saving
from liveavatar.training.data import ToonSource
from liveavatar.training.dit_stage import DitTask, initialise_dit
from liveavatar.training.draws import Passage
from liveavatar.training.loop import Draw
from liveavatar.training.scene import Scene
from liveavatar.types import BLOCK_LATENTS
from tests.training.runs import config, journal, overrides, run


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage vae; its cache and export serve the other stages."""
    tmp = tmp_path_factory.mktemp("runs")
    run(tmp, "vae")
    return tmp


def test_the_vae_leaves_weights_pictures_and_a_journal(vae: Path) -> None:
    lines = journal(vae / "vae")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    exported = load_file(vae / "vae" / "export" / "vae.safetensors")
    codec = make(config(vae, "vae").model.vae, "model.vae")
    assert {name: p.shape for name, p in codec.named_parameters()} == {n: t.shape for n, t in exported.items()}
    assert (vae / "vae" / "validation" / "vae-000004.png").stat().st_size > 1000
    # folded statistics: what the DiT will see has unit scale
    stores = list((vae / "cache").glob("pictures-*/frames-*.npy"))
    frames = torch.from_numpy(np.load(stores[0])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    codec.load_state_dict(exported, strict=False)
    latents = codec.encode(frames)
    assert 0.5 < float(latents.detach().std()) < 2


def test_a_killed_run_resumes_with_the_losses_of_an_unbroken_one(tmp_path: Path) -> None:
    steps = ["train.steps=12", "train.save_every=3", "train.accumulate=2"]
    run(tmp_path, "vae", *steps, f"output.dir={tmp_path / 'whole'}")
    command = [sys.executable, "-m", "liveavatar.train"]
    command += overrides(tmp_path, "vae", *steps, f"output.dir={tmp_path / 'broken'}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    log, until = tmp_path / "broken" / "log.jsonl", time.monotonic() + 120
    while (not log.is_file() or len(log.read_text().splitlines()) < 4) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken" / "export").exists()
    run(tmp_path, "vae", *steps, f"output.dir={tmp_path / 'broken'}")
    assert journal(tmp_path / "broken") == journal(tmp_path / "whole")
    whole, broken = (load_file(tmp_path / name / "export" / "vae.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_the_dit_and_its_encoders_learn_and_resume(vae: Path) -> None:
    ways = ["sampler.steps=4", "dit.walked=0.5", "dit.tint=2"]
    given = [f"dit.vae={vae / 'vae' / 'export'}", "train.save_every=2", "train.lr=0.003", *ways]
    run(vae, "dit", *given, "train.steps=4")
    assert len({bool(line["walked"]) for line in journal(vae / "dit")}) == 2
    for line in journal(vae / "dit"):
        whole = line["velocity"] + 2 * line["tint"] + 0.5 * line["listen"]
        assert line["tint"] > 0
        assert line["loss"] == pytest.approx(whole, rel=1e-4)
    for name in ("dit", "text", "speech"):
        assert (vae / "dit" / "export" / f"{name}.safetensors").is_file()
    assert list((vae / "dit" / "validation").glob("*.mp4"))
    stopped = [*given, "train.steps=4", f"output.dir={vae / 'stopped'}"]
    run(vae, "dit", *stopped, "train.stop_minutes=0.00001")
    assert len(journal(vae / "stopped")) == 1
    run(vae, "dit", *stopped)
    assert journal(vae / "stopped") == journal(vae / "dit")


def test_a_speech_encoder_learns_apart_and_then_stays(vae: Path) -> None:
    given = ["train.lr=0.003", "hear.windows=2", "hear.held_out=1", "train.save_every=2"]
    figures = run(vae, "speech", *given, "train.steps=30")
    lines = journal(vae / "speech")
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.7 * np.mean([line["loss"] for line in lines[:5]])
    assert -1 <= figures["validation/r_opening"] <= 1
    heard = vae / "speech" / "export"
    fixed = [f"dit.vae={vae / 'vae' / 'export'}", f"dit.speech={heard}", f"output.dir={vae / 'apart'}"]
    run(vae, "dit", *fixed, "train.steps=2", "train.save_every=1", "train.optimiser=muon")
    assert sorted(path.name for path in (vae / "apart" / "export").iterdir()) == [
        "dit.safetensors", "speech.safetensors", "text.safetensors",
    ]  # fmt: skip
    before, after = (load_file(folder / "speech.safetensors") for folder in (heard, vae / "apart" / "export"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_speech_encoder_goes_on_in_other_timbres_near_to_what_it_was(vae: Path, tmp_path: Path) -> None:
    given = ["hear.windows=2", "hear.held_out=1", "train.lr=0.003", "hear.revoiced=0.5"]
    run(tmp_path, "speech", *given, "train.steps=4", f"output.dir={tmp_path / 'start'}")
    on = [*given, f"train.init={tmp_path / 'start' / 'export'}", "train.steps=12", "hear.coloured=0.5"]
    plain = ["hear.coloured=0", "hear.revoiced=0", "train.steps=1", f"output.dir={tmp_path / 'plain'}"]
    run(tmp_path, "speech", *on, "hear.keep=1", *plain)
    assert journal(tmp_path / "plain")[0]["strayed"] == 0  # the same sound through the same weights
    strayed = {}
    for keep in (0, 1e-6, 10):
        folder = tmp_path / f"keep{keep}"
        run(tmp_path, "speech", *on, f"hear.keep={keep}", f"output.dir={folder}")
        strayed[keep] = [line["strayed"] for line in journal(folder) if "strayed" in line]
    assert strayed[0] == []
    assert 0 < np.mean(strayed[10][-4:]) < 0.7 * np.mean(strayed[1e-6][-4:])


def test_a_text_encoder_learns_to_read_apart_and_then_stays(vae: Path) -> None:
    given = ["train.lr=0.01", "read.prompts=8", "read.held_out=40", "train.save_every=50", "train.ema=0.9"]
    figures = run(vae, "text", *given, "train.steps=150")
    assert figures["validation/read_colour"] > 0.9
    assert figures["validation/read_size"] > 0.8
    read = vae / "text" / "export"
    fixed = [f"dit.vae={vae / 'vae' / 'export'}", f"dit.text={read}", f"output.dir={vae / 'reads'}"]
    run(vae, "dit", *fixed, "train.steps=2", "train.save_every=1")
    before, after = (load_file(folder / "text.safetensors") for folder in (read, vae / "reads" / "export"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prompts_are_known_by_what_they_ask_for() -> None:
    from liveavatar.training.folder import FolderSource
    from liveavatar.training.text_stage import checked_wishes
    from liveavatar.training.toon.prompts import read_prompt

    source, rng = checked_wishes(ToonSource(2, 1.0, 1)), np.random.default_rng(0)
    for _ in range(50):
        wish = source.wish(rng)
        asked = [options[place] for options, place in zip(source.choices.values(), wish.options, strict=True)]
        read = read_prompt(wish.prompt)
        assert asked == [read.emotion, read.light, read.gesture]
    with pytest.raises(ValueError, match="data=toon"):
        checked_wishes(FolderSource.__new__(FolderSource))


def test_what_is_heard_before_a_block_is_its_own_window(vae: Path) -> None:
    from liveavatar.training.folder import FolderSource
    from liveavatar.training.speech_stage import checked_source, window_audio

    cfg = config(vae, "speech")
    torch.manual_seed(0)
    encoder, given = make(cfg.model.speech, "model.speech"), make(cfg.speech, "speech")
    audio = window_audio(encoder, torch.randn(16000), given, 3)
    assert torch.equal(audio.heard(audio.sources[0], 1)[None], audio.block(1))
    assert torch.equal(audio.heard(audio.sources[0], 1, before=2)[..., 2:], audio.block(1)[0])
    with pytest.raises(ValueError, match="before=60"):
        audio.heard(audio.sources[0], 1, before=60)
    with pytest.raises(ValueError, match="curves of the mouth"):
        checked_source(FolderSource.__new__(FolderSource))


def test_muon_resumes_with_the_losses_of_an_unbroken_run(vae: Path) -> None:
    given = [f"dit.vae={vae / 'vae' / 'export'}", "train.steps=3", "train.save_every=1", "train.optimiser=muon"]
    run(vae, "dit", *given, f"output.dir={vae / 'muon'}")
    run(vae, "dit", *given, f"output.dir={vae / 'cut'}", "train.stop_minutes=0.00001")
    assert len(journal(vae / "cut")) == 1
    run(vae, "dit", *given, f"output.dir={vae / 'cut'}")
    assert journal(vae / "cut") == journal(vae / "muon")


def test_a_run_starts_from_another_finished_or_not(vae: Path, tmp_path: Path) -> None:
    exported = load_file(vae / "vae" / "export" / "vae.safetensors")
    still = ["train.steps=1", "train.lr=1e-12", "train.ema=0", "vae.statistics=1"]
    run(vae, "vae", *still, f"train.init={vae / 'vae' / 'export'}", f"output.dir={tmp_path / 'first'}")
    begun = torch.load(tmp_path / "first" / "checkpoints" / "last.pt", weights_only=True)["weights"]["vae"]
    assert all(torch.allclose(begun[name], exported[name], atol=1e-9) for name in exported)
    run(vae, "vae", "train.steps=4", "train.stop_minutes=0.00001", f"output.dir={tmp_path / 'cut'}")
    averages = torch.load(tmp_path / "cut" / "checkpoints" / "last.pt", weights_only=True)["average"]
    run(vae, "vae", *still, f"train.init={tmp_path / 'cut'}", f"output.dir={tmp_path / 'next'}")
    begun = torch.load(tmp_path / "next" / "checkpoints" / "last.pt", weights_only=True)["weights"]["vae"]
    assert all(torch.allclose(mine, average, atol=1e-9) for mine, average in zip(begun.values(), averages, strict=True))
    with pytest.raises(ValueError, match=r"train\.init=.*holds neither vae\.safetensors"):
        run(vae, "vae", *still, f"train.init={tmp_path}", f"output.dir={tmp_path / 'none'}")


def test_a_decoder_learns_behind_an_encoder_that_stays(vae: Path, tmp_path: Path) -> None:
    from liveavatar.models.vae.codec import WanCodec
    from liveavatar.training.latents import fingerprint
    from liveavatar.training.weights import load_exported

    first, next_ = vae / "vae" / "export", tmp_path / "vae" / "export"
    given = ["vae.learns=decoder", "vae.tint=3", f"train.init={first}"]
    run(tmp_path, "vae", *given, "train.optimiser=muon", "train.products=bf16")
    parts = ("pixels", "edges", "motion", "tint", "kl")
    for line in journal(tmp_path / "vae"):
        assert line["tint"] > 0
        assert line["loss"] == pytest.approx(sum(line[name] for name in parts), rel=1e-4)
    before, after = (load_file(folder / "vae.safetensors") for folder in (first, next_))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in moved)
    words = []
    for folder in (first, next_):
        codec = WanCodec(base_dim=before["vae.decoder.norm_out.gamma"].shape[0])
        load_exported(codec, folder / "vae.safetensors")
        words.append(fingerprint(codec))
    assert words[0] == words[1]  # latents that were made stay valid
    with torch.no_grad():
        next(codec.vae.encoder.parameters()).add_(1e-3)
    assert fingerprint(codec) != words[0]
    assert torch.get_float32_matmul_precision() == "highest"


def dit_task(vae: Path, *more: str) -> DitTask:
    """The task of stage `dit` behind the codec of `vae`, weights as they start but for a head that is not zero."""
    from liveavatar.settings import make_fabric
    from liveavatar.training.assembly import Setting, build_task

    cfg = config(vae, "dit", f"dit.vae={vae / 'vae' / 'export'}", *more)
    strategy = make(cfg.strategy, "strategy")
    make_fabric(cfg, strategy).launch()
    setting = Setting(
        cfg, make(cfg.train, "train"), make(cfg.data, "data"), (64, 64), vae / "cache", strategy.device, strategy
    )
    task = build_task(setting)
    assert isinstance(task, DitTask)
    with torch.no_grad():
        task.modules["dit"].get_parameter("head.head.weight").normal_()
    return task


def test_a_step_of_the_dit_reaches_every_weight(vae: Path) -> None:
    task = dit_task(vae)
    for step in range(3):
        loss, _ = task.loss(Draw(0, step))
        loss.backward()
    idle = {
        f"{part}.{name}"
        for part, module in task.modules.items()
        for name, p in module.named_parameters()
        if p.grad is None or not p.grad.any()
    }
    # the pose of all training clips is zero: its convolution learns by its bias alone
    assert idle <= {"dit.embed.cond_encoder.weight", "speech.model.masked_spec_embed"}


@pytest.mark.parametrize(("first", "blocks", "counts"), [(0, 2, True), (50, 2, False), (50, 1, True)])
def test_a_block_without_its_past_counts_for_nothing(
    vae: Path, monkeypatch: pytest.MonkeyPatch, first: int, blocks: int, counts: bool
) -> None:
    """But at the start of a stream, where it has none at inference either, or where there is no other."""
    task = dit_task(vae)
    passage = Passage(first, [0], [1.0] * blocks, [4] * blocks, refresh=3, corruption=0.0)

    def error(of_the_first: float) -> float:
        def velocity(scene: Scene, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
            made = torch.zeros_like(x)
            made[:, :, :BLOCK_LATENTS] = of_the_first
            return made

        monkeypatch.setattr(Scene, "velocity", velocity)
        generator = torch.Generator().manual_seed(0)
        return task.passage_loss([task.kept.load(0)], passage, np.random.default_rng(0), generator)[1]["velocity"]

    assert (error(100.0) > 100 * error(0.0)) == counts


@pytest.mark.parametrize(("share", "others"), [("0", 0), ("1", 2)])
def test_prompts_are_said_in_other_words(vae: Path, monkeypatch: pytest.MonkeyPatch, share: str, others: int) -> None:
    """Each time anew, and the same again for the same batch: a resumed run reads what the unbroken one read."""
    task = dit_task(vae, f"dit.reword={share}", "dit.drop_text=0", "dit.clips=2")
    read: list[str] = []
    words = task._words
    monkeypatch.setattr(task, "_words", lambda prompts: read.extend(prompts) or words(prompts))
    for step in (0, 1, 0):
        task.loss(Draw(0, step))
    said = [prompt for prompt in read[:4] if "told for the" in prompt]
    assert len(said) == len(set(said)) == 2 * others
    assert read[4:] == read[:2]


def test_data_that_cannot_reword_is_told(vae: Path) -> None:
    with pytest.raises(ValueError, match=r"dit\.reword=1\.0: this data cannot"):
        dit_task(vae, "dit.reword=1.0", "data._target_=tests.training.source.WordlessDiscs")


def test_clips_without_voice_or_prompt_have_tame_gradients() -> None:
    """All zeros through the norms of the audio encoder: with biases at zero the gradient would be in the thousands."""
    dit = make(config(Path("unused"), "dit").model.dit, "model.dit")
    initialise_dit(dit, 0)
    silent, heard = torch.zeros(1, 5, 12, 12), torch.randn(1, 5, 12, 12)
    norms = []
    for features in (silent, heard):
        dit.zero_grad()
        voice, tone = dit.embed.audio_encoder(features, 3)
        ((voice + 1).square().sum() + (tone + 1).square().sum()).backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in dit.parameters() if p.grad is not None])))
    assert norms[0] < 10 * norms[1]


@pytest.mark.parametrize("strategy", ["single_device", "fsdp_full"])
def test_lora_is_read_back_at_inference(vae: Path, strategy: str) -> None:
    output = f"output.dir={vae / strategy}"
    laid = [f"+strategy={strategy}"] if strategy != "single_device" else []
    run(vae, "lora", "train.steps=3", "train.lr=0.01", output, *laid)
    path = vae / strategy / "export" / "lora.safetensors"
    base = RandomWeights(0)
    merged = LoraWeights(base, path, DIT, alpha=8)
    dit = make(config(vae, "lora").model.dit, "model.dit")
    changed = {n for n, p in dit.named_parameters() if not torch.equal(merged.read(n, p.shape), base.read(n, p.shape))}
    assert changed == set(merged.targets)
    assert {name.split(".")[-2] for name in changed} == {"q", "k", "v", "o", "0", "2"}
    assert any(name.startswith("injectors.") for name in changed)


def test_strategies_train_the_same_adapters(vae: Path) -> None:
    first, second = (journal(vae / strategy) for strategy in ("single_device", "fsdp_full"))
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_ranks_of_a_sharded_model_walk_together(tmp_path: Path) -> None:
    """A rank that passes the model once more than another would wait for it for ever."""
    given = ["fabric.devices=2", "+strategy=fsdp_full", "sampler.steps=4", "dit.walked=0.5", "train.steps=4"]
    words = overrides(tmp_path, "lora", *given, f"output.dir={tmp_path / 'two'}")
    subprocess.run([sys.executable, "-m", "liveavatar.train", *words], timeout=240, check=True)
    assert {line["walked"] for line in journal(tmp_path / "two")} == {0.0, 1.0}


def test_a_loss_that_is_no_number_names_step_seed_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liveavatar.training import vae_stage

    plain = vae_stage.VaeTask.loss

    def poisoned(self: Any, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        loss, figures = plain(self, draw)
        return (loss * float("nan") if draw.step == 2 else loss), figures

    monkeypatch.setattr(vae_stage.VaeTask, "loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 2 \(batch seed \[0, 2, 0, 0\]\).*last\.pt") as told:
        run(tmp_path, "vae", "train.save_every=1", "train.steps=4")
    assert str(tmp_path) in str(told.value)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "vae", "train.steps=4", "train.save_every=2", "train.stop_minutes=0.00001")
    last = tmp_path / "vae" / "checkpoints" / "last.pt"
    before = last.read_bytes()

    def full(content: Any, draft: Path) -> None:
        draft.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left") as told:
        run(tmp_path, "vae", "train.steps=4", "train.save_every=2")
    assert "stays" in str(told.value)
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir()] == ["last.pt"]


def test_another_configuration_is_refused_with_the_differences(tmp_path: Path) -> None:
    given = ["train.steps=2", "train.stop_minutes=0.00001"]
    run(tmp_path, "vae", *given)
    with pytest.raises(ValueError, match="another configuration") as told:
        run(tmp_path, "vae", *given, "vae.edges=0.25", "train.lr=0.5", "train.log_every=3")
    listed = str(told.value)
    assert "vae.edges: 0.5 in the checkpoint, 0.25 now" in listed
    assert "train.lr: 0.001 in the checkpoint, 0.5 now" in listed
    assert "log_every" not in listed
    run(tmp_path, "vae", *given, "vae.edges=0.25", "train.resume=false")


@pytest.mark.parametrize(
    ("stage", "wrong", "told"),
    [
        ("nonsense", [], "stage='nonsense' is unknown"),
        ("vae", ["train.lr=0"], r"train\.lr=0"),
        ("vae", ["train.ema=1.0"], r"train\.ema=1\.0"),
        ("vae", ["train.autocast=fp8"], r"train\.autocast='fp8'"),
        ("vae", ["vae.phases=[]"], r"vae\.phases is empty"),
        ("vae", ["vae.phases=[{steps: 1, size: [64, 64], frames: 4, batch: 1}]"], "frames=4.*write 5"),
        ("vae", ["vae.picture_frames=1"], r"vae\.picture_frames=5"),
        ("dit", [], r"dit\.vae is not set"),
        ("dit", ["dit.vae=/nowhere"], "does not exist"),
        ("dit", ["train.optimiser=sgd"], r"train\.optimiser='sgd'"),
        ("vae", ["vae.learns=encoder"], r"vae\.learns='encoder'"),
        ("vae", ["train.products=fp8"], r"train\.products='fp8'"),
        ("lora", ["train.optimiser=muon"], r"train\.optimiser=muon"),
        ("speech", ["hear.windows=0"], r"hear\.windows=0"),
        ("speech", ["hear.coloured=2"], r"hear\.coloured=2"),
        ("speech", ["hear.keep=1"], r"hear\.keep=1.*train\.init"),
        ("text", ["read.prompts=0"], r"read\.prompts=0"),
        ("dit", ["dit.young=2"], r"dit\.young=2"),
        ("lora", ["lora.rank=0"], r"lora\.rank=0"),
        ("vae", ["logger.wandb=loud"], r"logger\.wandb='loud'"),
    ],
)
def test_mistakes_are_told_by_their_key(tmp_path: Path, stage: str, wrong: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run(tmp_path, stage, *wrong)


def test_a_draft_never_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    saving.save_array(path, np.zeros(3))

    def fails(draft: Path) -> None:
        draft.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        saving.write_whole(path, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert np.array_equal(np.load(path), np.zeros(3))


def test_half_a_line_of_the_journal_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    loop.Journal(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 1}\n'
