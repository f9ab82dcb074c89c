"""Files of Paddle's variables, written here byte by byte from the description of the format."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.weights import paddle
from intarsia.weights.files import read_weights, write_weights

MATRIX = (
    b"\x00\x00\x00\x00"  # version of the variable
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # levels
    b"\x00\x00\x00\x00"  # version of the tensor
    b"\x06\x00\x00\x00"  # bytes of its description
    b"\x08\x05\x10\x02\x10\x03"  # float32, 2, 3
    b"\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40\x00\x00\x80\x40\x00\x00\xa0\x40\x00\x00\xc0\x40"  # 1 .. 6
)
LONG = (
    b"\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"  # one level,
    b"\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00"  # of 16 bytes: 0, 3
    b"\x00\x00\x00\x00\x06\x00\x00\x00"
    b"\x08\x03\x12\x02\xac\x02" + b"\xff\xff\xff\xff\xff\xff\xff\xff" * 300  # int64, packed: 300 in two bytes
)


def test_a_matrix_and_a_long_vector() -> None:
    assert torch.equal(paddle.read_variable(MATRIX, "m"), torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert torch.equal(paddle.read_variable(LONG, "v"), torch.full((300,), -1))


def test_what_is_written_is_those_bytes() -> None:
    assert paddle.write_variable(torch.tensor([[1.0, 2, 3], [4, 5, 6]])) == MATRIX


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.uint8,
        torch.int8,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (200, 3), (2, 1, 4)])
def test_every_type_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.from_numpy(np.random.default_rng(0).integers(0, 2, shape, np.int64) if shape else np.array(1)).to(
        dtype
    )
    again = paddle.read_variable(paddle.write_variable(value), "x")
    assert again.dtype == dtype
    assert torch.equal(again, value)


def test_bfloat16_has_no_number() -> None:
    with pytest.raises(BadInput, match="no numbers of type"):
        paddle.write_variable(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "w: 12 bytes wanted at byte 0, the file has 0"),
        (b"\x80\x04" + MATRIX[2:], "not a variable of Paddle: it begins with version 1152"),
        (MATRIX[:-1], "w: 24 bytes wanted at byte 26, the file has 49"),
        (MATRIX + b"\x00", "1 bytes are left over"),
        (MATRIX[:12] + b"\x01" + MATRIX[13:], "a tensor of version 1"),
        (MATRIX[:16] + b"\xff\xff\xff\xff" + MATRIX[20:], "-1 bytes wanted"),
        (MATRIX[:21] + b"\x07" + MATRIX[22:], "numbers of type 7"),
        (MATRIX[:20] + b"\x1a" + MATRIX[21:], "unknown field 3"),
        (MATRIX[:16] + b"\x05\x00\x00\x00" + MATRIX[20:], "its description ends early"),
        (MATRIX[:4] + b"\x01" + MATRIX[5:12] + b"\xff" * 8 + MATRIX[12:], "18446744073709551615 bytes wanted"),
        (MATRIX[:16] + b"\x08\x00\x00\x00\x08\x05\x10\xff\xff\xff\xff\x0f" + MATRIX[26:], "bytes wanted"),
    ],
)
def test_damaged_files_are_named(content: bytes, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        paddle.read_variable(content, "w")


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            out.addfile(about, io.BytesIO(content))


def test_a_folder_and_an_archive_hold_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "params"
    folder.mkdir()
    (folder / "image_loc.w_0").write_bytes(MATRIX)
    (folder / "ids").write_bytes(LONG)
    (folder / "config.json").write_text("{}")
    archive(tmp_path / "all.tar.gz", {"x/params/image_loc.w_0": MATRIX, "x/params/ids": LONG, "x/vocab.txt": b"[PAD]"})
    one, other = read_weights(folder), read_weights(tmp_path / "all.tar.gz")
    assert one.keys() == other.keys() == {"image_loc.w_0", "ids"}
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert paddle.is_folder(folder)
    write_weights(tmp_path / "again.tar.gz", one)
    assert all(torch.equal(value, one[key]) for key, value in read_weights(tmp_path / "again.tar.gz").items())


def test_variables_in_one_file_need_their_names(tmp_path: Path) -> None:
    (tmp_path / "params").write_bytes(MATRIX + LONG + MATRIX)
    found = paddle.read_combined(tmp_path / "params", ["a", "b", "c"])
    assert [tuple(x.shape) for x in found.values()] == [(2, 3), (300,), (2, 3)]
    with pytest.raises(BadInput, match="bytes are left over behind 2 variables"):
        paddle.read_combined(tmp_path / "params", ["a", "b"])
    with pytest.raises(BadInput, match="d: 12 bytes wanted"):
        paddle.read_combined(tmp_path / "params", ["a", "b", "c", "d"])


def test_other_folders_and_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no variables of Paddle in it"):
        read_weights(tmp_path)
    (tmp_path / "weights").write_bytes(b"PK\x03\x04")
    assert not paddle.is_folder(tmp_path)
    (tmp_path / "no.tar.gz").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be read"):
        read_weights(tmp_path / "no.tar.gz")
    archive(tmp_path / "twice.tar.gz", {"a/w": MATRIX, "b/w": MATRIX})
    with pytest.raises(BadInput, match="the variable w is there twice"):
        read_weights(tmp_path / "twice.tar.gz")
