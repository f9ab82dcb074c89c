"""The published files of videos: sentences, classes, what is done next; and which clips an item shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.batch import Film, Sample
from intarsia.cli import main
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import Annotated, Pictures, benchmark_of, find
from intarsia.worlds.twins import write_twin


class Videos:
    """Whole videos of 1.5 s a clip; the feature of a clip is its number."""

    provenance: Provenance | None = Provenance("numbers", 1)

    def __init__(self, **clips: int) -> None:
        self.clips = list(clips.items())

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample:
        name, count = self.clips[index]
        numbers = np.arange(count, dtype=np.float32)
        film = Film(f"videos/{name}.mp4", numbers[:, None], numbers * 1.5, 1.5, np.zeros((0, 2), np.float32))
        return Sample(name, (), film=film)


def shown(sample: Sample) -> list[int]:
    assert sample.film is not None
    return [int(x) for x in sample.film.features[:, 0]]


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def youcook2(root: Path, **segments: list[list[float]]) -> None:
    database = {
        video: {
            "subset": "validation",
            "annotations": [{"segment": x, "id": i, "sentence": f"step {i} "} for i, x in enumerate(spans)],
        }
        for video, spans in segments.items()
    }
    put(root / "youcookii_annotations_trainval.json", {"database": database})


def test_a_segment_shows_the_clips_whose_middle_lies_in_it(tmp_path: Path) -> None:
    youcook2(tmp_path, a=[[0, 3], [3, 6.1], [90, 95]], gone=[[0, 1]])
    source = Annotated(find("youcook2").read(tmp_path, "val"), Pictures(Videos(a=6)))
    assert [(x.key, x.texts) for x in (source[0], source[1])] == [("a@0", ("step 0",)), ("a@1", ("step 1",))]
    assert shown(source[0]) == [0, 1]
    assert shown(source[1]) == [2, 3]
    assert source[1].film is not None
    assert source[1].film.spans.tolist() == [[3, pytest.approx(6.1)]]
    assert len(source) == 2
    assert list(source.missing) == ["videos/a.mp4 from 90 s to 95 s", "gone"]
    assert "2 of 4 items" in source.told
    youcook2(tmp_path, a=[[5, 2]])
    with pytest.raises(BadInput, match=r"video a: a segment from 5 s to 2 s"):
        find("youcook2").read(tmp_path, "val")
    with pytest.raises(BadInput, match="no split 'test'"):
        find("youcook2").read(tmp_path, "test")


def test_msr_vtt_takes_the_lists_of_1k_a(tmp_path: Path) -> None:
    videos = [
        {"video_id": f"video{i}", "split": x, "start time": 5.0, "end time": 8.0}
        for i, x in enumerate(["train", "train", "validate", "test"])
    ]
    sentences = [{"sen_id": i, "video_id": f"video{i // 2}", "caption": f"said {i} "} for i in range(8)]
    put(tmp_path / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    keys = [x.key for x in find("msr-vtt").read(tmp_path, "train").items]
    assert keys == ["video0#0", "video0#1", "video1#0", "video1#1"]
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo3\n")
    put(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr3,video3,a man sings\n")
    train = find("msr-vtt").read(tmp_path, "train")
    assert [x.key for x in train.items] == ["video1#0", "video1#1", "video3#0", "video3#1"]
    assert train.items[0].also == ("said 3",)
    test = find("msr-vtt").read(tmp_path, "test")
    assert [(x.pictures, x.texts) for x in test.items] == [(("video3",), ("a man sings",))]
    source = Annotated(test, Pictures(Videos(video3=2)))
    assert shown(source[0]) == [0, 1]
    written = find("msr-vtt-captions").read(tmp_path, "test")
    assert written.gold == {"video3": (("said 6", "said 7"), "")}
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo9\n")
    with pytest.raises(BadInput, match="clip 'video9' of split 'train' has no captions"):
        find("msr-vtt").read(tmp_path, "train")


def test_lists_of_actions(tmp_path: Path) -> None:
    put(tmp_path / "trainlist02.txt", "Archery/v_Archery_g08_c01.avi 3\n")
    put(tmp_path / "testlist02.txt", "Archery/v_Archery_g01_c01.avi\n\nBasketball/v_Basketball_g01_c02.avi\n")
    ucf = find("ucf101")
    assert [x.answers for x in ucf.read(tmp_path, "train2").items] == [(("Archery", 1.0),)]
    assert ucf.read(tmp_path, "test2").gold["v_Basketball_g01_c02.avi"] == "Basketball"
    with pytest.raises(BadInput, match="no split 'test4'"):
        ucf.read(tmp_path, "test4")
    put(tmp_path / "testlist02.txt", "Archery\n")
    with pytest.raises(BadInput, match=r"line 1: 'Archery' is not class/video"):
        ucf.read(tmp_path, "test2")
    put(tmp_path / "brush_hair_test_split1.txt", "April 09_0.avi 1 \nb.avi 2\nc.avi 0\n")
    put(tmp_path / "wave_test_split1.txt", "d.avi 2\n")
    hmdb = find("hmdb51")
    assert hmdb.read(tmp_path, "train1").gold == {"April 09_0.avi": "brush_hair"}
    assert hmdb.read(tmp_path, "test1").gold == {"b.avi": "brush_hair", "d.avi": "wave"}


def test_the_past_of_an_action_ends_one_second_before_it(tmp_path: Path) -> None:
    labels = ["SIL"] * 15 * 6 + ["take_cup"] * 15 * 100 + ["pour_milk"] * 15 * 3 + ["SIL"] * 10
    put(tmp_path / "groundTruth/P03_cam01_milk.txt", "\n".join(labels) + "\n")
    put(tmp_path / "splits/test.split1.bundle", "P03_cam01_milk.txt\n")
    items = find("breakfast").read(tmp_path, "test1").items
    assert [(x.answers[0][0], x.span) for x in items] == [("take_cup", (0, 5)), ("pour_milk", (34.5, 105))]
    source = Annotated(find("breakfast").read(tmp_path, "test1"), Pictures(Videos(P03_cam01_milk=80)))
    assert shown(source[0]) == [0, 1, 2]
    assert shown(source[1])[-1] * 1.5 + 0.75 < 105
    assert len(shown(source[1])) <= 48
    put(tmp_path / "splits/test.split1.bundle", "gone.txt\n")
    with pytest.raises(BadInput, match="groundTruth/gone.txt is not there"):
        find("breakfast").read(tmp_path, "test1")
    put(
        tmp_path / "activity_net.v1-3.min.json",
        {
            "database": {
                "x": {
                    "subset": "training",
                    "annotations": [{"segment": [0.5, 2], "label": "a"}, {"segment": [4, 5], "label": "b"}],
                }
            }
        },
    )
    found = find("activitynet").read(tmp_path, "train").items
    assert [(x.pictures, x.answers, x.span) for x in found] == [(("v_x",), (("b", 1.0),), (0, 3))]


def test_classes_are_scored_by_accuracy_and_a_stranger_is_never_found(tmp_path: Path) -> None:
    put(tmp_path / "testlist01.txt", "A/a.avi\nB/b.avi\nC/c.avi\n")
    put(tmp_path / "trainlist01.txt", "A/x.avi 1\nB/y.avi 2\n")
    from dataclasses import replace

    benchmark = find("ucf101")
    assert benchmark.labels is not None
    assert benchmark.measure is not None
    labels = benchmark.labels(tmp_path)
    annotations = replace(benchmark.read(tmp_path, "test1"), labels=labels)
    scores = {"a.avi": np.array([1.0, 0.0]), "b.avi": np.array([1.0, 0.0]), "c.avi": np.array([0.0, 1.0])}
    assert labels == ("A", "B")
    assert benchmark.measure(annotations, scores)["accuracy"] == pytest.approx(1 / 3)


def test_videos_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "twin"
    write_twin("youcook2", data, 6, 3)
    where = ["--data", str(data), "--regions", str(data / "regions"), "--size", "tiny", "--steps", "1", "--rows", "300"]
    where += ["--samples", "2", "--workers", "0", "--device", "cpu"]
    main(["finetune", "cbt", "retrieval_youcook2", *where, "--out", str(tmp_path / "run")])
    main(["score", str(tmp_path / "run"), "--prefilter", "nearest", "--top", "4"])
    numbers = json.loads((tmp_path / "run/score-val.json").read_text())["numbers"]
    assert numbers["image R@5"] == numbers["prefilter image R@4"]
    main(["score", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/score-val.json").read_text())["numbers"]["image median rank"] >= 1
    assert not list((tmp_path / "run").glob("scores-*")), "what is done leaves no parts behind"
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["finetune", "uniter", "retrieval", *where, "--benchmark", "youcook2", "--out", str(tmp_path / "x")])
    assert caught.value.code == 2
    assert "uniter reads pictures; youcook2 shows videos" in capsys.readouterr().err
    assert benchmark_of("caption", (), films=True).name == "youcook2-captions"


def test_captioners_of_films_by_the_command_line(tmp_path: Path) -> None:
    data, book, pre, run = (tmp_path / x for x in ("twin", "book.safetensors", "pre", "run"))
    write_twin("youcook2-captions", data, 6, 2)
    films = ["--regions", str(data / "regions"), "--data", str(data)]
    main(["data", "cluster", str(data / "regions"), "--out", str(book), "--k", "2", "--depth", "2"])
    few = ["--workers", "0", "--device", "cpu", "--size", "tiny"]
    steps = [*few, "--centroids", str(book)]
    main(["pretrain", "videobert", "--data", str(data / "regions"), "--out", str(pre), "--schedule.steps", "1", *steps])
    tune = ["finetune", "videobert", "caption", *films, *steps, "--weights", str(pre), "--out", str(run)]
    other = ["finetune", "cbt", "caption", *films, *few, "--out", str(tmp_path / "cbt")]
    for order in (tune, other):
        main([*order, "--steps", "1", "--rows", "200"])
        done = Path(order[-1])
        main(["score", str(done), "--beams", "1"])
        told = json.loads((done / "score-val.json").read_text())
        assert told["benchmark"] == "youcook2-captions"
        assert told["items"] == len(find("youcook2-captions").read(data, "val").items)
        assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= told["numbers"].keys()


def test_coin_labels_every_moment(tmp_path: Path) -> None:
    steps = [{"id": "1", "label": "cut", "segment": [3.0, 6.0]}, {"id": "2", "label": "join", "segment": [7.5, 9]}]
    film = {"subset": "testing", "class": "Craft", "duration": 10.4, "annotation": steps}
    put(tmp_path / "COIN.json", {"database": {"a": film, "b": film | {"subset": "training"}}})
    found = find("coin").read(tmp_path, "test")
    assert list(found.gold.values()) == ["background", "background", "cut", "cut", "background", "join"]
    source = Annotated(found, Pictures(Videos(a=7)))
    assert shown(source[0]) == [0, 1, 2, 3], "5 s around 0.75 s, none before the film"
    assert shown(source[3]) == [0, 1, 2, 3, 4, 5, 6]
    put(tmp_path / "COIN.json", {"database": {"a": film | {"annotation": [steps[0] | {"segment": [6, 3]}]}}})
    with pytest.raises(BadInput, match="video a: a segment from 6 s to 3 s"):
        find("coin").read(tmp_path, "test")
