"""Fetching, against a small server that answers as the hub does: sizes first, resumed, checked, noted."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from liveavatar.checkpoint import fetch
from liveavatar.checkpoint.listing import LISTING, read_listing

BASE = "Wan-AI/Wan2.2-S2V-14B"
FILES = {
    BASE: {
        "config.json": b"{}",
        "README.md": b"not needed",
        "diffusion_pytorch_model-00001-of-00002.safetensors": b"a" * 4000,
        "diffusion_pytorch_model-00002-of-00002.safetensors": b"b" * 3000,
        "diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
        "models_t5_umt5-xxl-enc-bf16.pth": b"c" * 500,
        "Wan2.1_VAE.pth": b"d" * 500,
        "google/umt5-xxl/spiece.model": b"e" * 50,
        "wav2vec2-large-xlsr-53-english/model.safetensors": b"f" * 600,
        "wav2vec2-large-xlsr-53-english/pytorch_model.bin": b"g" * 600,
        "wav2vec2-large-xlsr-53-english/flax_model.msgpack": b"h" * 600,
    },
    "Quark-Vision/Live-Avatar": {"liveavatar.safetensors": b"i" * 700, "notes.txt": b"no"},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The two calls that are made: what a repository holds, and the bytes of a file."""

    served: ClassVar[list[str]] = []
    damaged: ClassVar[set[str]] = set()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is pytest's."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", self.path.partition("?")[0]):
            self._listing(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path.partition("?")[0]):
            self._file(found[1], found[2])
        else:
            self.send_error(404)

    def _listing(self, repo: str) -> None:
        if repo not in FILES:
            self.close_connection = True
            return
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0",
             **({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}}
                if len(data) > 100 else {})}
            for name, data in FILES[repo].items()
        ]  # fmt: skip
        self._answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _file(self, repo: str, name: str) -> None:
        data = FILES[repo][name]
        etag = hashlib.sha256(data).hexdigest()
        if self.command == "GET":
            self.served.append(name)
            if name in self.damaged:
                data = b"?" * len(data)
        self._answer(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _answer(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    real = hf_api.HfApi.__init__
    monkeypatch.setattr(hf_api.HfApi, "__init__", lambda self, **more: real(self, **{"endpoint": url, **more}))
    Hub.served.clear()
    Hub.damaged.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def test_what_is_needed_is_fetched_checked_and_noted(hub: type[Hub], tmp_path: Path) -> None:
    fetch.fetch_published(tmp_path)
    base = tmp_path / "Wan2.2-S2V-14B"
    for name, data in FILES[BASE].items():
        needed = name != "README.md" and not name.endswith(("pytorch_model.bin", ".msgpack"))
        assert (base / name).is_file() == needed, name
        assert not needed or (base / name).read_bytes() == data
    assert (tmp_path / "LiveAvatar" / "liveavatar.safetensors").is_file()
    assert not (tmp_path / "LiveAvatar" / "notes.txt").exists()
    noted = read_listing(tmp_path)
    assert noted["LiveAvatar/liveavatar.safetensors"].sha256 == hashlib.sha256(b"i" * 700).hexdigest()
    assert len(noted) == 9
    hub.served.clear()
    fetch.fetch_published(tmp_path)
    assert hub.served == []  # all of it was there


def test_only_what_is_missing_or_damaged_is_fetched_again(hub: type[Hub], tmp_path: Path) -> None:
    fetch.fetch_published(tmp_path)
    second = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (tmp_path / "Wan2.2-S2V-14B" / second).unlink()
    hub.served.clear()
    fetch.fetch_published(tmp_path)
    assert hub.served == [second]
    (tmp_path / "Wan2.2-S2V-14B" / second).unlink()
    hub.damaged.add(second)
    with pytest.raises(ValueError, match=rf"{second} is damaged: its SHA-256 is [0-9a-f]{{64}} and should be"):
        fetch.fetch_published(tmp_path)


def test_a_small_disk_and_a_silent_hub_are_told_before_anything_is_written(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**6))
    with pytest.raises(ValueError, match=r"still to be fetched, and its disk has 0\.0 GB free"):
        fetch.fetch_published(tmp_path)
    assert hub.served == []
    assert not (tmp_path / LISTING).exists()
    monkeypatch.setattr(fetch, "REPOSITORIES", (fetch.Repository("nobody/nothing-here", "x", ("*",)),))
    with pytest.raises(ValueError, match="nobody/nothing-here cannot be listed"):
        fetch.fetch_published(tmp_path)
