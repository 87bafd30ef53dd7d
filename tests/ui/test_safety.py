"""What strangers send: refused in words, before it costs anything, while others go on."""

from __future__ import annotations

import contextlib
import io
import json
import random
import socket
import struct
import sys
import wave
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from liveavatar.ui import decoding, uploads
from liveavatar.ui.protocol import Mistake, Start, read_message, read_sound
from liveavatar.ui.settings import ServerSettings
from tests.ui.serving import PATIENCE_S, Server, eventually, serving

SETTINGS = ServerSettings()


def _png(width: int, height: int, data: bytes = b"\0") -> bytes:
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _flac(seconds: float) -> bytes:
    """Silence, of which a minute takes a few hundred bytes."""
    with av.open(made := io.BytesIO(), "w", format="flac") as file:
        stream = file.add_stream("flac", rate=16_000, layout="mono")
        for _ in range(round(seconds)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 16_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return made.getvalue()


def _messages(count: int, seed: int = 0) -> list[str | bytes]:
    """Messages that are none, each in a way of its own."""
    dice = random.Random(seed)
    start: dict[str, Any] = {"type": "start", "portrait": "example:toon"}
    fixed: list[Any] = [
        "", "{", "null", "[]", "7", '"start"', "{}", '{"type": null}', '{"type": []}', '{"type": "START"}', "NaN",
        "[" * 60_000, '{"type":' * 7_000, "\0", '{"type": "start"', "ÿ" * 100, '{"type": "start"}', b"", b"\0",
        {"type": "say"}, {"type": "say", "text": ""}, {"type": "say", "text": " \n"}, {"type": "say", "text": 7},
        {"type": "say", "text": "a" * 501}, {"type": "say", "text": "a\0b"}, {"type": "say", "text": "\ud800"},
        {"type": "say", "text": "a", "voice": "../../etc/passwd"}, {"type": "say", "text": "a", "voice": "-h"},
        {"type": "say", "text": "a", "voice": "x" * 65}, {"type": "say", "text": "a", "path": "/etc/passwd"},
        {"type": "interrupt", "now": True}, {"type": "finish", "type2": 1}, {"type": "stop", "why": "x"},
        {"type": "play"}, {"type": "play", "voice": None}, {"type": "play", "voice": {"a": 1}}, {"type": "set"},
        {"type": "set", "prompt": ["a"]}, {"type": "__class__"}, {"type": "set", "prompt": "x" * 501},
        {**start, "portrait": "/etc/passwd"}, {**start, "portrait": "example:../toon"}, {**start, "portrait": ""},
        {**start, "portrait": "file:///etc/passwd"}, {**start, "portrait": "http://127.0.0.1/"}, {**start, "seed": -1},
        {**start, "seed": 1.5}, {**start, "seed": True}, {**start, "seed": 2**40}, {**start, "rate": 0},
        {**start, "rate": 10**9}, {**start, "rate": "16000"}, {**start, "format": "exe"}, {**start, "format": None},
        {**start, "prompt": "p" * 501}, {**start, "__proto__": {}}, {**start, "image": "/etc/passwd"},
    ]  # fmt: skip
    made = [json.dumps(each) if isinstance(each, dict) else each for each in fixed]
    whole = json.dumps({**start, "seed": 3, "prompt": "A man", "format": "jpeg"})
    while len(made) < count:
        kind = dice.randrange(3)
        if kind == 0:
            made.append(dice.randbytes(2 * dice.randrange(400) + 1))  # half a sample too much
        elif kind == 1:
            made.append(whole[: dice.randrange(len(whole) - 1)])
        else:
            made.append("".join(chr(dice.randrange(32, 0x2FF)) for _ in range(dice.randrange(1, 300))))
    return made[:count]


def test_two_hundred_messages_that_are_none() -> None:
    with serving(per_address=8) as server, server.connect() as other:
        other.start().until("ready")
        client = server.connect()
        client.until("welcome")
        for mistakes, message in enumerate(_messages(200), 1):
            client.link.send(message)
            told = client.hear()
            assert told["type"] == "error", message
            assert set(told) == {"type", "code", "message"}
            assert told["message"].endswith((".", "…")), told
            if mistakes % 20 == 0:  # that many and no more from one connection
                assert client.hear()["code"] == "too_many"
                with pytest.raises(ConnectionClosed):
                    client.hear()
                assert server.healthy()
                other.chunks(1)
                client = server.connect()
                client.until("welcome")
        client.close()
        assert server.house.figures.get("malformed_total") == 200
        other.chunks(1)
        eventually(lambda: len(server.house.visits) == 1)


def test_messages_that_are_too_large_end_the_connection(server: Server) -> None:
    for message in ("x" * 70_000, b"x" * 70_000):
        with server.connect() as client:
            client.until("welcome")
            client.link.send(message)
            client.until_closed()
            assert client.link.close_code == 1009
    assert server.healthy()


def test_messages_are_read_word_by_word() -> None:
    given = {"type": "start", "portrait": "example:toon", "rate": 48_000}
    assert read_message(json.dumps(given), SETTINGS) == Start("example:toon", rate=48_000)
    assert read_sound(b"\0\x40\0\xc0").tolist() == [0.5, -0.5]
    with pytest.raises(Mistake, match="portrait"):
        read_message('{"type": "start"}', SETTINGS)


def _refused(server: Server, kind: str, data: bytes, status: int = 422) -> str:
    answer = server.ask(f"/upload/{kind}", data)
    assert answer.status == status, answer.body
    assert not server.house.uploads.kept
    return answer.json()["message"]


def _told(kind: str, data: bytes) -> str:
    """The refusal of what the server starts a process for."""
    limits: dict[str, Any] = {"pixels": SETTINGS.pixels} if kind == "picture" else {"seconds": SETTINGS.voice_s}
    with pytest.raises(decoding.Refused) as refused:
        getattr(decoding, kind)(data, **limits)
    return str(refused.value)


def test_pictures_that_are_none(server: Server, files: dict[str, bytes]) -> None:
    assert "megapixels" in _refused(server, "picture", _png(9_000, 9_000))
    assert "far too many" in _told("picture", _png(50_000, 50_000))
    assert "empty" in _refused(server, "picture", b"")
    assert "sound" in _told("picture", files["wav"])
    assert "HEIF" in _told("picture", b"\0\0\0\x18ftypheic" + bytes(100))
    assert "damaged" in _told("picture", _png(3_000, 3_000))
    assert "thin" in _told("picture", _png(5_000, 10))
    assert "damaged" in _told("picture", files["png"][:-60])
    kinds = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF89a",
    )
    for data in (*kinds, b"PK\3\4" + bytes(50), bytes(1000), b"#EXTM3U\nfile:///etc/passwd\n"):
        assert "PNG, JPEG or WebP" in _told("picture", data)


