"""Pixels: picture files to uint8 arrays, and resizing by the short side.

JPEGs go through libjpeg-turbo (simplejpeg), everything else through Pillow. A picture inside a tar shard has an
address of its own, made by `tar_address`; `decode_image` and `read_bytes` take it wherever they take a path.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from intarsia.batch import Picture
from intarsia.data.formats.columns import CELL, cell_bytes
from intarsia.data.formats.files import is_remote, open_file, read_remote
from intarsia.errors import BadInput

Pixels = NDArray[np.uint8]
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises on files it cannot read."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
ADDRESS = re.compile(r"(?P<tar>.+\.tar)\?offset=(?P<offset>\d+)&size=(?P<size>\d+)")


def tar_address(tar: str | Path, offset: int, size: int) -> str:
    """The address of bytes inside an uncompressed tar: what Picture.path says for pictures in tar shards."""
    return f"{tar}?offset={offset}&size={size}"


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, of a tar address, or of a row of a table (`columns.cell_address`).

    Raises:
        BadInput: the file is missing, unreadable or too short.
    """
    cell = cell_bytes(str(path))
    if cell is not None:
        return cell if isinstance(cell, bytes) else read_bytes(cell)
    match = ADDRESS.fullmatch(str(path))
    if match is not None and is_remote(match["tar"]):
        return read_remote(match["tar"], int(match["offset"]), int(match["size"]))
    try:
        if match is None and is_remote(path):
            with open_file(str(path)) as remote:
                return bytes(remote.read())
        if match is None:
            return Path(path).read_bytes()
        with open(match["tar"], "rb") as handle:
            handle.seek(int(match["offset"]))
            data = handle.read(int(match["size"]))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) != int(match["size"]):
        raise BadInput(f"{path}: the tar ends after {len(data)} of {match['size']} bytes")
    return data


def decode_image(source: str | Path | bytes, name: str = "") -> Pixels:
    """Decodes a picture, turned upright by its EXIF orientation.

    Transparency is laid on white, grey becomes three equal channels, 16 bits become 8, an animation gives its first
    frame.

    Args:
        source: path, tar address (see `tar_address`) or the bytes of the file.
        name: what to call the picture in errors; its path unless given.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        BadInput: the file is missing, cut short or not a picture; names it.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    name = name or ("picture bytes" if isinstance(source, bytes) else str(source))
    try:
        if data[:3] == b"\xff\xd8\xff" and simplejpeg.decode_jpeg_header(data)[2] in ("RGB", "YCbCr", "Gray", "GRAY"):
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return _upright(pixels, _orientation(data)) if b"Exif\0\0" in data[:65536] else pixels
        with Image.open(io.BytesIO(data)) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except BROKEN as error:
        unknown = isinstance(error, UnidentifiedImageError)  # its own text names an object, not the picture
        raise BadInput(f"{name}: cannot be decoded: {'not a picture' if unknown else error}") from None


def pixels_of(picture: Picture, key: str) -> Pixels:
    """The pixels of a picture, made or read from its file.

    Args:
        picture: the picture.
        key: of its sample, for errors.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        BadInput: there are none, or its file cannot be decoded; names sample and file.
    """
    if picture.pixels is not None:
        return np.asarray(picture.pixels())
    if not picture.path:
        raise BadInput(f"sample {key}: picture {picture.name} has no pixels, only regions; the system reads pixels")
    return decode_image(picture.path, f"sample {key}: {picture.path}")


def size_of(picture: Picture, key: str) -> tuple[int, int]:
    """Pixels wide and high of a picture: what its data say, else its file's header, else its pixels. Arguments and errors as of `pixels_of`."""
    if picture.width and picture.height:
        return picture.width, picture.height
    if picture.pixels is None and picture.path:
        return image_size(picture.path, f"sample {key}: {picture.path}")
    height, width = pixels_of(picture, key).shape[:2]
    return width, height


def image_size(source: str | Path | bytes, name: str = "") -> tuple[int, int]:
    """Pixels wide and high of a picture once upright; reads its header only.

    Raises:
        BadInput: the file is missing or not a picture; names it.
    """
    name = name or ("picture bytes" if isinstance(source, bytes) else str(source))
    is_member = not isinstance(source, bytes) and (
        is_remote(source) or ADDRESS.fullmatch(str(source)) or CELL.fullmatch(str(source))
    )
    if not isinstance(source, bytes) and not is_member and not Path(source).is_file():
        raise BadInput(f"{name}: no such file")
    try:
        opened = (
            io.BytesIO(source) if isinstance(source, bytes) else io.BytesIO(read_bytes(source)) if is_member else source
        )
        with Image.open(opened) as image:
            width, height = image.size
            sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except BROKEN as error:
        raise BadInput(f"{name}: cannot be decoded: {error}") from None
    return (height, width) if sideways else (width, height)


def resize_short(image: Pixels, side: int) -> Pixels:
    """Resizes a picture so that its short side is `side` pixels, by antialiased bicubic interpolation in integers.

    Within 1/255 of Pillow's bicubic on average, and faster because torch keeps RGB pixels together. The long side is
    rounded to the nearest pixel.

    Args:
        image: (H, W, 3) uint8.
        side: pixels of the short side, >= 1.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = (max(1, round(height * side / short)), max(1, round(width * side / short)))
    if size == (height, width):
        return image
    whole = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    block = whole[None].permute(0, 3, 1, 2)  # (1, 3, H, W), channels last in memory by its strides too
    resized = torch.nn.functional.interpolate(block, size=size, mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _orientation(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        depth = np.asarray(image)
        scaled = depth / 257 if image.mode.startswith("I") else depth
        return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
