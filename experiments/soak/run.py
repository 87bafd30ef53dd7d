"""Does the live server leak? Visitors come, go, reload, and drop in mid-upload, for as long as you like.

Starts `python -m liveavatar.serve` in a process of its own, on a free port of the loopback, and sends it a bounded
number of visitors at once: more than it has places for, so that some wait in the line. Every few seconds the server is
asked for its own account (GET /metrics); every second whether it is well (GET /health). At the end everybody leaves and
a last account is taken. Exits with 1 where the server was unwell once, or anything is left behind.

    python -m experiments.soak.run --seconds 1800 --out experiments/soak
    python -m experiments.soak.run --seconds 60 --model micro
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from experiments.tables import save
from liveavatar.tracking import stamp

ROOT = Path(__file__).resolve().parents[2]
WATCHED = ("resident_bytes", "open_files", "threads", "streams", "waiting", "visitors")
TALLIED = ("streams_started_total", "chunks_total", "malformed_total", "stalls_total", "interruptions_total")
PATIENCE_S = 60.0
SLOWEST_S = 10.0
"""A GET /health that takes longer than this counts as unwell."""


@dataclass
class Soak:
    """What is known of a soak: rows of accounts, answers of /health, and who came."""

    port: int
    rows: list[dict[str, float]] = field(default_factory=list)
    came: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, path: str, body: bytes | None = None, timeout: float = PATIENCE_S) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            link.request("GET" if body is None else "POST", path, body)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def account(self, began: float) -> dict[str, float]:
        lines = self.ask("/metrics")[1].decode().splitlines()
        values: Counter[str] = Counter()
        for line in lines:
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name.partition("{")[0].removeprefix("liveavatar_")] += float(value)  # type: ignore[assignment]
        row = {"seconds": round(time.monotonic() - began, 1)}
        return row | {name: values[name] for name in (*WATCHED, *TALLIED, "uploads_total", "streams_ended_total")}

    # ---- visitors

    def visit(self, dice: random.Random) -> None:
        kinds: list[Callable[[random.Random], None]] = [
            self.talks, self.talks, self.pushes, self.reloads, self.drops_in_mid_upload, self.uploads, self.babbles
        ]  # fmt: skip
        kind = dice.choice(kinds)
        try:
            kind(dice)
        except (WebSocketException, OSError, TimeoutError) as error:
            if not self.over.is_set():
                self.troubles.append(f"{kind.__name__}: {type(error).__name__}: {error}")
        self.came[kind.__name__] += 1

    def talks(self, dice: random.Random) -> None:
        with self._link() as link:
            start(link, dice.choice(("mp4", "jpeg")))
            if not self._until(link, "ready"):
                return
            tell(link, "say", text="Hello there, this is a sentence of a visitor who talks. " * dice.randint(1, 2))
            self._chunks(link, dice.randint(1, 8))
            if dice.random() < 0.5:
                tell(link, "interrupt")
                self._until(link, "interrupted")
            tell(link, dice.choice(("finish", "stop")))
            self._until(link, "finished")

    def pushes(self, dice: random.Random) -> None:
        with self._link() as link:
            start(link, "jpeg")
            if not self._until(link, "ready"):
                return
            for _ in range(dice.randint(3, 20)):
                link.send((np.random.default_rng(0).standard_normal(1600) * 3000).astype("<i2").tobytes())
                self.over.wait(0.1)
            tell(link, "set", prompt="A man, laughing")
            self._chunks(link, dice.randint(1, 4))
            link.socket.shutdown(socket.SHUT_RDWR)  # gone without a word

    def reloads(self, dice: random.Random) -> None:
        for _ in range(3):
            with self._link() as link:
                start(link, "mp4")
                link.recv(timeout=PATIENCE_S)
                self.over.wait(dice.random())

    def drops_in_mid_upload(self, dice: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as link:
            head = f"POST /upload/picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**6}\r\n\r\n"
            link.sendall(head.encode() + bytes(dice.randint(0, 200_000)))

    def uploads(self, dice: random.Random) -> None:
        Image.new("RGB", (300, 300), (dice.randrange(256), 90, 90)).save(picture := io.BytesIO(), "PNG")
        with wave.open(voice := io.BytesIO(), "wb") as file:
            file.setparams((1, 2, 16_000, 16_000, "NONE", ""))
            file.writeframes((np.sin(np.arange(16_000) / 9) * 9000).astype("<i2").tobytes())
        answers = [self.ask("/upload/picture", picture.getvalue()), self.ask("/upload/voice", voice.getvalue())]
        self.ask("/upload/picture", bytes(500))
        if any(status not in (200, 429) for status, _ in answers):
            self.troubles.append(f"uploads: {answers}")
        names = [json.loads(body).get("name") for _, body in answers]
        if None in names:
            return
        with self._link() as link:
            start(link, "mp4", portrait=names[0])
            if self._until(link, "ready"):
                tell(link, "play", voice=names[1])
                self._chunks(link, dice.randint(1, 5))

    def babbles(self, dice: random.Random) -> None:
        with self._link() as link:
            for _ in range(dice.randint(1, 15)):
                link.send(dice.choice(("{", "[]", "7", b"x", '{"type": "say"}', '{"type": "start", "seed": "x"}')))
            self._until(link, "error")

    # ---- words

    def _link(self) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/stream", open_timeout=PATIENCE_S, close_timeout=1, max_size=None)

    def _until(self, link: ClientConnection, kind: str) -> bool:
        """Whether such a message came; False at the end of the connection or of the soak."""
        try:
            while not self.over.is_set():
                message = link.recv(timeout=PATIENCE_S)
                told = json.loads(message) if isinstance(message, str) else {}
                if told.get("type") == kind:
                    return True
                if told.get("type") == "error" and told["code"] in ("broken", "cannot"):
                    self.troubles.append(told["message"])
        except WebSocketException:
            pass
        return False

    def _chunks(self, link: ClientConnection, number: int) -> None:
        for _ in range(number):
            if not self._until(link, "chunk"):
                return


def tell(link: ClientConnection, kind: str, **values: Any) -> None:
    link.send(json.dumps({"type": kind, **values}))


def start(link: ClientConnection, form: str, portrait: str = "example:toon") -> None:
    tell(link, "start", portrait=portrait, format=form, rate=16_000)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def serve(words: Sequence[str], log: Path | None) -> tuple[subprocess.Popen[bytes], Soak]:
    """A server that is ready."""
    port = free_port()
    command = [sys.executable, "-m", "liveavatar.serve", f"server.port={port}", "server.per_address=32", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = log.open("wb") if log is not None else subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    soak, until = Soak(port), time.monotonic() + 300
    while time.monotonic() < until and server.poll() is None:
        try:
            if soak.ask("/health")[0] == 200:
                return server, soak
        except OSError:
            time.sleep(0.2)
    server.kill()
    raise SystemExit("the server did not start" + (f": see {log}" if log is not None else ""))


def run(soak: Soak, seconds: float, visitors: int, every: float, seed: int) -> None:
    """Send visitors for so many seconds, at most `visitors` of them at once, and take accounts."""
    began = time.monotonic()

    def come(number: int) -> None:
        dice = random.Random(seed + number)
        while not soak.over.is_set():
            soak.visit(dice)

    def check() -> None:
        while not soak.over.wait(1):
            asked = time.monotonic()
            try:
                status = soak.ask("/health", timeout=SLOWEST_S)[0]
            except OSError as error:
                status = 0
                soak.troubles.append(f"/health: {error}")
            soak.health.append(time.monotonic() - asked if status == 200 else float("inf"))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(visitors)]
    threads.append(threading.Thread(target=check))
    for thread in threads:
        thread.start()
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(every, left))
        soak.rows.append(soak.account(began))
    soak.over.set()
    for thread in threads:
        thread.join()
    until = time.monotonic() + PATIENCE_S
    while (last := soak.account(began))["streams"] or last["visitors"] or last["waiting"]:
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    time.sleep(min(15.0, every))  # connections that are kept alive for a while
    soak.rows.append(soak.account(began))


def slope(rows: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    """What a column gains an hour, by least squares over the later two thirds, and the standard error of that."""
    later = rows[len(rows) // 3 :]
    x, y = (np.array([row[key] for row in later]) for key in ("seconds", name))
    if len(later) < 4 or not np.ptp(x):
        return float("nan"), float("nan")
    spread = ((x - x.mean()) ** 2).sum()
    gain = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    rest = float(((y - y.mean() - gain * (x - x.mean())) ** 2).sum())
    return gain * 3600, float(np.sqrt(rest / (len(x) - 2) / spread)) * 3600


def verdict(soak: Soak) -> dict[str, Any]:
    """The soak in numbers; `left` is what the last account still holds."""
    last = soak.rows[-1]
    memory, error = slope(soak.rows[:-1], "resident_bytes")
    return {
        "seconds": soak.rows[-2]["seconds"] if len(soak.rows) > 1 else last["seconds"],
        "visits": dict(soak.came),
        "streams": int(last["streams_started_total"]),
        "chunks": int(last["chunks_total"]),
        "health_asked": len(soak.health),
        "health_unwell": sum(not np.isfinite(each) for each in soak.health),
        "health_slowest_s": round(max((each for each in soak.health if np.isfinite(each)), default=0.0), 3),
        "resident_mb_after_a_third": round(soak.rows[len(soak.rows) // 3]["resident_bytes"] / 1e6, 1),
        "resident_mb_at_the_end": round(last["resident_bytes"] / 1e6, 1),
        "resident_mb_an_hour": [round(memory / 1e6, 1), round(error / 1e6, 1)],
        "left": {name: last[name] for name in ("streams", "waiting", "visitors")},
        "open_files": [soak.rows[0]["open_files"], last["open_files"]],
        "threads": [soak.rows[0]["threads"], last["threads"]],
        "troubles": len(soak.troubles),
    }


def sound(found: dict[str, Any], idle: dict[str, float]) -> bool:
    """Whether all went as it should: never unwell, nobody left, no handles or threads beyond those of a pool."""
    clean = not any(found["left"].values()) and not found["health_unwell"] and not found["troubles"]
    return clean and found["open_files"][1] <= idle["open_files"] + 4 and found["threads"][1] <= idle["threads"] + 20


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--visitors", type=int, default=4, help="at once")
    parser.add_argument("--places", type=int, default=2)
    parser.add_argument("--every", type=float, default=10, help="seconds from one account to the next")
    parser.add_argument("--model", default="micro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file for what the server says")
    parser.add_argument("--out", type=Path, help="a folder for results.csv and stamp.json")
    parser.add_argument("overrides", nargs="*", help="more words for the server, as in sampler.steps=1")
    given = parser.parse_args(words)
    config = [f"model={given.model}", "fabric.threads=1", f"server.places={given.places}", *given.overrides]
    server, soak = serve(config, given.log)
    try:
        idle = soak.account(time.monotonic())
        run(soak, given.seconds, given.visitors, given.every, given.seed)
    finally:
        server.terminate()
        try:
            code = server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
            soak.troubles.append("the server did not end within 30 s of being asked to")
    found = verdict(soak) | {"idle": idle, "exit": code, "overrides": config}
    found["sound"] = sound(found, idle)
    print(json.dumps(found, indent=1))
    for trouble in soak.troubles[:20]:
        print(trouble, file=sys.stderr)
    if given.out is not None:
        save(given.out, soak.rows, found | stamp("cpu", 1, 1))
    return 0 if found["sound"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
