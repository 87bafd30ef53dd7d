"""Procedures of the `dit_*` kinds: the rollout that users run, watched through hooks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liveavatar.models.dit.context import Grid
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.state import CellState
from liveavatar.sampling.conditioning import Conditioning, MaskTrack, RolloutSettings, SinkPlan
from liveavatar.sampling.noise import TableDistance, TableNoise
from liveavatar.sampling.rollout import Rollout
from liveavatar.sampling.scheduler import EulerSampler
from tests.goldens import build
from tests.goldens.case import Case

Maker = Callable[[dict[str, Any]], AvatarDiT]


@dataclass
class Table:
    """Recorded audio features or pose latents, cut per block."""

    values: Tensor
    per_block: int
    dim: int
    period: int

    def block(self, index: int) -> Tensor:
        start = index % self.period * self.per_block
        return self.values.narrow(self.dim, start, self.per_block)


class Watch:
    """Records what passes through a DiT: predictions, and named intermediates of chosen calls."""

    def __init__(self, dit: AvatarDiT, steps: int, blocks_per_clip: int) -> None:
        self.dit, self.steps, self.blocks_per_clip = dit, steps, blocks_per_clip
        self.predictions: list[Tensor] = []
        self.calls: dict[str, dict[str, Tensor]] = {}
        self.on_prefill: Callable[[int], None] = lambda _: None
        self._prefills = 0
        self._seen: dict[int, dict[str, Tensor]] = {}
        self._passing = 0  # the state that the running unit serves: a pass may hold a prefill and a cell
        self._hooks = [dit.register_forward_hook(self._after_pass)]
        self._hooks += [unit.register_forward_pre_hook(self._enter) for unit in dit.units().values()]
        for i, block in enumerate(dit.blocks):
            self._hooks.append(block.register_forward_pre_hook(self._keep_in(f"block{i}.in")))
            self._hooks.append(block.register_forward_hook(self._keep_state(f"block{i}.out_before_audio")))
            for part, last in {"self_attn": "self_attn.o", "cross_attn": "cross_attn.o", "ffn": "ffn"}.items():
                hook = self._keep(f"block{i}.{part}")
                self._hooks.append(block.get_submodule(last).register_forward_hook(hook))
        for j, (adain, injector) in enumerate(zip(dit.adain, dit.injectors, strict=True)):
            self._hooks.append(adain.norm.register_forward_hook(self._keep(f"audio_injector{j}.adain_out")))
            self._hooks.append(injector.attention.register_forward_hook(self._keep(f"audio_injector{j}.out")))
        self._hooks.append(dit.head.register_forward_pre_hook(self._keep_in("head.in")))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, unit: Any, args: Any) -> None:
        self._passing = id(args[0])

    def _put(self, name: str, value: Tensor) -> None:
        self._seen.setdefault(self._passing, {})[name] = value

    def _keep(self, name: str) -> Callable[..., None]:
        return lambda module, args, output: self._put(name, output)

    def _keep_in(self, name: str) -> Callable[..., None]:
        return lambda module, args: self._put(name, args[0].hidden)

    def _keep_state(self, name: str) -> Callable[..., None]:
        return lambda module, args, output: self._put(name, output.hidden)

    def _after_pass(self, module: AvatarDiT, args: Any, states: list[CellState]) -> None:
        for state in states:
            self._note(state, self._seen.pop(id(state), {}))

    def _note(self, state: CellState, seen: dict[str, Tensor]) -> None:
        rows = self.dit.embed.embed_time(torch.zeros(3))
        seen["text_context"] = state.text.clone()  # rooms of prepared conditioning are written over
        if state.is_sink:
            seen["rope_sink_tokens"] = torch.view_as_real(state.cache.turns)
            seen["time_e"] = torch.cat((rows[0], rows[0]))
            self.calls[f"sink_r{self._prefills}"] = seen
            self.on_prefill(self._prefills)
            self._prefills += 1
            return
        seen["rope0"] = torch.view_as_real(state.cache.turns)
        seen["rope1"] = torch.view_as_real(state.cache.sink_turns)
        seen["time_e"] = torch.cat((state.time[0].expand(3, -1), rows[0]))
        seen["time_e0_flat"] = torch.cat((state.modulation[0].expand(3, -1, -1), rows[1])).flatten(1)
        seen["audio_emb_global"] = state.tone.unsqueeze(2).clone()
        seen["merged_audio_emb"] = state.voice.clone()
        seen["head.out_tokens"] = _patches(state.output)
        block, step = divmod(len(self.predictions), self.steps)
        clip, block = divmod(block, self.blocks_per_clip)
        self.calls[f"call_r{clip}_b{block}_s{step}"] = seen
        self.predictions.append(state.output[0])


def _patches(picture: Tensor) -> Tensor:
    """The head's tokens, from the latent picture that it folds them into."""
    b, c, f, h, w = picture.shape
    return picture.view(b, c, f, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 4, 6, 1).reshape(b, -1, 4 * c)


def conditioning_of(case: Case, blocks_per_clip: int) -> Conditioning:
    given, clips = case.inputs, case.info["protocol"]["clips"]
    masks = given.get("mask")
    return Conditioning(
        text=given["context"].unsqueeze(0),
        reference=given["ref_latents"],
        motion=given["motion_latents"],
        audio=Table(given["audio_emb"], 12, -1, clips * blocks_per_clip),
        pose=Table(given["cond_states"], 3, 2, blocks_per_clip),
        masks=None if masks is None else MaskTrack(masks.squeeze(-1), follow=False),
    )


