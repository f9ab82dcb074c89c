"""Pickles of arrays: read whole, under any protocol, and never run."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.weights.files import read_weights
from intarsia.weights.pickles import read_pickle

CONTENT = {"model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.ones(2, np.int64)), "note": "x"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(CONTENT | {"scalar": np.float32(3)}, protocol))
    found = read_pickle(tmp_path / "x.pkl")
    np.testing.assert_array_equal(found["model"]["a"], CONTENT["model"]["a"])
    assert found["scalar"] == 3 and found["note"] == "x"
    state = read_weights(tmp_path / "x.pkl")
    assert list(state) == ["a", "b"]
    assert state["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_names_of_numpy_1(tmp_path):
    old = pickle.dumps(CONTENT, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "x.pkl").write_bytes(old)
    np.testing.assert_array_equal(read_pickle(tmp_path / "x.pkl")["model"]["b"], [1, 1])


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": Evil(tmp_path / "written")}, protocol))
    with pytest.raises(BadInput, match=r"x\.pkl: refused: it wants \w*io\.open"):
        read_weights(tmp_path / "x.pkl")
    assert not (tmp_path / "written").exists()


def test_objects_and_damage_are_refused(tmp_path):
    (tmp_path / "objects.pkl").write_bytes(pickle.dumps({"model": [np.array([None])]}))
    with pytest.raises(BadInput, match="an array of objects"):
        read_pickle(tmp_path / "objects.pkl")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(CONTENT)[:-40])
    with pytest.raises(BadInput, match=r"cut\.pkl: "):
        read_pickle(tmp_path / "cut.pkl")
    with pytest.raises(BadInput, match="no such file"):
        read_pickle(tmp_path / "none.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(BadInput, match="not a state dict"):
        read_weights(tmp_path / "list.pkl")
