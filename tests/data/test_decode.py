from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_makers import jpeg
from PIL import Image

from intarsia.data.decode import decode_image, image_size, read_bytes, resize_short, tar_address
from intarsia.errors import BadInput


def photo(seed: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise with the spectrum of photographs, 1/f, the same in all channels but for a tint."""
    rng = np.random.default_rng([seed, 0x0F])
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    phase = np.exp(2j * np.pi * rng.random((3, *amplitude.shape)))
    planes = np.fft.irfft2(amplitude * (phase[:1] + 0.3 * phase), s=(height, width))
    planes = (planes - planes.mean()) / planes.std() * 50 + 128
    return np.clip(planes.transpose(1, 2, 0), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_jpeg_as_pillow_decodes_it() -> None:
    data = encoded(Image.fromarray(photo(1, 120, 161)), "JPEG", quality=92)
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decode_image(data).astype(int) - theirs).mean() <= 0.5


def test_bytes_paths_and_tar_addresses_give_the_same(tmp_path: Path) -> None:
    data = jpeg(3)
    (tmp_path / "x.jpg").write_bytes(data)
    (tmp_path / "x.tar").write_bytes(b"before" + data + b"after")
    address = tar_address(tmp_path / "x.tar", 6, len(data))
    assert read_bytes(address) == data
    for source in (data, tmp_path / "x.jpg", str(tmp_path / "x.jpg"), address):
        np.testing.assert_array_equal(decode_image(source), decode_image(data))
        assert image_size(source) == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photo(2, 24, 40)).resize((160, 96))
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, exif=exif, **options)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    upright = np.asarray(image if turn is None else image.transpose(turn)).astype(int)
    found = decode_image(data)
    assert found.shape == upright.shape
    assert image_size(data) == (upright.shape[1], upright.shape[0])
    assert np.abs(found - upright).mean() < 2


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 255, 51)
    found = decode_image(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(found[0, :, 0], [255, 0, 204])
    np.testing.assert_array_equal(found[1], 255)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    found = decode_image(encoded(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(found[0], [[255, 255, 255], [40, 50, 60]])
    grey = np.array([[[9, 255], [9, 0]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey), "PNG"))[0, :, 0], [9, 255])


def test_grey_deep_and_print_colours() -> None:
    grey = photo(3, 16, 24)[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))
    found = decode_image(encoded(Image.fromarray(grey), "JPEG", quality=100))
    assert found.shape == (16, 24, 3)
    assert np.abs(found.astype(int) - grey[..., None]).mean() < 2
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(deep), "PNG"))[..., 1], grey)
    cmyk = Image.fromarray(photo(4, 16, 24)).convert("CMYK")
    found = decode_image(encoded(cmyk, "JPEG", quality=100))
    assert np.abs(found.astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_files_are_named(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(photo(5, 64, 64)), kind)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=rf"^{path}: cannot be decoded: ."):
        decode_image(path)
    with pytest.raises(BadInput, match=r"^my picture: cannot be decoded: ."):
        decode_image(data[: len(data) // 2], "my picture")
    path.write_bytes(b"no picture")
    for call in (decode_image, image_size):
        with pytest.raises(BadInput, match=rf"^{path}: cannot be decoded: "):
            call(path)
        with pytest.raises(BadInput, match=r"none\.jpg: (cannot be read: No such file|no such file)"):
            call(tmp_path / "none.jpg")
    with pytest.raises(BadInput, match="the tar ends after 10 of 40 bytes"):
        (tmp_path / "x.tar").write_bytes(b"0123456789")
        read_bytes(tar_address(tmp_path / "x.tar", 0, 40))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (500, 375), (400, 384), (300, 200), (1000, 700)])
def test_resizing_agrees_with_pillow(size: tuple[int, int]) -> None:
    image = photo(6, *size)
    found = resize_short(image, 384)
    assert min(found.shape[:2]) == 384
    long = round(max(size) * 384 / min(size))
    assert max(found.shape[:2]) == long
    theirs = Image.fromarray(image).resize((found.shape[1], found.shape[0]), Image.Resampling.BICUBIC)
    difference = np.abs(found.astype(int) - np.asarray(theirs))
    assert difference.mean() <= 1.0
    assert difference.max() <= 4


def test_resizing_leaves_a_picture_of_that_size_alone() -> None:
    image = photo(7, 64, 80)
    np.testing.assert_array_equal(resize_short(image, 64), image)
    read_only = image.copy()
    read_only.flags.writeable = False
    assert resize_short(read_only, 32).shape == (32, 40, 3)
    assert resize_short(np.zeros((1, 50, 3), np.uint8), 4).shape == (4, 200, 3)
