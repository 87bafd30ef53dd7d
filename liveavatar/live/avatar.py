"""Models loaded once, for any number of live sessions."""

from __future__ import annotations

import atexit
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL.Image import Image
from torch import Tensor

from liveavatar.assemble import Loaded
from liveavatar.assemble import load as load_models
from liveavatar.choice import Chosen, choose
from liveavatar.config import compose, make
from liveavatar.intake import MIN_SIDE, VAE_STRIDE
from liveavatar.live.follow import Begin, Leave, Stretch, advance, begin, follow
from liveavatar.live.pace import Clock, SystemClock
from liveavatar.live.session import LiveSession
from liveavatar.live.settings import LiveSettings
from liveavatar.live.sound import LiveSound, sound_bytes
from liveavatar.live.turns import Turns
from liveavatar.media.image import as_image, fit_size, parse_area
from liveavatar.memory.sizes import DECODE_STATE
from liveavatar.models.dit.cache import StreamCaches
from liveavatar.models.dit.context import MOTION_LATENTS, Grid
from liveavatar.models.speech import WindowAudio
from liveavatar.session import Piece
from liveavatar.settings import storage_type
from liveavatar.strategies.announce import Announcements

Portrait = str | Path | bytes | Image | np.ndarray


def load(model: str = "tiny", overrides: Sequence[str] = ()) -> Avatar:
    """Bring a model to life for live sessions; weights load once.

    `overrides` are words of the command line: `load("tiny", ["+strategy=fsdp_stream", "sampler.steps=2"])`. Use as a
    context: leaving it closes all sessions and lets go of the weights. With several devices (`fabric.devices=2`, or
    torchrun) every process runs the program up to here, and it goes on on rank 0 alone: the others do as it says until
    the avatar is closed, and end. Raises ValueError, naming the key, for what cannot work.
    """
    return open_avatar(compose("infer", [f"model={model}", *overrides]))


def open_avatar(cfg: DictConfig, started: Callable[[Chosen], Path | None] = lambda chosen: None) -> Avatar:
    """`load` for a configuration that is composed already.

    `started` is called when all processes run and nothing is loaded yet; it gives the folder in which a shortage of
    memory is to be explained, if there is one.
    """
    settings = make(cfg.live, "live")
    chosen = choose(cfg)
    if chosen.rollout.mode == "clipwise":
        raise ValueError("rollout=clipwise decodes a clip at a time, which is not live: write rollout=streaming")
    if chosen.hoist > 1:
        raise ValueError(f"parallel.hoist={chosen.hoist} would wait for sound of later blocks: write parallel.hoist=1")
    chosen.launch()
    loaded, said = load_models(chosen.cfg, chosen, started(chosen)), None
    if chosen.fabric.world_size > 1:
        said = Announcements(chosen.strategy.roll, chosen.fabric.world_size)
        if chosen.fabric.global_rank:
            follow(loaded.session, chosen.strategy, said)
    return Avatar(chosen.cfg, loaded, settings, chosen.cells, said)


