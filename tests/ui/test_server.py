"""The live server on the loopback with a fake avatar: what it gives, to how many, and what it survives."""

from __future__ import annotations

import errno
import io
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from liveavatar.config import compose, make
from liveavatar.ui.house import Recording
from liveavatar.ui.protocol import KINDS, PLAIN
from liveavatar.ui.settings import ServerSettings
from tests.ui.fake import FRAMES, RATE, SIDE, Loader
from tests.ui.serving import Client, Server, eventually, serving


def _tone(seconds: float, rate: int = RATE) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    return (wave * 32767).astype("<i2").tobytes()


def _ready(client: Client, **values: Any) -> Client:
    client.start(**values).until("ready")
    return client


def _read(mp4: bytes) -> tuple[int, np.ndarray]:
    """Pictures in an MP4, and its sound."""
    with av.open(io.BytesIO(mp4), "r") as file:
        pictures = sum(1 for _ in file.decode(video=0))
    with av.open(io.BytesIO(mp4), "r") as file:
        sound = [frame.to_ndarray()[0] for frame in file.decode(audio=0)]
    return pictures, np.concatenate(sound)


def _loud(jpeg: bytes) -> bool:
    return bool(np.frombuffer(jpeg, "<i2", int(np.frombuffer(jpeg, "<u4", 1, 12)[0]), 16).any())


def test_a_stream_as_mp4_from_start_to_finish() -> None:
    with serving() as server, server.connect() as client:
        assert client.hear()["type"] == "welcome"
        _ready(client, format="mp4", prompt="A man", seed=3)
        client.say("say", text="hello there", voice="de")
        told = client.until("started")  # before or behind "saying", whichever is quicker
        assert told["mime"].startswith('video/mp4; codecs="avc1.')
        assert (told["width"], told["height"], told["fps"]) == (SIDE, SIDE, 25)
        chunk = client.until("chunk")
        assert chunk["at"] == 0
        assert {"stats", "memory", "busy", "timings"} <= set(chunk)
        assert chunk["memory"]["plan"] == 1_300_000
        client.say("finish")
        client.until("finished")
        (session,) = server.loader.avatar.sessions
        assert session.said == [("hello there", "de")]
        assert (session.prompt, session.seed) == ("A man", 3)
        pictures, sound = _read(b"".join(client.video))
        assert pictures == session.made * FRAMES
        assert np.abs(sound).max() > 0.3
        eventually(server.empty)


def test_a_stream_as_jpeg_holds_the_sound_that_was_pushed() -> None:
    with serving() as server, server.connect() as client:
        _ready(client, rate=48_000)
        for piece in range(0, 96_000, 10_000):
            client.link.send(_tone(1, 48_000)[piece : piece + 10_000])
        client.say("finish")
        client.until("finished")
        sounds = []
        for data in client.video:
            count, fps = np.frombuffer(data, "<u2", 2, 4)
            rate, samples = np.frombuffer(data, "<u4", 2, 8)
            assert (data[:4], count, fps, rate) == (b"LAJ1", FRAMES, 25, RATE)
            sounds.append(np.frombuffer(data, "<i2", samples, 16))
            place = 16 + 2 * int(samples)
            for _ in range(count):
                (size,) = np.frombuffer(data, "<u4", 1, place)
                assert data[place + 4 : place + 6] == b"\xff\xd8"
                place += 4 + int(size)
            assert place == len(data)
        heard = np.concatenate(sounds) / 32768
        (session,) = server.loader.avatar.sessions
        assert sum(map(len, session.heard)) == pytest.approx(RATE, abs=20)
        spoken = np.abs(heard).reshape(-1, 320).max(axis=1) > 0.1
        assert spoken.sum() == pytest.approx(50, abs=4)  # a second of it, in pieces of 20 ms


