"""The page in a real browser, headless, with a fake avatar behind it. Screenshots go to $LIVEAVATAR_SCREENSHOTS."""

from __future__ import annotations

import io
import os
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.ui.fake import RATE, Loader
from tests.ui.serving import PATIENCE_S, Server, eventually, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

PHONE = {"width": 390, "height": 844}
LEAD_S = 0.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, whose microphone hears a tone from a file."""
    tone = tmp_path_factory.mktemp("mic") / "tone.wav"
    samples = (0.6 * np.sin(2 * np.pi * 300 * np.arange(48_000 * 3) / 48_000) * 32767).astype("<i2")
    with wave.open(str(tone), "wb") as file:
        file.setparams((1, 2, 48_000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    words = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    words += [f"--use-file-for-fake-audio-capture={tone}", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=words)
        yield made
        made.close()


@pytest.fixture(scope="module")
def house() -> Iterator[Server]:
    with serving(Loader(places=2, lead_s=LEAD_S), per_address=8) as running:
        yield running


class Visitor:
    """A person before the page. `said` is what the browser's console complained about."""

    def __init__(self, browser: Any, server: Server, width: dict[str, int] | None = None, **more: Any) -> None:
        self.context = browser.new_context(viewport=width or {"width": 1200, "height": 900}, **more)
        self.page, self.server = self.context.new_page(), server
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.said: list[str] = []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def come(self) -> Visitor:
        self.page.goto(self.server.url)
        self.page.wait_for_selector("#engine[data-state=ready]")
        return self

    def until(self, words: str) -> Any:
        """Wait for JavaScript to hold. The page forbids what Playwright's own waiting does (it evaluates strings)."""
        for _ in range(round(PATIENCE_S * 20)):
            if found := self.page.evaluate(words):
                return found
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true in the browser: {words}; {self.said}")

    def watches(self, seconds: float = 0.3) -> None:
        """The picture is there and moves on."""
        began = self.page.evaluate("video.currentTime")
        self.until(f"!video.hidden && !video.paused && video.currentTime > {began + seconds}")

    def snap(self, name: str, **more: Any) -> None:
        if folder := os.environ.get("LIVEAVATAR_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", **more)


