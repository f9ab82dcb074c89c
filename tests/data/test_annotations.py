from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intarsia.data import annotations
from intarsia.data.annotations import read_annotations
from intarsia.errors import BadInput


def put(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_the_three_corpora(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "CHUNK", chunk)
    speech = {"text": ["cut the onion.", "then fry it."], "start": [1.5, 4], "end": [4, 6.0]}
    path = put(tmp_path / "raw_caption.json", {"other": speech, "a-b_c": speech, "database0": speech})
    found = read_annotations(path, {"a-b_c", "absent"})
    assert list(found) == ["a-b_c"]
    assert [x.text for x in found["a-b_c"]] == ["cut the onion.", "then fry it."]
    assert (found["a-b_c"][0].start, found["a-b_c"][1].end) == (1.5, 6)

    steps = [
        {"id": 1, "segment": [40, 50], "sentence": "fry it"},
        {"id": 0, "segment": [3, 21], "sentence": "cut é 油"},
    ]
    video = {"duration": 60.5, "subset": "validation", "recipe_type": "1", "video_url": "u", "annotations": steps}
    found = read_annotations(
        put(tmp_path / "youcookii_annotations_trainval.json", {"database": {"x": video, "y": video}}), {"y"}
    )
    assert found == {"y": [("cut é 油", 3, 21), ("fry it", 40, 50)]}

    videos = [
        {
            "id": i,
            "video_id": f"video{i}",
            "category": 1,
            "url": "u",
            "start time": 10.5,
            "end time": 20.5,
            "split": "train",
        }
        for i in (0, 1)
    ]
    said = [{"sen_id": i, "video_id": f"video{i % 2}", "caption": f"a man {i}"} for i in range(4)]
    found = read_annotations(
        put(tmp_path / "v.json", {"info": {"year": 2016}, "videos": videos, "sentences": said}), {"video1"}
    )
    assert found == {"video1": [("a man 1", 0, 10), ("a man 3", 0, 10)]}


def test_errors_name_file_and_video(tmp_path: Path) -> None:
    bad = {"text": ["a"], "start": [5], "end": [4]}
    with pytest.raises(BadInput, match=r"c\.json: video q: 'a' from 5 s to 4 s"):
        read_annotations(put(tmp_path / "c.json", {"q": bad}), {"q"})
    with pytest.raises(BadInput, match=r"c\.json: video q: not an annotation"):
        read_annotations(put(tmp_path / "c.json", {"q": {"text": ["a"]}}), {"q"})
    (tmp_path / "c.json").write_text('{"q": {"text": ["a"]')
    with pytest.raises(BadInput, match=r"c\.json: not whole JSON"):
        read_annotations(tmp_path / "c.json", {"q"})
    with pytest.raises(BadInput, match=r"d\.json: cannot be read"):
        read_annotations(tmp_path / "d.json", {"q"})
    with pytest.raises(BadInput, match="video q: has captions but no times"):
        read_annotations(
            put(tmp_path / "c.json", {"videos": [], "sentences": [{"video_id": "q", "caption": "a"}]}), {"q"}
        )