def test_uploads_become_portrait_and_voice(files: dict[str, bytes]) -> None:
    with serving() as server:
        portrait, voice = server.upload("picture", files["png"]), server.upload("voice", files["wav"])
        with server.connect() as client:
            _ready(client, portrait=portrait, format="mp4").say("play", voice=voice)
            assert client.until("playing")["seconds"] == pytest.approx(1, abs=0.01)
            client.say("play", voice="example:toon")
            client.until("playing")
            client.say("finish")
            client.chunks(2)
        (session,) = server.loader.avatar.sessions
        assert np.asarray(session.image)[:, :, 0].mean() == pytest.approx(200, abs=3)
        assert session.heard[0].max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("form", ["mp4", "jpeg"])
def test_an_interruption_drops_what_was_not_sent(form: str) -> None:
    with serving() as server, server.connect() as client:
        _ready(client, format=form).say("say", text="a long sentence " * 20)  # 26 s
        client.until("saying")
        while form == "jpeg" and not (client.video and _loud(client.video[-1])):
            client.chunks(1)
        client.chunks(2)
        client.say("interrupt")
        client.until("interrupted")
        before = len(client.video)
        client.chunks(3)
        client.say("finish")
        client.until("finished")
        (session,) = server.loader.avatar.sessions
        assert session.interrupted == 1
        assert server.house.figures.get("interruptions_total") == 1
        if form == "jpeg":
            assert not any(map(_loud, client.video[before + 1 :]))  # a block that was under way comes first
        else:
            pictures, sound = _read(b"".join(client.video))  # one timeline without a hole
            assert pictures == FRAMES * round(sum(len(data) > 0 for data in client.video[:-1]))
            assert len(sound) / 48_000 == pytest.approx(pictures / 25, abs=0.1)


def test_a_prompt_changes_in_mid_stream() -> None:
    with serving() as server, server.connect() as client:
        _ready(client).chunks(1)
        client.say("set", prompt="A woman, laughing")
        client.until("set")
        assert server.loader.avatar.sessions[0].prompt == "A woman, laughing"


def test_others_are_told_their_place_in_the_line() -> None:
    with serving(Loader(places=1)) as server, server.connect() as first, server.connect() as second:
        _ready(first).chunks(1)
        assert second.start().until("queued")["place"] == 1
        with server.connect() as third, server.connect() as fourth:
            assert third.start().until("queued")["place"] == 2
            assert fourth.start().until("queued")["place"] == 3
            assert server.ask("/health").json()["waiting"] == 3
            third.close()
            assert fourth.until("queued")["place"] == 2
            first.say("stop")
            second.until("ready")
            assert fourth.until("queued")["place"] == 1
            second.vanish()
            fourth.until("ready")
            fourth.chunks(1)
        eventually(server.empty)
        assert max(len(loaded.open) for loaded in server.loader.avatars) <= 1


def test_a_full_line_sends_away() -> None:
    with serving(Loader(places=1), waiting=1) as server, server.connect() as first, server.connect() as second:
        _ready(first)
        second.start().until("queued")
        with server.connect() as third:
            told = third.start()
            third.until("welcome")
            assert told.hear()["code"] == "full"


def test_an_address_has_so_many_connections_and_no_more() -> None:
    with serving(per_address=2) as server, server.connect() as first, server.connect():
        with server.connect() as third:
            assert third.hear()["code"] == "too_many_here"
        first.close()
        eventually(lambda: len(server.house.visits) == 1)
        with server.connect() as again:
            assert again.hear()["type"] == "welcome"


@pytest.mark.parametrize("how", ["vanish", "close"])
def test_a_visitor_who_leaves_takes_everything_along(how: str) -> None:
    with serving() as server, server.connect() as other:
        _ready(other).chunks(1)
        for prompt in ("speak", "hold"):
            client = server.connect()
            _ready(client, prompt=prompt)
            if prompt == "speak":
                client.chunks(1)
            getattr(client, how)()
            eventually(lambda: len(server.loader.avatar.open) == 1 and server.house.places.taken == 1)
        other.chunks(2)
        assert server.healthy()


