"""VL-BERT on VCR from its raw files: which cells objects cover, what the trunk makes of them, names, classes, heads. Against a slow reading of the code's rules."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_vl_bert_trunk import build, slow_boxes, slow_features, slow_pixels

from intarsia import tuning_runs
from intarsia.batch import Meant, Pick, Sample
from intarsia.cli import main
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.features.fast_rcnn import covered
from intarsia.pack import pack
from intarsia.system import begin
from intarsia.systems.vl_bert import VLBERT
from intarsia.tasks.benchmarks import Annotated, Pictures, find
from intarsia.tasks.vcr import KINDS
from intarsia.train.loop import Pace
from intarsia.train.start import captions
from intarsia.tuned import Tuned, recipe_of, start
from intarsia.worlds.twins import write_twin

WIDE, HIGH = 150, 90
BOXES = [[10.5, 8.0, 70.25, 80.0, 0.9], [60.0, 20.0, 140.0, 85.5, 0.8], [0.0, 0.0, 149.0, 89.0, 1.0]]
OUTLINES: list[Any] = [
    [[[12, 10], [68, 12], [40, 78]]],
    [[[60, 20], [90, 20], [90, 50], [60, 50]], [[110, 60], [139, 60], [139, 85], [110, 85]]],
    [],
]


def slow_covered(outlines: Any, box: list[float]) -> list[list[bool]]:
    """Cell by cell, in exact fractions: the edges that a ray to the right crosses, an edge without its lower end; odd = inside."""
    found = [[False] * 14 for _ in range(14)]
    for outline in outlines:
        points = []
        for x, y in outline:
            numbers = [
                float(np.float32((np.float32(v) - np.float32(low)) * np.float32(14 / (high - low + 1))))
                for v, low, high in ((x, box[0], box[2]), (y, box[1], box[3]))
            ]
            points.append([Fraction(min(max(v, 0.0), 13.0)) for v in numbers])
        for i in range(14):
            for j in range(14):
                crossed = 0
                for a, b in zip(points, points[1:] + points[:1], strict=True):
                    top, low = sorted((a, b), key=lambda p: p[1])
                    if top[1] <= i < low[1]:
                        crossed += j < top[0] + (low[0] - top[0]) * (i - top[1]) / (low[1] - top[1])
                found[i][j] |= crossed % 2 == 1
    return found


def write(root: Path, **more: Any) -> None:
    about = {"boxes": BOXES, "segms": OUTLINES, "width": WIDE, "height": HIGH, "names": []} | more
    line = {
        "annot_id": "val-1",
        "img_fn": "m/1.png",
        "metadata_fn": "m/1.json",
        "objects": ["person", "dog", "diningtable"],
        "question": ["w1", [1], "w2", "?"],
        "answer_choices": [["w3", [0, 1]], ["w4"], ["w5", [2]], ["w6"] * 70],
        "answer_label": 2,
        "rationale_choices": [["w7"], ["w8"], ["w9", [0]], ["w10"]],
        "rationale_label": 1,
    }
    folder = root / "vcr1images/m"
    folder.mkdir(parents=True)
    (root / "val.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "1.json").write_text(json.dumps(about))
    image = np.random.default_rng(5).integers(0, 255, (HIGH, WIDE, 3), np.uint8)
    Image.fromarray(image).save(folder / "1.png")


def pictures(root: Path) -> Pictures:
    """What `intarsia data objects` writes beside the pictures."""
    main(["data", "objects", str(root), str(root / "vcr1images"), "--splits", "val"])
    return Pictures(open_source(root / "vcr1images"))


def items(root: Path, **more: Any) -> Annotated:
    write(root, **more)
    return Annotated(find("vcr").read(root, "val"), pictures(root))


def with_pixels(sample: Sample) -> Sample:
    """For `slow_pixels`, which reads what is at hand."""
    pixels = np.asarray(Image.open(sample.pictures[0].path))
    return replace(sample, pictures=(replace(sample.pictures[0], pixels=lambda: pixels),))


def tuned() -> Tuned:
    system = start(build(visual_scale=0.5), VLBERT.finetune["vcr"], "vcr")
    assert system.config.long_side == 1200
    system.system.config = replace(system.config, short_side=64, long_side=96)  # small pictures for this test
    return system


def test_cells_are_covered_as_in_the_slow_reading() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(60):
        x, y = rng.random(2) * 100
        box = [x, y, x + 1 + rng.random() * 80, y + 1 + rng.random() * 60]
        outlines = []
        for _ in range(rng.integers(0, 4)):
            corner, extent = np.array(box[:2]) - 5, np.array(box[2:]) - box[:2] + 10
            outlines.append(
                (corner + rng.random((rng.integers(3, 9), 2)) * extent).round()
            )  # whole pixels, some outside
        ours = covered(outlines, box)
        np.testing.assert_array_equal(ours, slow_covered(outlines, box))
        seen += int(ours.sum())
    assert seen > 1000
    assert not covered([], box).any()
    square = np.array([[0, 0], [13, 0], [13, 13], [0, 13]])
    full = covered([square], [0, 0, 13, 13])
    assert full[:13, :13].all() and not full[13].any() and not full[:, 13].any()


def test_raw_files_become_regions_with_names_and_covers(tmp_path: Path) -> None:
    sample = items(tmp_path)[0]
    (picture,) = sample.pictures
    np.testing.assert_allclose(picture.boxes[0], [10.5 / WIDE, 8 / HIGH, 70.25 / WIDE, 80 / HIGH], rtol=1e-6)
    assert picture.names == ("person", "dog", "diningtable")
    assert picture.features.shape == (3, 0)
    assert picture.covers is not None
    for ours, outlines, box in zip(picture.covers(covered), OUTLINES, BOXES, strict=True):
        np.testing.assert_array_equal(ours, slow_covered(outlines, box))
    said = [(sample.texts[x.text][x.start : x.end], x.region, x.text) for x in sample.links]
    assert said == [("dog", 1, 0), ("Casey", 0, 1), ("dog", 1, 1), ("diningtable", 2, 3)]


def test_the_trunk_sees_of_each_object_what_it_covers(tmp_path: Path) -> None:
    system, sample = tuned(), items(tmp_path)[0]
    examples = system.forms(sample)
    batch = pack(examples)
    assert batch.regions is not None and batch.regions.covers is not None
    assert batch.images is not None and batch.images.doc.tolist() == [0]  # the other choices read the first one's
    trunk = system.system.sight.trunk
    read: list[int] = []
    watch = trunk.head.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    found, *others = trunk(batch.images, batch.regions).split(4)
    watch.remove()
    assert read == [4]  # each region once, not with every choice
    assert len(others) == 3
    for same in others:
        torch.testing.assert_close(same, found, atol=1e-4, rtol=1e-5)
    shown = with_pixels(sample)
    pixels, picture = slow_pixels(shown), shown.pictures[0]
    covers = [*(slow_covered(x, box) for x, box in zip(OUTLINES, BOXES, strict=True)), [[True] * 14] * 14]
    boxes = slow_boxes(picture, pixels.shape[2], pixels.shape[1])
    theirs = slow_features(batch.images.pixels[0], boxes, dict(trunk.state_dict()), covers)
    torch.testing.assert_close(found, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
    assert (found[2] == 0).all()  # an object without outline
    with pytest.raises(ValueError, match="4 regions, and no image"):
        trunk(None, pack(examples[1:2]).regions)
    open_ = replace(batch.regions, covers=None)
    plain = slow_features(batch.images.pixels[0], boxes, dict(trunk.state_dict()))
    torch.testing.assert_close(trunk(batch.images, open_)[:4], plain, atol=1e-4 * float(plain.abs().max()), rtol=0)


def test_documents_classes_and_what_is_cut(tmp_path: Path) -> None:
    system, source = tuned(), items(tmp_path)
    examples = system.documents(source[0], "vcr", np.random.default_rng(0), lambda: source[1])
    assert [int(x.targets["vcr"]) for x in examples] == [0, 0, 1, 0]
    for example in examples:
        named = example.targets["objects"]
        assert isinstance(named, Pick)
        assert named.labels.tolist() == [KINDS["person"], KINDS["dog"], KINDS["diningtable"], 0]
    assert len(examples[3].text) == 64 + 3 + 1 and examples[3].text.cut > 0  # [CLS], two [SEP], [END]
    loss, _ = system(pack(examples))
    assert set(loss) == {"vcr", "beside"} and all(torch.isfinite(x) for x in loss.values())
    with pytest.raises(BadInput, match=r"val-1/qa: object 'unicorn' is none of COCO's"):
        odd = replace(source[0].pictures[0], names=("person", "unicorn", "dog"))
        system.documents(replace(source[0], pictures=(odd,)), "vcr", np.random.default_rng(0), lambda: source[1])


def test_training_turns_half_of_the_pictures_their_outlines_and_what_is_said_of_sides(tmp_path: Path) -> None:
    source, turned = items(tmp_path), 0
    system = tuned()
    system.system.config = replace(system.system.config, flip_rate=0.5)
    (plain, *_) = system.forms(source[0])
    for seed in range(60):
        example, *_ = system.documents(source[0], "vcr", np.random.default_rng(seed), lambda: source[1])
        assert example.text.ids.tolist() == plain.text.ids.tolist()
        if np.allclose(example.regions.boxes, plain.regions.boxes):
            continue
        turned += 1
        np.testing.assert_array_equal(example.regions.covers, plain.regions.covers[:, :, ::-1])
        np.testing.assert_array_equal(example.images[0].read(), plain.images[0].read()[:, :, ::-1])
    assert 12 < turned < 48
    vl_bert = build(flip_rate=1.0)
    boxes = np.array([[0.1, 0.0, 0.3, 1.0]])
    asked = replace(source[0], texts=("w1 left right lefty",), answers=(("left", 1.0),), meant=(Meant(0, 5, boxes),))
    for task, text, answer in (("re", "w1 right left lefty", "right"), (None, asked.texts[0], "left")):
        seen = vl_bert.vary(asked, task, np.random.default_rng(0))
        assert (seen.texts[0], seen.answers[0][0]) == (text, answer)
        edge = (seen_width(vl_bert, asked) - 1) / seen_width(vl_bert, asked)
        np.testing.assert_allclose(seen.meant[0].boxes, [[edge - 0.3, 0, edge - 0.1, 1]])


def seen_width(system: VLBERT, sample: Sample) -> int:
    return system.lay_out(sample).images[0].width


def test_fresh_heads_are_drawn_by_xaviers_rule() -> None:
    head = begin(build(hidden_size=64), VLBERT.finetune["vcr"]).head["choice"][1].requires_grad_(False)
    bound = (6 / (64 + 1)) ** 0.5
    assert 0.8 * bound < float(head.weight.abs().max()) <= bound
    assert not head.bias.any()


def test_heads_and_the_second_segment_start_from_what_was_pretrained() -> None:
    before = build()
    after = begin(before, VLBERT.finetune["vcr"])
    assert torch.equal(after.head["objects"][0].weight, before.class_head[0].weight)
    segments = after.system.words.segment.weight
    assert torch.equal(segments[1], segments[0])
    assert torch.equal(segments[[0, 2]], before.words.segment.weight[[0, 2]])
    assert not torch.equal(before.words.segment.weight[1], before.words.segment.weight[0])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"segms": OUTLINES[:2]}, r"1\.json: 3 boxes, segms of 2 objects"),
        ({"segms": [[[[1, 2], [3]]], [], []]}, r"1\.json: segms of object 0: .* is not a list of \[x, y\]"),
    ],
)
def test_broken_outlines_are_named(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=told):
        tuned().forms(items(tmp_path, **more)[0])


def test_boxes_that_are_not_the_objects_stop_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, boxes=BOXES[:2])
    with pytest.raises(SystemExit) as stopped:
        pictures(tmp_path)
    assert stopped.value.code == 2
    assert "line 1: 3 objects" in capsys.readouterr().err
    assert not (tmp_path / "vcr1images/pairs.jsonl").exists()


def test_without_outlines_objects_are_seen_whole(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "vcr1images/m/1.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "segms"}))
    source = Annotated(find("vcr").read(tmp_path, "val"), pictures(tmp_path))
    assert source[0].pictures[0].covers is None
    assert pack(tuned().forms(source[0])).regions.covers is None


def test_a_run_end_to_end_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin's raw files: pictures and outlines to a tuned run with the trunk, and its score."""
    data, run = tmp_path / "vcr", tmp_path / "run"
    write_twin("vcr", data, 4, 2, level=1, pictures=True)
    main(["data", "objects", str(data), str(data / "images")])
    regions = str(data / "images")
    benchmark = find("vcr")
    source = tuning_runs.open_items(benchmark, data, regions, "train")
    vocab = captions(source, VLBERT.specials)
    before = build(vocab_size=len(vocab), max_position_embeddings=256)
    system = start(VLBERT(before.config, vocab), VLBERT.finetune["vcr"], "vcr")
    system.system.config = replace(system.config, short_side=64, long_side=96)
    recipe = recipe_of(system.system.config, "vcr", VLBERT.finetune["vcr"].tunings["e2e"])
    recipe = replace(
        recipe,
        schedule=replace(recipe.schedule, steps=2, warmup=0),
        batching=replace(recipe.batching, rows=4000, samples=2, accumulate=1),
    )
    about = tuning_runs.About("vl_bert", "vcr", "e2e", "vcr", str(data), regions, "")
    pace = Pace(log_every=1, tensorboard=False)
    outcome = tuning_runs.finetune(about, system, recipe, source, run, device="cpu", pace=pace)
    assert outcome.finished
    losses = [json.loads(x)["loss"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(np.isfinite([x["vcr"], x["beside"]]).all() for x in losses)
    main(["score", str(run), "--split", "val"])
    assert "Q->AR" in capsys.readouterr().out