def settings_of(case: Case) -> RolloutSettings:
    protocol = case.info["protocol"]
    cache = protocol.get("kv_cache_frames") or 12
    if "kv_cache_tokens" in protocol:
        cache = protocol["kv_cache_tokens"] // protocol["tokens_per_latent_frame"]
    return RolloutSettings(
        frames_per_clip=4 * protocol["frames_per_clip"],
        cache_frames=cache,
        local_frames=case.info["config"].get("local_attn_size", -1),
        masks_follow_block=False,
    )


def run_of(name: str) -> str:
    found = re.search(r"(tpp|single_online|single_offline)", name)
    return found.group(1) if found else "once"


def dit_case(case: Case, make: Maker | None = None) -> None:
    """All runs that the case's outputs name, each a rollout of the same inputs with another refresh of the sink."""
    model = (make or (lambda config: build.dit(config, case.folder / "weights.safetensors")))(case.info["config"])
    protocol = case.info["protocol"]
    sampler = EulerSampler(protocol["steps"])
    torch.testing.assert_close(sampler.timesteps, torch.tensor(protocol["timesteps"]), rtol=1e-5, atol=1e-4)
    for run in sorted({run_of(name) for name in case.names()}):
        _one_run(case, model, sampler, run)
    for name in case.names("framepack"):
        if name.endswith(".motion_latents"):
            stem = name.removesuffix(".motion_latents")
            motion = case.take(name, "framepack")
            case.check(f"{stem}.tokens", model.embed.frame_packer(motion), "framepack")
            turns = Grid(*motion.shape[-2:]).motion_turns(model.head_dim)
            case.check(f"{stem}.rope", torch.view_as_real(turns), "framepack")


def _one_run(case: Case, model: AvatarDiT, sampler: EulerSampler, run: str) -> None:
    settings, protocol = settings_of(case), case.info["protocol"]
    per_clip = settings.blocks_per_clip
    given = conditioning_of(case, per_clip)
    refreshed = case.inputs.get("motion_latents_r1", given.motion)
    passes: list[Tensor] = [given.motion, refreshed if run == "single_online" else given.motion]
    rollout = Rollout(
        model,
        given,
        sampler,
        settings,
        TableNoise(case.inputs["noise"]),
        TableDistance(protocol["relative_dist"]),
    )
    sink = SinkPlan(
        given.reference, lambda: passes.pop(0), refresh=per_clip if run in ("tpp", "single_online") else None
    )
    watch = Watch(model, sampler.steps, per_clip)
    caches = run in ("tpp", "once")
    if caches:
        watch.on_prefill = lambda r: _check_caches(case, rollout, [f"after_prefill_r{r}"])
    latents: list[Tensor] = []
    total = per_clip * protocol["clips"]
    for block in rollout.blocks(total, sink):
        latents.append(block.latents[0])
        clip, b = divmod(block.index, per_clip)
        moments = [f"after_clip{clip}_block{b}"]
        moments += [f"after_clip{clip}"] if b == per_clip - 1 else []
        moments += ["final", ""] if block.index == total - 1 else []
        if caches:
            _check_caches(case, rollout, moments)
    watch.close()
    _check_latents(case, run, torch.stack(latents), per_clip)
    _check_predictions(case, run, torch.stack(watch.predictions).unflatten(0, (-1, sampler.steps)), per_clip)
    if run == "tpp":
        for name in case.names("intermediates"):
            call, _, what = name.partition(".")
            case.check(name, watch.calls[call][what], "intermediates")


def _check_caches(case: Case, rollout: Rollout, moments: list[str]) -> None:
    """Compare every stored cache tensor that belongs to one of these moments."""
    for stem in ("outputs", "kv"):
        for name in case.names(stem):
            found = re.fullmatch(r"(?:(\w+?)\.)??(?:cache(\d+)\.)?layer(\d+)\.(cond_)?([kv])", name)
            if not found or (found.group(1) or "") not in moments:
                continue
            _, step, layer, cond, kind = found.groups()
            cache = rollout.caches.sink if cond else rollout.caches.rings[int(step) - 1]
            case.check(name, getattr(cache, kind)[int(layer)].clone(), stem)


def _check_latents(case: Case, run: str, blocks: Tensor, per_clip: int) -> None:
    clips = blocks.unflatten(0, (-1, per_clip)).transpose(1, 2).flatten(2, 3)
    for name in case.names():
        if name.startswith("latents") and run_of(name) == run:
            one = re.search(r"_r(\d+)$", name)
            case.check(name, clips[int(one.group(1))] if one else clips)


def _check_predictions(case: Case, run: str, predictions: Tensor, per_clip: int) -> None:
    """`predictions` is [block, step, ...]; a case stores chosen blocks of all steps, or all blocks' outer steps."""
    for name in case.names():
        if not name.startswith("preds") or run_of(name) != run:
            continue
        shape = case.expected["outputs"][name].shape
        if len(shape) == 7:
            case.check(name, predictions[:, [0, -1]].unflatten(0, (-1, per_clip)))
            continue
        meaning = case.info["tensors"]["outputs.safetensors"][name]["meaning"]
        chosen = [
            int(clip) * per_clip + int(b)
            for clip, listed in re.findall(r"clip(\d+): ([\d,]+)", meaning)
            for b in listed.strip(",").split(",")
        ]
        if len(chosen) != shape[0]:
            chosen = list(range(shape[0]))
        case.check(name, predictions[chosen])