def test_a_session_that_breaks_is_told_and_disturbs_nobody() -> None:
    with serving() as server, server.connect() as well, server.connect() as ill:
        _ready(well).chunks(1)
        ill.start(prompt="raise at 2", format="mp4")
        ill.until("ready")
        ill.chunks(2)
        told = ill.hear()
        assert (told["type"], told["code"]) == ("error", "broken")
        assert "others are not disturbed" in told["message"]
        assert _read(b"".join(ill.video))[0] == 2 * FRAMES  # finished chunks are kept
        well.chunks(2)
        assert server.healthy()
        eventually(lambda: len(server.loader.avatar.open) == 1)
        assert server.house.figures.get("streams_ended_total", how="failed") == 1


def test_a_lost_rank_is_told_to_all_who_come() -> None:
    with serving(Loader(processes=2)) as server:
        with server.connect() as client:
            client.start(prompt="raise at 1").until("ready")
            client.chunks(1)
            assert client.hear()["code"] == "broken"
        answer = server.ask("/health")
        assert answer.status == 503
        assert "rank 1 was lost" in answer.json()["reason"]
        with server.connect() as client:
            client.start().until("preparing")
            assert "Start the server again" in client.hear()["message"]
        assert server.ask("/engine", {"strategy": "fsdp_stream", "steps": 1, "shift": 1.0}).status == 403
        eventually(server.empty)


def test_a_session_that_cannot_begin_says_why() -> None:
    with serving() as server, server.connect() as client:
        client.start(prompt="refuse").until("preparing")
        assert "request.prompt: this one is refused" in client.hear()["message"]
        eventually(server.empty)


class _Raising:
    """A sink that takes two pieces."""

    def __init__(self) -> None:
        self.pieces, self.closed = 0, False

    def open(self, info: Any) -> None: ...

    def write(self, chunk: Any) -> None:
        self.pieces += 1
        if self.pieces > 2:
            raise RuntimeError("this sink is tired")

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_raises_stops_no_stream() -> None:
    tired, kept = _Raising(), []

    class Keeping(_Raising):
        def write(self, chunk: Any) -> None:
            kept.append(chunk)

    with serving(sinks=lambda form: {"tired sink": tired, "other": Keeping()}) as server, server.connect() as client:
        _ready(client)
        assert "this sink is tired" in client.until("notice")["message"]
        client.chunks(2)
        client.say("finish")
        client.until("finished")
        assert tired.closed
        assert [data for data in kept if data] == client.video
        assert server.house.figures.get("recordings_failed_total") == 1


def test_recordings_are_kept_up_to_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Recording.write

    def full(self: Recording, chunk: Any) -> None:
        if self.path.stat().st_size and len(list(tmp_path.iterdir())) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, chunk)

    monkeypatch.setattr(Recording, "write", full)
    with serving(record=str(tmp_path)) as server:
        for _ in range(2):
            with server.connect() as client:
                _ready(client, format="mp4").chunks(2)
                if len(list(tmp_path.iterdir())) == 2:
                    assert "No space left" in client.until("notice")["message"]
                client.chunks(1)
                client.say("finish")
                client.until("finished")
        whole, cut = sorted(tmp_path.iterdir(), key=lambda path: -path.stat().st_size)
        assert _read(whole.read_bytes())[0] >= 3 * FRAMES
        assert _read(cut.read_bytes())[0] == FRAMES


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server, server.connect() as client:
        _ready(client).chunks(1)
        real = time.time
        for hours in (5, -7, 0):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
            client.chunks(2)
        client.say("finish")
        client.until("finished")


def test_a_stream_ends_where_nobody_speaks_or_its_time_is_over() -> None:
    for settings, words in (
        ({"idle_minutes": 1e-9}, "Nothing was said"),
        ({"stream_minutes": 0.01}, "minutes at most"),
    ):
        with serving(**settings) as server, server.connect() as client:
            assert words in _ready(client).until("notice")["message"]
            client.until("finished")
            eventually(server.empty)


def test_a_visitor_who_does_not_take_what_is_sent_is_let_go() -> None:
    with serving(Loader(side=512), patience_s=0.3) as server, server.connect(max_queue=1) as client:
        _ready(client, format="jpeg")
        eventually(server.empty)  # nobody reads here
        assert server.healthy()