class Avatar:
    """The models of one configuration; `load` makes it. Sessions share the weights, and each has its own caches."""

    def __init__(
        self,
        cfg: DictConfig,
        loaded: Loaded,
        settings: LiveSettings,
        cells: int = 1,
        said: Announcements | None = None,
    ) -> None:
        self.cfg, self.loaded, self.settings, self.cells, self.said = cfg, loaded, settings, cells, said
        self.strategy, self.threads = loaded.strategy, torch.get_num_threads()
        self.models = loaded.session
        self.sessions: dict[int, LiveSession] = {}
        self._numbers = itertools.count()
        self._turns, self._reading, self._book = Turns(), threading.Lock(), threading.Lock()
        self._speaker: Any = None
        self._closed = False
        self._lost: BaseException | None = None
        if said is not None:
            atexit.register(self.close)  # the others wait for its word

    @property
    def trained(self) -> bool:
        """False where the weights are random and the picture is noise."""
        return "random" not in str(self.loaded.metrics["weights"])

    # ---- sessions

    def session(
        self,
        image: Portrait | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        size: str | int | None = None,
        start_block: int = 0,
        *,
        settings: LiveSettings | None = None,
        decode: bool = True,
        clock: Clock | None = None,
    ) -> LiveSession:
        """Begin a stream: the picture and the prompt are encoded here, before anything is shown.

        Args:
            image: a file, the bytes of one, a Pillow picture or uint8 [H, W, 3]; that of the configuration by default.
            prompt, seed, size: as `request.prompt`, `seed` and `request.size`, which they are by default.
            start_block: the number of the first block; a stream may begin as if it had run for days.
            settings: instead of those of the configuration (`live`).
            decode: False makes latents alone, and black frames that take no memory.
            clock: instead of the monotonic one; for tests.

        Raises:
            ValueError: for what cannot be used, naming the key.
        """
        asked = self.cfg.request
        picture = as_image(asked.image if image is None else image)
        words = str(asked.prompt or "") if prompt is None else prompt
        area = parse_area(asked.size if size is None else size, self.cfg.model.size_multiple)
        if isinstance(start_block, bool) or not isinstance(start_block, int) or start_block < 0:
            raise ValueError(f"start_block={start_block!r} must be a whole number from 0")
        chosen, timer = settings or self.settings, clock or SystemClock()
        seed = int(self.cfg.seed) if seed is None else seed
        pixels = np.asarray(picture)
        self.models.intake.sides(picture, area)  # what cannot be is said before others are told
        with self._together():
            asked_for = Begin(next(self._numbers), pixels, words, area, seed, start_block, decode)
            self._say(asked_for)
            with self._reading:
                stream = begin(self.models, asked_for)
            sound = LiveSound(self.models.device, timer.now)
            window = self.models.intake.window([sound])
            session = LiveSession(self, stream, sound, window, chosen, timer, words, asked_for.number, self._most)
        with self._book:
            self.sessions[session.number] = session
        return session

    @property
    def _most(self) -> int:
        """Blocks that are made in one go, where their sound is there: as many as are under way at once."""
        table = getattr(self.strategy, "table", None)
        return self.cells if table is None else table.under_way(self.cells)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Work that one session does at a time, on all ranks alike. Raises RankLost from the first loss on."""
        with self._turns:
            self._check_open()
            _settle_threads(self.threads)
            try:
                with self.strategy.watched():
                    yield
            except BaseException as error:
                if self.said is not None:  # the ranks are not in step any more
                    self._lost = error
                raise

    def _say(self, message: Begin | Stretch | Leave | None) -> None:
        if self.said is not None and self._lost is None:
            self.said.say(message)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the avatar is closed: load another with liveavatar.load(…)")
        if self._lost is not None:
            raise RuntimeError(f"the avatar cannot go on: {self._lost}") from self._lost

    # ---- what a session costs

    def size_of(self, image: Portrait | None = None, size: str | int | None = None) -> tuple[int, int]:
        """Height and width of the video of a picture (None: a square one)."""
        multiple = self.cfg.model.size_multiple
        area = parse_area(self.cfg.request.size if size is None else size, multiple)
        if image is None:
            side = max(MIN_SIDE, int(area**0.5) // multiple * multiple)
            return side, side
        picture = as_image(image)
        return fit_size(picture.height, picture.width, area, multiple)

    def cost(self, image: Portrait | None = None, size: str | int | None = None) -> int:
        """Bytes that one more session will hold on this rank: caches, decoder, conditioning and sound, before it is
        begun. Its activations come on top while it has its turn, once for all sessions."""
        height, width = self.size_of(image, size)
        dit, given = self.models.parts.dit, self.models.rollout
        grid = Grid(height // VAE_STRIDE, width // VAE_STRIDE)
        like = torch.empty(0, dtype=dit.dtype, device="meta")
        relay = self.models.relay()
        caches = StreamCaches(dit.cache_shape(grid, given.cache_frames), relay.steps, like)
        sinks = caches.sink.nbytes  # a second one while it is renewed
        item = storage_type(self.cfg, "encoders").itemsize
        scale = self.cfg.model.vae.get("base_dim", 96) / 96
        decoder = int(DECODE_STATE * scale * item * height * width)
        looks = (1 + MOTION_LATENTS) * 16 * grid.h * grid.w * item
        prompt = 2 * len(dit.stage) * dit.text_len * dit.dim * dit.dtype.itemsize if dit.hoist else 0
        sound = sound_bytes(self.settings.queue_s, self.models.intake.speech)
        return caches.nbytes + sinks + decoder + looks + prompt + sound

    # ---- what sessions ask for

    def read(self, prompt: str) -> Tensor:
        """A prompt, encoded."""
        with self._reading:
            return self.models.intake.read(prompt)

    def speak(self, text: str, voice: str | None) -> Iterable[tuple[np.ndarray, int]]:
        """A text as pieces of sound with their rates, by the configuration's `tts`."""
        if self._speaker is None:
            self._speaker = make(self.cfg.tts, "tts")
        return self._speaker.speak(text, voice)

    def hear(self, window: WindowAudio, block: int) -> Tensor:
        """The speech features of a block."""
        _settle_threads(self.threads)
        with torch.no_grad():
            return window.block(block)

    def stretch(
        self, session: LiveSession, first: int, features: list[Tensor], prompt: tuple[str, Tensor] | None
    ) -> list[Piece]:
        """Blocks of a session, made while no other session is."""
        words, text = (None, None) if prompt is None else prompt
        with self._together():
            stream = session.stream
            if stream is None:
                return []
            heard = [one.cpu() for one in features] if self.said is not None else features
            asked = Stretch(session.number, first, len(features), heard, words)
            self._say(asked)
            return advance(self.models, stream, asked, text)

    def left(self, session: LiveSession) -> None:
        """A session is over."""
        with self._book:
            known = self.sessions.pop(session.number, None) is not None
        if known and self.said is not None and not self._closed:
            with self._turns:
                self._say(Leave(session.number))

    def close(self) -> None:
        """Close all sessions and let go of the weights; a block under way is made to its end first."""
        with self._book:
            sessions = list(self.sessions.values())
        for session in sessions:
            session.close()
        with self._turns:
            if self._closed:
                return
            self._closed = True
            if self.said is not None and not isinstance(self._lost, ConnectionError):
                with suppress(RuntimeError, ConnectionError):  # the others are gone already
                    self.said.say(None)
                    self.said.wait_heard()
            self.strategy.release()
        atexit.unregister(self.close)

    def __enter__(self) -> Avatar:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


def _settle_threads(threads: int) -> None:
    """Bits are equal at equal thread counts: those of the configuration, in whatever thread this is."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