def test_voices_that_are_none(server: Server, files: dict[str, bytes]) -> None:
    assert "longer than the 120" in _refused(server, "voice", _flac(130))
    assert "WAV, MP3" in _refused(server, "voice", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    for data in (b"ffconcat version 1.0\nfile /etc/passwd\n", b"<MPD/>", files["png"], bytes(500), b"MThd" + bytes(50)):
        assert "WAV, MP3" in _told("voice", data)
    assert "WAV, MP3" in _told("voice", b"RIFF\0\0\0\0AVI " + bytes(50))
    for data in (
        files["wav"][:20],
        b"fLaC" + bytes(300),
        b"OggS" + bytes(300),
        b"ID3" + bytes(300),
        b"\xff\xfb" + bytes(300),
    ):
        assert "damaged" in _told("voice", data) or "no sound" in _told("voice", data)
    with wave.open(made := io.BytesIO(), "wb") as file:
        file.setparams((1, 2, 100, 1000, "NONE", ""))
        file.writeframes(bytes(2000))
    assert "100 Hz" in _told("voice", made.getvalue())


def test_random_bytes_after_a_good_beginning(server: Server, files: dict[str, bytes]) -> None:
    """Not one of these may do more than be refused, or decode to something."""
    dice = random.Random(0)
    for form, kind in (("png", "picture"), ("jpeg", "picture"), ("webp", "picture"), ("wav", "voice")):
        for number in range(30):
            data = bytearray(files[form])
            for _ in range(20):
                data[dice.randrange(12, len(data))] = dice.randrange(256)
            if number == 0:
                assert server.ask(f"/upload/{kind}", bytes(data)).status in (200, 422)
            with contextlib.suppress(decoding.Refused):
                getattr(decoding, kind)(bytes(data), 1e6 if kind == "picture" else 120)
    assert server.healthy()
    server.house.uploads.clear()


def test_a_damaged_end_of_a_voice_costs_only_the_end(files: dict[str, bytes]) -> None:
    with serving() as server:
        name = server.upload("voice", files["wav"][:30_000])
        assert server.house.uploads.get(name, "voice").about["seconds"] == pytest.approx(30_000 / 48_000, abs=0.05)


def test_files_that_are_too_large_are_refused_before_they_arrive() -> None:
    with serving(upload_mb=0.1) as server:
        told = server.ask("/upload/picture", method="POST", Content_Length="100001")  # and not a byte of it
        assert told.status == 413
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as link:
            head = "POST /upload/voice HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            link.sendall(head.encode() + (b"4000\r\n" + bytes(0x4000) + b"\r\n") * 7)
            assert b"413" in link.recv(1000).split(b"\r\n")[0]
        assert not server.house.uploads.kept
        assert not server.house.uploads._arriving


def test_a_visitor_who_leaves_in_mid_upload_leaves_nothing(server: Server) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as link:
            link.sendall(b"POST /upload/voice HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n" + bytes(500))
        eventually(lambda: not server.house.uploads._arriving)
    assert not server.house.uploads.kept
    assert server.healthy()


def test_uploads_are_bounded_in_number(
    server: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "KEPT_PER_ADDRESS", 2)
    names = [server.upload("picture", files["jpeg"]) for _ in range(uploads.KEPT_PER_ADDRESS + 1)]
    assert len(set(names)) == len(names)
    assert len(server.house.uploads.kept) == uploads.KEPT_PER_ADDRESS
    with server.connect() as client:
        client.start(portrait=names[0])
        client.until("welcome")
        assert client.hear()["code"] == "unknown_upload"
    server.house.uploads.clear()


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_decoder_that_is_killed_takes_nothing_along(
    server: Server, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(uploads, "_CHILD", tmp_path / "killed.py")
    assert "broke on this file" in _refused(server, "picture", files["png"])
    (tmp_path / "killed.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(uploads, "SLOWEST_S", 0.2)
    assert "too long" in _refused(server, "picture", files["png"])
    monkeypatch.undo()
    server.upload("picture", files["png"])
    server.house.uploads.clear()


def test_a_picture_is_turned_upright_and_told_nothing_of(server: Server) -> None:
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    exif[271] = "a maker"
    Image.new("RGB", (80, 40), (9, 99, 199)).save(made := io.BytesIO(), "JPEG", exif=exif)
    kept = server.house.uploads.get(server.upload("picture", made.getvalue()), "picture")
    assert (kept.about["width"], kept.about["height"]) == (40, 80)
    assert b"a maker" not in kept.png
    server.house.uploads.clear()


@pytest.mark.parametrize(
    "path",
    ["/../settings.py", "/page/../../settings.py", "/%2e%2e/settings.py", "/examples/../page.jpg", "/examples/x.jpg",
     "/examples/%2e%2e%2f%2e%2e%2fsettings.jpg", "//etc/passwd", "/etc/passwd", "/page.css/..", "/index.html", "/.env"],
)  # fmt: skip
def test_no_path_is_ever_opened(server: Server, path: str) -> None:
    assert server.ask(path).status == 404


def test_pages_bring_nothing_from_elsewhere(server: Server) -> None:
    for path in ("/", "/login", "/page.css", "/page.js", "/player.js", "/microphone.js", "/recorder.js", "/login.js"):
        answer = server.ask(path)
        assert answer.status == 200
        assert b"http://" not in answer.body.replace(b"http://www.w3.org", b"")
        assert b"https://" not in answer.body
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_only_its_own_page_may_call(server: Server, files: dict[str, bytes]) -> None:
    own, other = server.url, "http://evil.example"
    assert server.ask("/upload/picture", files["png"], Origin=own).status == 200
    server.house.uploads.clear()
    for headers in ({"Origin": other}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert server.ask("/upload/picture", files["png"], **headers).status == 403
        assert server.ask("/engine", {}, **headers).status == 403
    preflight = server.ask("/upload/picture", method="OPTIONS", Origin=other)
    assert preflight.status == 403
    with pytest.raises(InvalidStatus):
        server.connect(origin=other)
    server.connect(origin=own).close()
    # a name elsewhere that was made to point here is not this server
    assert server.ask("/state", Host="evil.example").status == 421
    assert server.ask("/state", Host="evil.example", Origin="http://evil.example").status == 421
    assert server.ask("/state", Host=f"localhost:{server.port}").status == 200


def test_names_that_were_given_are_known() -> None:
    with serving(hosts=["avatar.example.org"]) as server:
        assert server.ask("/state", Host="avatar.example.org").status == 200
        assert server.ask("/state", Host="other.example.org").status == 421


def test_the_password_keeps_everything_but_health() -> None:
    with serving(password="opensesame") as server:
        assert server.healthy()
        for path in ("/state", "/metrics", "/examples/toon.jpg", "/page.js"):
            assert server.ask(path).status == 401
        away = server.ask("/")
        assert (away.status, away.headers["location"]) == (303, "/login")
        assert server.ask("/login").status == 200
        with pytest.raises(InvalidStatus):
            server.connect()
        assert server.ask("/state", Authorization="Bearer opensesame").status == 200
        server.connect(additional_headers={"Authorization": "Bearer opensesame"}).close()
        assert server.ask("/login", {"password": "wrong"}).status == 401
        come = server.ask("/login", {"password": "opensesame"})
        cookie = come.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "opensesame" not in cookie
        assert server.ask("/state", Cookie=cookie.partition(";")[0]).status == 200
        assert server.ask("/state", Cookie="liveavatar=guess").status == 401
        for _ in range(10):
            server.ask("/login", {"password": "wrong"})
        assert server.ask("/login", {"password": "opensesame"}).status == 429


def test_requests_that_are_too_long_are_refused(server: Server) -> None:
    assert server.ask("/engine", b"{" + b" " * 5000).status == 413
    assert server.ask("/engine", b"[" * 3000).status == 400
    assert server.ask("/login", b"\xff\xfe").status == 400
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as link:
        link.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert b" 400 " in link.recv(1000).split(b"\r\n")[0] + b" "
    assert server.healthy()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"port": 70_000}, "server.port"), ({"upload_mb": 0}, "server.upload_mb"), ({"places": 0}, "server.places"),
     ({"lead_s": -1}, "server.lead_s"), ({"record": "/nowhere"}, "server.record"), ({"waiting": True}, "waiting")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerSettings(**wrong)


def test_the_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEAVATAR_PASSWORD", "from outside")
    assert ServerSettings().password == "from outside"
    assert ServerSettings(password="given").password == "given"
