"""Procedures of the kinds that pin one part: each calls what the library itself calls."""

from __future__ import annotations

import json
import re

import torch
from PIL import Image

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT, VAE
from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.shards import Shards
from liveavatar.checkpoint.slab import SlabLayout, allocate
from liveavatar.media.audio import load_voice
from liveavatar.media.image import fit_image, fit_pixels, fit_size
from liveavatar.media.mask import actor_masks
from liveavatar.models.dit.audio import AudioEncoder
from liveavatar.models.speech import FullAudio, SpeechEncoder, bucket, normalise, to_30hz
from liveavatar.models.text import TextEncoder, clean_text
from liveavatar.models.vae.codec import WanCodec
from liveavatar.models.vae.streaming import stream_decode
from liveavatar.sampling.scheduler import EulerSampler
from tests.goldens import build
from tests.goldens.case import Case


def text_encoder(config: dict, case: Case, weights: str) -> TextEncoder:
    with torch.device("meta"):
        encoder = TextEncoder(
            vocab_size=config["vocab_size"],
            dim=config["dim"],
            dim_attn=config["dim_attn"],
            dim_ffn=config["dim_ffn"],
            num_heads=config["num_heads"],
            num_layers=config.get("encoder_layers", config.get("num_layers")),
            num_buckets=config["num_buckets"],
            max_distance=config.get("max_dist", 128),
            text_len=config["text_len"],
        )
    return build.filled(encoder, case.folder / weights, TEXT)


def codec(config: dict, case: Case, weights: str) -> WanCodec:
    given = {key: config[key] for key in ("z_dim", "dim_mult", "num_res_blocks", "temperal_downsample")}
    given |= {
        k: case.info[v] for k, v in (("latents_mean", "latent_mean"), ("latents_std", "latent_std")) if v in case.info
    }
    with torch.device("meta"):
        model = WanCodec(base_dim=config["dim"], **given)
    return build.filled(model, case.folder / weights, VAE)


def sampler(case: Case) -> None:
    for name in case.names():
        what, _, steps = name.rpartition("_")
        if what in ("timesteps", "sigmas"):
            case.check(name, getattr(EulerSampler(int(steps)), what))
    euler = EulerSampler(case.info["steps_of_trajectory"])
    x, trajectory, velocities = case.inputs["x0"], [], []
    for index, t in enumerate(euler.timesteps):
        velocities.append(torch.sin(1.3 * x + 2 * t / 1000) - 0.4 * x + 0.1)
        x = euler.step(x, velocities[-1], index)
        trajectory.append(x)
    case.check("trajectory", torch.stack(trajectory))
    case.check("velocities", torch.stack(velocities))


def preprocess(case: Case) -> None:
    for row in case.info["size_table"]:
        size = list(fit_size(row["h"], row["w"], row["target_area"]))
        if size != row["result"]:
            case.failures.append(f"size of {row}: got {size}")
    for row in case.info["images"]:
        size = fit_size(row["h"], row["w"], row["target_area"])
        image = Image.fromarray(case.inputs[f"image_{row['index']}"].numpy())
        case.check(f"pixels_{row['index']}", fit_pixels(image, *size))
        case.check(f"pixels_float_{row['index']}", fit_image(image, *size)[:, ::8, ::8])


