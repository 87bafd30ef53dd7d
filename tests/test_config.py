"""Words and paths from the command line reach the configuration as they were typed."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from liveavatar.config import FREE_TEXT, asset, compose, conf_dir, make, quoted

NASTY = (
    "A man, smiling: \"hello\" (softly) [a b] {c} = d; it's $5 & 100% of 'it'",
    "${oc.env:HOME} ${seed} \\${seed} $x",
    "first line\nsecond\tline\n",
    "ein Mädchen — 微笑み … 🙂",
    "C:\\temp\\",
    "ends in \\\\",
    '"quoted" and "quoted"',
    "true",
    "1e5",
    "~/me, my=self + you.png",
    " spaces ",
    "a'b",
    '"',
    "[a,b]",
    "x=1",
    "{",
)


def _understood(key: str, text: str) -> str:
    """What Hydra and OmegaConf together make of `key=text` behind `quoted`."""
    (argument,) = quoted([f"{key}={text}"])
    value = OverridesParser.create().parse_override(argument).value()
    return OmegaConf.create({"value": value}).value


@pytest.mark.parametrize("text", NASTY)
def test_a_prompt_arrives_as_it_was_typed(text: str) -> None:
    assert compose("infer", [f"request.prompt={text}"]).request.prompt == text


def test_any_text_arrives_as_it_was_typed() -> None:
    parts = [*"\\\"'${},:=()[] \t\n#%@*?~!|&;<>+-.0aé…", "${", "\\${", '\\"', "null", "${oc.env:X}", "\\\\"]
    drawn = random.Random(0)
    for _ in range(3000):
        text = "".join(drawn.choices(parts, k=drawn.randint(1, 9)))
        if quoted([f"request.prompt={text}"]) == [f"request.prompt={text}"]:
            assert text == "null" or text[0] == text[-1] in "\"'"  # the user's own quotes
        else:
            assert _understood("request.prompt", text) == text, text


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("key", FREE_TEXT)
def test_quoting_twice_is_quoting_once(key: str, text: str) -> None:
    """Processes that are started with the arguments of the first one quote them again."""
    once = quoted([f"{key}={text}"])
    assert quoted(once) == once


def test_paths_may_hold_anything_and_may_be_interpolations() -> None:
    for path in ("/my files/a, b=c (1).wav", "a.wav+b c.wav", "~/x.png", "out{1}"):
        assert _understood("request.audio", path) == path
    shipped = compose("infer", ["request.image=${asset:music_producer.jpg}"]).request.image
    assert shipped == asset("music_producer.jpg")
    with pytest.raises(ValueError, match=r"fashion_blogger\.jpg"):
        asset("nobody.jpg")


def test_what_needs_no_quotes_gets_none() -> None:
    plain = ["model=tiny", "sampler.steps=2", "request.size=704*384", "request.pose=null", "--help", "request.prompt="]
    assert quoted(plain) == plain
    assert quoted(['request.prompt="my own, quotes"']) == ['request.prompt="my own, quotes"']


def test_composing_leaves_no_trace() -> None:
    from hydra.core.global_hydra import GlobalHydra

    arguments = list(sys.argv)
    assert compose("infer", ["model=micro"]).model.name == "micro"
    assert not GlobalHydra.instance().is_initialized()
    assert sys.argv == arguments
    assert conf_dir().endswith("conf")


def test_a_node_that_does_not_fit_its_constructor_is_named() -> None:
    with pytest.raises(ValueError, match=r"sampler\.steps=0"):
        make(compose("infer", ["sampler.steps=0"]).sampler, "sampler")
    with pytest.raises(ValueError, match=r"^sampler: .*EulerSampler"):
        make(compose("infer", ["+sampler.wish=1"]).sampler, "sampler")
    distances = make(compose("infer", ["rollout.sink_distance=[2,5]"]).rollout, "rollout").sink_distance
    assert type(distances) is list  # nothing of OmegaConf goes further than this
    with pytest.raises(ValueError, match=r"rollout\.sink_distance"):
        make(compose("infer", ["rollout.sink_distance=[2]"]).rollout, "rollout")


@pytest.mark.parametrize("first", ["import liveavatar", "import liveavatar.assemble"])
def test_the_package_offers_the_function_however_often_it_is_asked(first: str) -> None:
    code = f"{first}\nimport liveavatar\nassert callable(liveavatar.assemble) and callable(liveavatar.assemble)"
    subprocess.run([sys.executable, "-c", code], check=True)