@pytest.fixture
def visit(browser: Any, house: Server) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors; at the end none of them may have seen an error, and nothing of theirs is left."""
    made: list[Visitor] = []

    def come(**more: Any) -> Visitor:
        made.append(Visitor(browser, house, **more))
        return made[-1].come()

    yield come
    for visitor in made:
        visitor.context.close()
    assert [words for visitor in made for words in visitor.said] == []
    eventually(house.empty)


def _session(server: Server) -> Any:
    return server.loader.avatar.sessions[-1]


def _loud(sounds: list[np.ndarray], seconds: float) -> bool:
    heard = np.concatenate([*sounds, np.zeros(1)])
    return (np.abs(heard) > 0.1).sum() > seconds * RATE / 2


def test_an_example_says_a_sentence_and_is_interrupted(visit: Any, house: Server) -> None:
    visitor = visit()
    page = visitor.page
    visitor.snap("1-arrived")
    page.check("input[value='example:fashion_blogger']")
    page.fill("#sentence", "I speak while I am being made, and I can be interrupted at any time. " * 3)
    page.click("#say")
    visitor.watches()
    assert _session(house).said[0][1] == "en-us"
    assert page.input_value("#prompt") == _session(house).prompt
    # what this process holds by now, be it little (the file alone) or much (behind all other tests)
    visitor.until("/^[0-9.]+ [MG]B$/.test(document.getElementById('m-memory').textContent)")
    visitor.snap("2-speaking")
    before = page.evaluate("video.currentTime")
    page.click("#interrupt")
    eventually(lambda: _session(house).interrupted == 1)
    visitor.until("document.getElementById('caption').textContent.startsWith('Interrupted')")
    visitor.watches(0.6)
    assert page.evaluate("video.buffered.length") == 1  # no hole where it was cut
    assert page.evaluate("video.currentTime") > before
    with page.expect_download() as download:
        page.click("#download")
    made = download.value.path().read_bytes()
    with av.open(io.BytesIO(made), "r") as file:
        assert file.duration is not None
        frames = sum(1 for _ in file.decode(video=0))
        assert file.duration / 1e6 == pytest.approx(frames / 25, abs=0.3)
    page.click("#start")
    visitor.until("document.getElementById('start').textContent == 'Start'")
    eventually(house.empty)


def test_uploads_by_choice_and_by_drop(visit: Any, house: Server, files: dict[str, bytes]) -> None:
    visitor = visit()
    page = visitor.page
    page.set_input_files("#portrait-file", {"name": "me.png", "mimeType": "image/png", "buffer": files["png"]})
    page.wait_for_selector("#gallery label:nth-child(4)")
    page.click("#tab-voice")
    drop = """(data) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(data)], "voice.wav", { type: "audio/wav" }));
      const drop = new DragEvent("drop", { dataTransfer: files, bubbles: true });
      document.getElementById("voice-drop").dispatchEvent(drop);
    }"""
    page.evaluate(drop, list(files["wav"]))
    visitor.until("document.getElementById('recording').selectedOptions[0].textContent.startsWith('voice.wav (1.0 s)')")
    visitor.snap("3-uploaded")
    page.click("#play")
    visitor.watches()
    assert np.asarray(_session(house).image)[:, :, 0].mean() == pytest.approx(200, abs=3)
    eventually(lambda: _loud(_session(house).heard, 0.8))


def test_the_microphone_is_heard(visit: Any, house: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.click("#tab-mic")
    page.click("#mic")
    visitor.watches()
    eventually(lambda: _loud(_session(house).heard, 0.8))
    visitor.until("document.getElementById('level').value > 0.1")
    assert page.evaluate("video.muted")  # or it would speak back
    visitor.snap("4-microphone")
    page.click("#mic")
    assert page.get_attribute("#mic", "aria-pressed") == "false"
    assert not page.evaluate("video.muted")
    heard = len(_session(house).heard)
    visitor.watches(0.3)
    assert len(_session(house).heard) <= heard + 1


def test_reloading_in_mid_stream_begins_anew(visit: Any, house: Server) -> None:
    visitor = visit()
    for _ in range(3):
        visitor.page.click("#say")
        visitor.watches(0.2)
        session = _session(house)
        visitor.page.reload()
        visitor.page.wait_for_selector("#engine[data-state=ready]")
        assert session.closed.wait(PATIENCE_S)
    eventually(house.empty)


def test_two_at_once_and_a_third_in_the_line(visit: Any, house: Server) -> None:
    first, second, third = visit(), visit(), visit()
    first.page.click("#say")
    second.page.check("input[value='example:music_producer']")
    second.page.click("#say")
    first.watches()
    second.watches()
    assert len(house.loader.avatar.open) == 2
    third.page.click("#say")
    third.until("document.getElementById('caption').textContent.includes('You are next')")
    third.snap("5-waiting")
    first.page.click("#start")
    third.watches()
    second.watches()
    assert len(house.loader.avatar.open) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit: Any, house: Server, scheme: str) -> None:
    visitor = visit(width=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    page = visitor.page
    page.tap("#say")
    visitor.watches()
    page.tap("#settings summary")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    visitor.snap(f"6-phone-{scheme}", full_page=True)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in back[4:-1].split(",")) > 380) == (scheme == "light")
    small = "[...document.querySelectorAll('button, select')].filter(e => e.offsetParent && e.offsetHeight < 36).length"
    assert page.evaluate(small) == 0  # a finger finds them


def test_with_the_keyboard_alone(visit: Any, house: Server) -> None:
    page = (visitor := visit()).page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to what to say
    page.focus("#sentence")
    page.keyboard.press("Control+a")
    page.keyboard.type("Typed and sent without a mouse, and long enough to be cut short.")
    page.keyboard.press("Control+Enter")
    visitor.watches()
    assert _session(house).said[0][0].startswith("Typed and sent")
    page.keyboard.press("Escape")
    eventually(lambda: _session(house).interrupted == 1)
    page.focus("#tab-type")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-voice"
    assert page.is_visible("#pane-voice")
    names = """[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.offsetParent)
      .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.id)"""
    assert page.evaluate(names) == []  # whoever hears the page hears what each thing is


def test_a_browser_without_media_source_plays_pictures(visit: Any, house: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.add_init_script("delete window.MediaSource; delete window.ManagedMediaSource;")
    page.reload()
    page.wait_for_selector("#engine[data-state=ready]")
    page.click("#say")
    visitor.until("!canvas.hidden && canvas.toDataURL().length > 9000")
    page.click("#interrupt")
    eventually(lambda: _session(house).interrupted == 1)
    visitor.until("document.getElementById('caption').textContent.startsWith('Interrupted')")
    assert page.is_disabled("#download")


def test_mistakes_are_told_in_plain_words(visit: Any, house: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.set_input_files("#portrait-file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    visitor.until("document.getElementById('problem-words').textContent.includes('Give a PNG, JPEG or WebP')")
    visitor.snap("7-mistake")
    page.click("#problem-close")
    page.evaluate("""() => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(17e6)], "b.png", { type: "image/png" }));
      const drop = new DragEvent("drop", { dataTransfer: files, bubbles: true });
      document.getElementById("portrait-drop").dispatchEvent(drop);
    }""")
    visitor.until("document.getElementById('problem-words').textContent.includes('at most 16 MB')")
    page.fill("#sentence", "  ")
    page.click("#say")
    visitor.until("document.getElementById('problem-words').textContent == 'Write a sentence first.'")
    page.click("#settings summary")
    page.fill("#prompt", "raise at 1")
    page.fill("#sentence", "Now something breaks.")
    page.click("#say")
    visitor.until("document.getElementById('problem-words').textContent.includes('What was shown is kept')")
    assert page.is_enabled("#download")
    assert all("status of 422" in words for words in visitor.said)  # what the browser itself says of a refused file
    visitor.said.clear()


def test_settings_load_the_model_anew(visit: Any, house: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.click("#settings summary")
    assert page.is_disabled("#apply")
    page.select_option("#strategy", "fsdp_stream")
    page.evaluate("steps.value = 2; steps.dispatchEvent(new Event('input'))")
    assert "Fewest bytes" in page.inner_text("#about-strategy")
    visitor.snap("8-settings", full_page=True)
    page.click("#apply")
    visitor.until("document.getElementById('problem-words').textContent.startsWith('Loaded')")
    assert page.is_disabled("#apply")
    page.click("#say")
    visitor.watches()
    assert house.engine_choice() == ("fsdp_stream", 2)


def test_the_door_with_a_password(browser: Any) -> None:
    with serving(password="opensesame") as server:
        visitor = Visitor(browser, server)
        page = visitor.page
        page.goto(server.url)
        page.fill("#password", "guess")
        page.click("text=Come in")
        page.wait_for_selector("text=That is not the password.")
        visitor.snap("9-door")
        page.fill("#password", "opensesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#engine[data-state=ready]")
        page.click("#say")
        visitor.watches()
        visitor.context.close()
        assert all("401" in words for words in visitor.said)


def test_a_server_that_goes_away_is_told(browser: Any) -> None:
    with serving() as server:
        visitor = Visitor(browser, server).come()
        visitor.page.click("#say")
        visitor.watches(0.1)
    visitor.until("document.getElementById('problem-words').textContent.length > 10")
    visitor.until("document.getElementById('engine-words').textContent == 'no server'")
    assert visitor.page.is_enabled("#download")
    visitor.context.close()
