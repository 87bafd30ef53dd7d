"""Pictures: the size rule, every kind of file that people have, and what is said about the rest."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from liveavatar.media import image
from liveavatar.media.image import centre_crop, fit_image, fit_pixels, fit_size, load_image, parse_area

ASSETS = Path(__file__).resolve().parents[2] / "liveavatar" / "assets"


@pytest.mark.parametrize(
    ("text", "area"), [("704*384", 270336), ("704x384", 270336), (" 704 × 384 ", 270336), (270336, 270336)]
)
def test_parse_area(text: str | int, area: int) -> None:
    assert parse_area(text) == area


@pytest.mark.parametrize(
    "text",
    ["", "wide", "704*", "-704*384", "704*384*3", "0*384", "63*64", "4097*4096", "1e6", "704.5*384", True],
)
def test_parse_area_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"request\.size=.*704\*384"):
        parse_area(text)


def test_parse_area_with_a_smaller_step() -> None:
    assert parse_area("48*32", multiple=16) == 1536
    with pytest.raises(ValueError, match=r"request\.size"):
        parse_area("48*32")


@pytest.mark.parametrize(
    ("height", "width", "area", "size"),
    [  # measured on the reference: the published table of sizes has all of them
        (720, 400, 288000, (704, 384)),
        (720, 1280, 720896, (640, 1088)),
        (1024, 1024, 253184, (448, 448)),
        (100, 60, 288000, (128, 64)),
        (200, 31, 8192, (128, 64)),
    ],
)
def test_fit_size_is_the_reference(height: int, width: int, area: int, size: tuple[int, int]) -> None:
    assert fit_size(height, width, area) == size


@pytest.mark.parametrize("multiple", [16, 64])
def test_fit_size_always_fits(multiple: int) -> None:
    sides = [1, 2, 31, 64, 65, 400, 1023, 4000, 20000]
    for height in sides:
        for width in sides:
            for area in (multiple**2, 3 * multiple**2, 98304, 270336):
                rows, cols = fit_size(height, width, area, multiple)
                assert rows % multiple == cols % multiple == 0
                assert min(rows, cols) >= multiple
                assert rows * cols <= area


def test_fit_size_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="0x400"):
        fit_size(0, 400, 270336)


def test_centre_crop_rounds_half_to_even_and_pads_more_on_the_right() -> None:
    row = torch.arange(1.0, 8.0)[None, None]
    assert centre_crop(row, 1, 2, 0)[0, 0].tolist() == [3, 4]  # offset 2.5 becomes 2
    assert centre_crop(row, 1, 4, 0)[0, 0].tolist() == [3, 4, 5, 6]  # offset 1.5 becomes 2
    assert centre_crop(row[..., :2], 1, 5, -1)[0, 0].tolist() == [-1, 1, 2, -1, -1]


def test_fit_image_pads_black_and_reaches_both_ends() -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    fitted = fit_image(white, 64, 128)
    assert fitted.shape == (3, 64, 128)
    assert fitted.dtype == torch.float32
    assert (fitted[:, :, :32] == -1).all()
    assert (fitted[:, :, 32:96] == 1).all()
    assert (fitted[:, :, 96:] == -1).all()


def test_fit_image_truncates_the_longer_edge() -> None:
    stripes = np.zeros((61, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    picture = Image.fromarray(stripes)
    by_hand = picture.resize((104, 64), Image.Resampling.BILINEAR)  # 64 * 100 / 61 = 104.9
    assert torch.equal(fit_pixels(picture, 64, 64), torch.from_numpy(np.array(by_hand)).permute(2, 0, 1)[:, :, 20:84])


def test_a_real_portrait() -> None:
    picture = load_image(ASSETS / "fashion_blogger.jpg")
    height, width = fit_size(picture.height, picture.width, parse_area("704*384"))
    fitted = fit_image(picture, height, width)
    assert (height, width) == (704, 384)
    assert fitted.min() < -0.9
    assert fitted.max() > 0.9


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    for mode in ("L", "1", "P", "LA", "RGBA"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(grey).convert(mode).save(path)
        assert load_image(path).mode == "RGB"
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    difference = np.asarray(load_image(tmp_path / "cmyk.jpg")).astype(int) - grey[..., None]
    assert abs(difference).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16)).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_is_black_and_half_is_half(tmp_path: Path) -> None:
    pixels = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    seen = np.asarray(load_image(tmp_path / "alpha.png"))[0]
    assert seen[0].tolist() == [0, 0, 0]
    assert seen[1].tolist() == [200, 100, 50]
    assert abs(seen[2].astype(int) - [100, 50, 25]).max() <= 1


def test_a_phone_picture_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    upright = np.asarray(load_image(tmp_path / "phone.jpg"))
    assert upright.shape == (40, 20, 3)
    assert upright[:15].mean() > 250
    assert upright[25:].mean() < 5


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 30000 x 30000 pixels."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size) + part(b"IDAT", b"") + part(b"IEND", b""))


def _video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _truncated(path: Path) -> None:
    whole = (ASSETS / "fashion_blogger.jpg").read_bytes()
    path.write_bytes(whole[: len(whole) // 3])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.png", lambda path: None, "does not exist"),
        ("folder", lambda path: path.mkdir(), "is a folder"),
        ("empty.png", lambda path: path.touch(), "is an empty file"),
        ("cut.jpg", _truncated, "is a damaged picture"),
        (
            "text.png",
            lambda path: path.write_text("not a picture\n" * 50),
            "not a picture that Pillow can read",
        ),
        ("phone.heic", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64)), "HEIF picture"),
        ("clip.mp4", _video, "is a video; request.image wants a picture. Take a frame of it first"),
        ("bomb.png", _bomb, "more than 80 megapixels"),
        ("thin.png", lambda path: Image.new("L", (2000, 10)).save(path), "too long and thin"),
    ],
)
def test_what_is_said_about_bad_files(tmp_path: Path, name: str, make, said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"^request\.image=") as caught:
        load_image(tmp_path / name)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_a_voice_given_as_the_picture() -> None:
    with pytest.raises(ValueError, match=r"is a sound file; .* request\.audio"):
        load_image(ASSETS / "fashion_blogger.flac")


def test_a_big_picture_that_pillow_itself_allows_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "big.png")
    monkeypatch.setattr(image, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="megapixels"):
        load_image(tmp_path / "big.png")