def actor_mask(case: Case) -> None:
    for row in case.info["cases"]:
        masks = case.inputs[f"masks_{row['index']}"]
        height, width = fit_size(*row["image_hw"], row["target_area"])
        if [height, width] != row["size"]:
            case.failures.append(f"size of {row}: got {[height, width]}")
        found = actor_masks(list(masks), 12, height // 16, width // 16)
        case.check(f"actor_mask_{row['index']}", found.unsqueeze(-1))


def t5_encoder(case: Case) -> None:
    encoder = text_encoder(case.info["config"], case, "weights.safetensors")
    for pair in case.info["text_cleaning"]:
        if clean_text(pair["input"]) != pair["output"]:
            case.failures.append(f"cleaning {pair['input']!r} gave {clean_text(pair['input'])!r}")
    for i, (ids, mask) in enumerate(zip(case.inputs["ids"], case.inputs["mask"], strict=True)):
        case.check(f"context_{i}", encoder.encode(ids[: int(mask.sum())].long()))
    for name in case.names():
        if name.startswith("relative_bucket"):
            rows = int(re.findall(r"lq(\d+)", name)[0])
            length = case.info["config"]["text_len"]
            queries = torch.arange(rows) * (length // rows)
            case.check(name, encoder.relative_buckets(queries, torch.arange(length)))


def vae(case: Case) -> None:
    model = codec(case.info["config"], case, "weights.safetensors")
    video = case.inputs["video_u8"].float()[None] / 127.5 - 1
    latents = case.inputs["latents"][None]
    stream = {name: None for name in case.names() if name.startswith("stream_")}
    for name in case.names():
        kind, _, rest = name.partition("_")
        if kind == "encode" and "static" in rest:
            count = int(rest.split("_")[0])
            case.check(name, model.encode(video[:, :, :1].expand(-1, -1, count, -1, -1))[0])
        elif kind == "encode":
            found = model.encode(video[:, :, : int(rest.split("_")[0])])
            case.check(name, (model.denormalise(found) if "unscaled" in rest else found)[0])
        elif kind == "decode":
            case.check(name, model.decode(latents[:, :, : int(rest)])[0])
    warm = next((int(n.rsplit("_", 1)[1]) for n in stream if n.startswith("stream_warmup")), 0)
    state = None
    if warm:
        frames, state = stream_decode(model, latents[:, :, :warm])
        case.check(
            f"stream_warmup_{warm}",
            frames[0, :, -case.expected["outputs"][f"stream_warmup_{warm}"].shape[1] :],
        )
    taken = warm
    for name in sorted((n for n in stream if n.startswith("stream_chunk")), key=lambda n: int(n.rsplit("_", 1)[1])):
        frames_due = case.expected["outputs"][name].shape[1]
        size = (frames_due + 3) // 4  # the first latent of a stream gives one frame, all others four
        frames, state = stream_decode(model, latents[:, :, taken : taken + size], state)
        case.check(name, frames[0])
        taken += size


def audio_features(case: Case) -> None:
    weights = case.folder / "weights.safetensors"
    everything = Shards([weights], _Both())
    config = json.loads((case.folder / case.info["wav2vec2_config"].split()[0]).read_text())
    with torch.device("meta"):
        encoder = SpeechEncoder.from_config(config)
    materialise(encoder, everything, build.CPU, torch.float32)
    voice = load_voice(next(case.folder.glob("audio_16k*.wav")))
    pcm = torch.from_numpy(voice.at(16000))
    exact = case.inputs["waveform_int16"].float() / 32768
    if not torch.equal(pcm, exact):
        case.failures.append("a 16 kHz file is not read exactly")
    case.check("input_values", normalise(pcm)[None])
    states = encoder.hidden_states(normalise(pcm))
    case.check("hidden_states_50hz", states)
    features = to_30hz(states)
    for name in case.names():
        if name.startswith("features_30fps_layers_"):
            case.check(name, features[[int(i) for i in name.split("_")[3:]]])
    audio = FullAudio(encoder, [pcm])
    case.check("audio_emb", audio.features)
    if audio.num_clips != case.info["num_clips"]:
        case.failures.append(f"{audio.num_clips} clips instead of {case.info['num_clips']}")
    for row in case.info["bucket_index_table"]:
        ramp = torch.arange(1, row["T"] + 1, dtype=torch.float32).view(1, -1, 1)
        if bucket(ramp)[0, 0].long().tolist() != row["index_plus1"]:
            case.failures.append(f"bucket table of T={row['T']}")
    stereo = load_voice(next(case.folder.glob("audio_stereo_*.wav")))
    case.check("resampled_stereo_file", torch.from_numpy(stereo.at(16000)))
    _causal_encoder(case, everything)


def _causal_encoder(case: Case, source: Shards) -> None:
    prefix = "embed.audio_encoder."
    names = [name.removeprefix(prefix) for name in source.names() if name.startswith(prefix)]
    blocks = sorted({name.split(".")[1] for name in case.names() if name.startswith("causal_audio_encoder.")})
    stored = {name: source.place(prefix + name).shape for name in names}
    dim = stored["final_linear.weight"][0]
    audio_dim = stored["conv1_local.conv.weight"][1]
    with torch.device("meta"):
        encoder = AudioEncoder(stored["weights"][1], audio_dim, dim, left_frames=72, eps=1e-6)
    materialise(encoder, _Under(source, prefix), build.CPU, torch.float32)
    for block in blocks:
        stem = f"causal_audio_encoder.{block}"
        given = case.take(f"{stem}.in_with_73_repeat")
        extended = torch.cat((given[..., :1].expand(*given.shape[:-1], 72), given), dim=-1)
        voice, tone = encoder.encode(extended)
        case.check(f"{stem}.local", voice)
        case.check(f"{stem}.global", tone.unsqueeze(2))


def lora_merge(case: Case) -> None:
    model = build.meta_dit(case.info["config"], case.folder / "weights.safetensors")
    base = Shards([case.folder / "weights.safetensors"], DIT)
    alpha = case.info["lora"]["alpha"]
    merged = LoraWeights(base, case.folder / "lora.safetensors", DIT, alpha=alpha)
    if len(merged.targets) != case.info["n_target_modules"]:
        case.failures.append(f"{len(merged.targets)} targets instead of {case.info['n_target_modules']}")
    placed = {
        "merged.": _placed(model, merged, torch.float32),
        "merged_bf16_base.": _placed(model, merged, torch.bfloat16),
    }
    for name in case.names():
        prefix, _, published = name.partition(".")
        case.check(name, placed[f"{prefix}."][DIT.to_ours(published)])


def _placed(model: torch.nn.Module, source: LoraWeights, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All parameters as a strategy would hold them: packed into slabs, rounded once."""
    found = {}
    for prefix, unit in model.units().items():
        layout = SlabLayout.of(unit, dtype)
        slab = allocate(layout.nbytes, build.CPU)
        layout.fill(slab, source, prefix)
        found |= {f"{prefix}.{name}": view for name, view in layout.views(slab).items()}
    return found


class _Both:
    """The file of an audio case holds a speech encoder and a piece of a DiT: the map that knows the name decides."""

    name = "audio case"

    def to_ours(self, name: str) -> str | None:
        try:
            return DIT.to_ours(name)
        except KeyError:
            return SPEECH.to_ours(name)

    def to_published(self, name: str) -> str:
        return name


class _Under:
    """A source seen from below a prefix."""

    def __init__(self, source: Shards, prefix: str) -> None:
        self.source, self.prefix, self.origin = source, prefix, source.origin

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self.source.read(self.prefix + name, shape)