def test_settings_load_the_model_anew() -> None:
    with serving() as server:
        before = server.ask("/state").json()
        assert before["choice"] == {"strategy": "single_device", "steps": 4, "shift": 3.0}
        chosen = {"strategy": "fsdp_stream", "steps": 2, "shift": 5.0}
        assert server.ask("/engine", chosen).json()["choice"] == chosen
        assert [avatar.closed for avatar in server.loader.avatars] == [True, False]
        refused = server.ask("/engine", chosen | {"shift": 11.0})
        assert refused.status == 422
        assert "all is as it was before" in refused.json()["message"]
        assert server.ask("/state").json()["choice"] == chosen
        for wrong in ({"strategy": "timestep_pipeline"}, {"steps": 99}, {"shift": "3"}, {"weights": "/etc"}):
            assert server.ask("/engine", chosen | wrong).status == 400
        with server.connect() as client:
            _ready(client).chunks(1)
            assert server.ask("/engine", chosen).status == 409
            client.chunks(1)
    for fixed in ({"restart": False}, {"host": "0.0.0.0"}):  # whoever comes from elsewhere may not, unless told
        with serving(**fixed) as server:
            assert server.ask("/engine", chosen).status == 403
            assert not server.ask("/state").json()["may_change"]


def test_metrics_are_text_that_prometheus_reads() -> None:
    with serving() as server, server.connect() as client:
        _ready(client).chunks(1)
        lines = server.ask("/metrics").body.decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert values["liveavatar_streams"] == "1"
        assert int(values["liveavatar_frames_total"]) % FRAMES == 0
        assert float(values["liveavatar_resident_bytes"]) > 1e7
        kinds = [line.split()[2] for line in lines if line.startswith("# TYPE")]
        assert len(kinds) == len(set(kinds))
        assert {name.partition("{")[0] for name in values} == set(kinds)


def test_sound_is_refused_before_there_is_a_stream(server: Server) -> None:
    with server.connect() as client:
        client.until("welcome")
        client.link.send(_tone(0.1))
        assert client.hear()["code"] == "not_started"
        client.say("interrupt")
        assert client.hear()["code"] == "not_started"


def test_a_connection_carries_one_stream(server: Server) -> None:
    with server.connect() as client:
        _ready(client).say("start", portrait="example:toon")
        while (told := client.hear())["type"] == "chunk":
            pass
        while told["type"] in ("started", "chunk"):
            told = client.hear()
        assert told["code"] == "already"


def test_a_voice_that_is_not_there_is_named(server: Server) -> None:
    with server.connect() as client:
        _ready(client).say("say", text="hello", voice="nobody")
        while (told := client.hear())["type"] in ("chunk", "started"):
            pass
        assert "no voice of that name" in told["message"]
        client.chunks(1)


def test_the_server_closes_with_streams_under_way() -> None:
    with serving() as server:
        client = server.connect()
        _ready(client, prompt="hold")
    client.until_closed()
    assert not server.loader.avatar.open
    assert server.loader.avatar.closed


def test_the_protocol_is_as_its_page_says(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = server.ask("/protocol").body.decode()
    for kind, message in KINDS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{kind}`") and line.count("|") == 3]
        assert all(f"`{name}`" in row or name in row.split("`[")[0] for name in message.__dataclass_fields__), row
    assert all(f"| `{kind}` |" in page for kind in PLAIN)
    example = "\n".join(line[4:] for line in page.splitlines() if line.startswith("    "))
    assert "7860" in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("7860", str(server.port)), "PROTOCOL.md", "exec"), {})
    assert _read((tmp_path / "avatar.mp4").read_bytes())[0] >= 2 * FRAMES


def test_the_node_of_the_configuration_is_what_the_server_takes() -> None:
    node = compose("serve", ["server.port=8000", "+strategy=fsdp_stream"])
    assert make(node.server, "server") == ServerSettings(port=8000)
    assert set(node.server) - {"_target_"} == set(ServerSettings.__dataclass_fields__)
    with pytest.raises(ValueError, match=r"server\.port=99999"):
        make(compose("serve", ["server.port=99999"]).server, "server")
