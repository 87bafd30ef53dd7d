"""Does the embedded avatar really talk? Lip sync, picture, text, settings and endurance on people never trained on.

    python -m experiments.embedded.run --part talk --weights runs/dit/export --out experiments/embedded

Parts: `talk` (the model beside an untrained one, a frozen head and the VAE alone), `text`, `settings`, `endurance`,
`voices` (the speech encoder alone, throat by throat).
Each writes its own table, and a part that is run again replaces its table.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.embedded.cases import SIZE, Case, Frames, Model, as_bytes, cases
from experiments.embedded.measures import measure, pearson
from experiments.embedded.settings import figure, settings
from experiments.embedded.voices import voices
from experiments.tables import markdown, save
from liveavatar.metrics import toon, toon_prompt
from liveavatar.sampling.decoding import StreamDecoding
from liveavatar.tracking import stamp
from liveavatar.training.latents import encode_talk
from liveavatar.training.sources import Talk
from liveavatar.training.toon.prompts import Attributes, write_prompt

log = logging.getLogger("embedded")
Row = dict[str, str | float]


def mean_row(label: str, found: Sequence[dict[str, float]]) -> Row:
    return {"what": label} | {key: float(np.nanmean([row[key] for row in found])) for key in found[0]}


def talk(weights: list[str], folder: Path, count: int, seconds: float) -> list[Row]:
    """The trained model, an untrained one, a portrait that never moves, and what the VAE alone would lose.

    The last rows are those of the trained model person by person.
    """
    people = cases(folder, count, seconds)
    still = cases(folder / "still", max(1, count // 2), seconds, sway=0.0, first=500)
    rows, model = [], Model(weights)
    each = _measured("trained", people, lambda case: model(case.request(case.clip.seed)))
    rows.append(mean_row("trained", each))
    rows.append(_scored("trained, no sway in the truth", still, lambda case: model(case.request(case.clip.seed))))
    rows[0] |= _with_other_voices(model, people) | _silent(model, folder, people)
    rows.append(_scored("VAE alone", people, lambda case: _through_vae(model, case)))
    model.close()
    untrained = Model(["weights=random"])
    rows.append(_scored("untrained", people[:2], lambda case: untrained(case.request())))
    untrained.close()
    rows.append(_scored("frozen head", people, _frozen))
    rows.append(_scored("the truth itself", people, Case.truth))
    return rows + [{"what": f"trained, person {n + 1}", **found} for n, found in enumerate(each)]


def _scored(label: str, people: Sequence[Case], make: Callable[[Case], Frames]) -> Row:
    return mean_row(label, _measured(label, people, make))


def _measured(label: str, people: Sequence[Case], make: Callable[[Case], Frames]) -> list[dict[str, float]]:
    began = time.monotonic()
    found = [measure(make(case), case.truth(), case.clip) for case in people]
    log.info("%s: %d clips in %.0f s", label, len(people), time.monotonic() - began)
    return found


def _frozen(case: Case) -> Frames:
    """The portrait, for as long as the voice lasts."""
    return np.repeat(case.clip.portrait(SIZE)[None], len(case.clip), axis=0)


def _with_other_voices(model: Model, people: Sequence[Case]) -> Row:
    """Lip sync against the clip's own voice when the model heard the next person's."""
    found = []
    for case, other in zip(people, [*people[1:], people[0]], strict=True):
        opening = toon.mouth(model(case.request(voice=other.clip.audio))).opening
        found.append(pearson(opening, case.clip.motion.opening[: len(opening)]))
    return {"lip_r_other_voice": float(np.mean(found))}


def _silent(model: Model, folder: Path, people: Sequence[Case]) -> Row:
    """Mean opening of the mouth in silence as a share of its largest while speaking."""
    shares = []
    for case in people[: max(1, len(people) // 3)]:
        speaking = np.quantile(toon.mouth(model(case.request())).opening, 0.98)
        quiet = toon.mouth(model(case.request(voice=np.zeros(len(case.clip.audio), np.float32)))).opening
        shares.append(float(np.mean(quiet) / max(speaking, 1e-3)))
    return {"silence_share": float(np.mean(shares))}


@torch.no_grad()
def _through_vae(model: Model, case: Case) -> Frames:
    clip, codec = case.clip, model.run.session.parts.codec
    kept = encode_talk(Talk(case.truth(), clip.audio, "", clip.portrait(SIZE)), codec, SIZE, torch.device("cpu"))
    decoding = StreamDecoding(codec, kept["motion"][None].float())
    pieces = [piece.frames for piece in decoding.push(0, kept["latents"][None].float())]
    return as_bytes(torch.cat(pieces, dim=2)[0].transpose(0, 1))


def text(weights: list[str], folder: Path, count: int) -> list[Row]:
    """Prompts that ask for one thing each: is it seen, by the reader that also reads the true clips?"""
    rng, model = np.random.default_rng(7), Model(weights)
    kinds = {"emotion": toon_prompt.EMOTIONS, "light": tuple(toon_prompt.LIGHTS), "gesture": toon_prompt.GESTURES}
    hits: dict[str, list[tuple[bool, bool]]] = {kind: [] for kind in kinds}
    for number in range(count):
        kind = list(kinds)[number % 3]
        usual = getattr(Attributes(), kind)
        wish = str(rng.choice([value for value in kinds[kind] if value != usual]))
        asked = Attributes(**{kind: wish})
        sentence = write_prompt(asked, rng)
        while wish not in _read_of(sentence, kind):
            sentence = write_prompt(asked, rng)
        case = cases(folder, 1, 4.0, first=2000 + number, prompt=sentence)[0]
        portrait, read = case.clip.portrait(SIZE), _reader(kind)
        made = model(case.request(number))
        hits[kind].append((read(made, portrait) == wish, read(case.truth(), portrait) == wish))
    model.close()
    rows = [_share(kind, found) for kind, found in hits.items()]
    return [*rows, _share("all", [hit for found in hits.values() for hit in found])]


def _share(kind: str, found: Sequence[tuple[bool, bool]]) -> Row:
    made, true = np.mean(np.array(found, float), axis=0)
    return {"what": kind, "cases": len(found), "followed": float(made), "followed_in_the_truth": float(true)}


def _read_of(sentence: str, kind: str) -> str:
    from liveavatar.training.toon.prompts import read_prompt

    return getattr(read_prompt(sentence), kind)


def _reader(kind: str) -> Callable[[Frames, np.ndarray], str]:
    if kind == "gesture":
        return lambda frames, portrait: toon_prompt.gesture(frames)
    return {"emotion": toon_prompt.emotion, "light": toon_prompt.light}[kind]


def endurance(weights: list[str], folder: Path, seconds: float) -> list[Row]:
    """One long voice: the first and the last 15 % of the video, figure by figure."""
    case, model = cases(folder, 1, seconds, first=900)[0], Model(weights)
    made, true = model(case.request()), case.truth()
    model.close()
    part, rows = round(0.15 * len(made)), []
    for label, place in (("first 15 %", slice(0, part)), ("last 15 %", slice(len(made) - part, len(made)))):
        opening = toon.mouth(made[place]).opening
        colours, wanted = toon.identity_colours(made[place]), toon.identity_colours(true[place])
        rows.append({
            "what": label,
            "lip_r": pearson(opening, case.clip.motion.opening[place]),
            "flicker": toon.flicker(made[place]),
            "contrast": float(made[place].std(axis=(1, 2, 3)).mean()),
            "luma": float(made[place].mean()),
            "skin_de": float(toon.delta_e(colours["skin"], wanted["skin"])),
            "background_de": float(toon.delta_e(colours["background"], wanted["background"])),
        })  # fmt: skip
    return rows


def write(out: Path, part: str, rows: Sequence[Row], given: argparse.Namespace) -> None:
    """The table, and what it was made on."""
    about = stamp("cpu", torch.get_num_threads(), 1) | {"weights": given.weights or "bundle", "part": part}
    save(out, rows, about, f"{part}.csv", f"{part}.json")
    log.info("%s", markdown(rows, ".3g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("talk", "text", "settings", "endurance", "voices"), required=True)
    parser.add_argument("--weights", type=Path, help="an export/ folder; what ships with the package otherwise")
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded"))
    parser.add_argument(
        "--count",
        type=int,
        default=12,
        help="people (50 for text; for voices the clips of a throat in each of four languages)",
    )
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    weights = ["weights=bundle", f"weights.dir={given.weights.resolve()}"] if given.weights else []
    folder = given.out / "cases"
    rows = {
        "talk": lambda: talk(weights, folder, given.count, given.seconds),
        "text": lambda: text(weights, folder, given.count),
        "settings": lambda: settings(weights, folder, given.count, given.seconds, _scored),
        "endurance": lambda: endurance(weights, folder, given.seconds),
        "voices": lambda: voices(weights, given.count, given.seconds),
    }[given.part]()
    write(given.out, given.part, rows, given)
    if given.part == "settings":
        figure(given.out / "settings.png", rows)


if __name__ == "__main__":
    main()
