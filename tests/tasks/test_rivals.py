"""Hard negatives: files of pictures alike, nearest pictures, broken pairs made of them, and those mined by the system itself."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Batch, Example, Sample
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.systems import find as find_system
from intarsia.tasks.benchmarks import Annotated, find
from intarsia.tasks.benchmarks.rivals import nearest, read_pool
from intarsia.tasks.retrieval import Draws, Retrieval, RetrievalMined, RetrievalTriplet
from intarsia.tuned import some_of
from intarsia.tuning_runs import begin, begin_whole, open_items, rivals_of
from intarsia.worlds.twins import write_twin


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    data = tmp_path_factory.mktemp("coco")
    write_twin("coco", data, 12, 4, level=0)
    return open_items(find("coco"), data, str(data / "regions"), "train")


def drawn(rivals: Any, sample: Sample, far: Sample) -> set[str]:
    rng = np.random.default_rng(0)
    return {rivals.draws(sample, rng, lambda: far).near().pictures[0].name for _ in range(60)}


def test_vilberts_pickle_and_json_say_the_same(source: Annotated, tmp_path: Path) -> None:
    names = list(dict.fromkeys(item.pictures[0] for item, _ in source.kept))
    ids = [int(x.rsplit("_", 1)[1].removesuffix(".jpg")) for x in names]  # COCO's bare numbers
    pool = np.array([[i, (i + 1) % 12, (i + 2) % 12] for i in range(12)])
    (tmp_path / "hard_negative.pkl").write_bytes(pickle.dumps({"train_image_list": ids, "train_hard_pool": pool}))
    (tmp_path / "pool.json").write_text(json.dumps({names[i]: [names[j] for j in pool[i, 1:]] for i in range(12)}))
    sample = next(source[i] for i in range(len(source)) if source.kept[i][0].pictures[0] == names[5])
    for name in ("hard_negative.pkl", "pool.json"):
        assert drawn(read_pool(source, tmp_path / name), sample, source[0]) == {names[6], names[7]}
    (tmp_path / "pool.json").write_text('{"nobody": ["knows"]}')
    with pytest.raises(BadInput, match="knows nothing like any of the 12 pictures"):
        read_pool(source, tmp_path / "pool.json")
    bad = {"train_image_list": ids, "train_hard_pool": pool[:3]}
    (tmp_path / "hard_negative.pkl").write_bytes(pickle.dumps(bad))
    with pytest.raises(BadInput, match=r"train_hard_pool of shape \(3, 3\) for 12 pictures"):
        read_pool(source, tmp_path / "hard_negative.pkl")


def test_nearest_pictures_have_the_nearest_mean_features(source: Annotated, tmp_path: Path) -> None:
    rivals = nearest(source, tmp_path / "nearest.json", count=2)
    pool = json.loads((tmp_path / "nearest.json").read_text())
    firsts = {item.pictures[0]: source[i].pictures[0] for i, (item, _) in reversed(list(enumerate(source.kept)))}
    means = {name: np.asarray(x.features, np.float64).mean(0) for name, x in firsts.items()}
    for name, found in pool.items():
        order = sorted((x for x in means if x != name), key=lambda x: np.linalg.norm(means[x] - means[name]))
        assert set(found) == set(order[:2])
    assert drawn(rivals, source[0], source[-1]) == set(pool[source.kept[0][0].pictures[0]])


def test_a_held_out_sample_gets_any_other(source: Annotated, tmp_path: Path) -> None:
    rivals = nearest(source, tmp_path / "nearest.json")
    assert drawn(rivals, replace(source[0], key="held out"), source[3]) == {source[3].pictures[0].name}


@dataclass
class Said:
    """A lay-out that says what it was given."""

    given: list[Sample]

    def __call__(self, sample: Sample, form: int = 0, name: str = "") -> Example:
        self.given.append(sample)
        return Example(sample.key)


def test_capital_letters_are_made_of_pictures_alike(source: Annotated) -> None:
    mine, far, near = source[0], source[len(source) // 2], source[len(source) - 1]
    draw = Draws(lambda: far, lambda: near)
    lay = Said([])
    Retrieval(broken_by=("ptPT",)).documents(lay, mine, np.random.default_rng(0), draw)  # type: ignore[arg-type]
    true = lay.given.pop()  # laid out last, given first
    assert (true.pictures[0].name, true.texts) == (mine.pictures[0].name, mine.texts)
    shown = [x.pictures[0].name for x in lay.given]
    said = [x.texts for x in lay.given]
    names = [x.pictures[0].name for x in (mine, far, near)]
    assert shown == [names[1], names[0], names[2], names[0]]
    assert said == [mine.texts, far.texts, mine.texts, near.texts]
    plain = Said([])
    Retrieval(broken_by=("T",)).documents(plain, mine, np.random.default_rng(0), lambda: far)  # type: ignore[arg-type]
    assert plain.given[0].texts == far.texts


def test_only_the_best_broken_pairs_train(source: Annotated) -> None:
    tuned, _ = begin("uniter", "retrieval_hard", "base", None, None, source, (), tiny=True)
    few = RetrievalMined(broken_by=("p" * 6, "t" * 6), broken=6, kept=2)
    tuned.described = replace(tuned.described, task=few)
    for x in tuned.modules():
        if hasattr(x, "p"):
            x.p = 0.0
    rng, numbers = np.random.default_rng(1), iter(range(1, 60))
    examples = [
        y
        for i in (0, 1)
        for y in few.documents(
            lambda sample, form=0, name="": replace_sample(tuned, sample), source[i], rng, lambda: source[next(numbers)]
        )
    ]
    batch = pack(examples)
    scores = tuned.eval().match_scores(tuned.encode(batch))
    chosen = few.mined(scores, batch)
    best = [[0, *(1 + scores[1:7].argsort(descending=True)[:2])], [7, *(8 + scores[8:14].argsort(descending=True)[:2])]]
    assert chosen.tolist() == [int(x) for y in best for x in y]
    torch.testing.assert_close(tuned.match_scores(tuned.encode(some_of(batch, chosen))), scores[chosen])
    losses, _ = tuned.train()(batch)
    margin = Retrieval().margin + torch.sigmoid(scores[chosen].view(2, 3))
    wanted = (margin[:, 1:] - torch.sigmoid(scores[chosen].view(2, 3))[:, :1]).clamp(min=0).mean()
    torch.testing.assert_close(losses["retrieval_hard"], wanted)
    assert tuned.training


def replace_sample(tuned: Any, sample: Sample) -> Example:
    example: Example = tuned.system.lay_out(sample)
    example.sample = sample.key
    return example


def test_hard_training_goes_on_from_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "twin"
    write_twin("flickr30k", data, 8, 4, level=0)
    where = [
        "--data",
        str(data),
        "--regions",
        str(data / "regions"),
        "--size",
        "tiny",
        "--rows",
        "400",
        "--samples",
        "1",
    ]
    steps = ["--steps", "1", "--workers", "0", "--device", "cpu"]
    main(
        [
            "finetune",
            "vilbert",
            "retrieval",
            *where,
            *steps,
            "--out",
            str(tmp_path / "a"),
            "--hard-negatives",
            "nearest",
        ]
    )
    assert json.loads((tmp_path / "a/finetune.json").read_text())["rivals"] == "nearest"
    assert (tmp_path / "a/nearest.json").is_file()
    main(
        [
            "finetune",
            "vilbert",
            "retrieval",
            *where,
            *steps,
            "--out",
            str(tmp_path / "b"),
            "--weights",
            str(tmp_path / "a"),
        ]
    )
    assert "tuned" in capsys.readouterr().out
    for task, more, said in (
        ("vqa", ["--weights", str(tmp_path / "a"), "--answers", "x.txt"], "x.txt"),
        ("ve", ["--hard-negatives", "nearest"], "the paper's task takes none"),
    ):
        with pytest.raises(SystemExit):
            main(
                [
                    "finetune",
                    "vilbert",
                    task,
                    *where,
                    *steps,
                    "--benchmark",
                    "flickr30k",
                    "--out",
                    str(tmp_path / "c"),
                    *more,
                ]
            )
        assert said in capsys.readouterr().err


def test_what_takes_no_hard_negatives_says_so(source: Annotated, tmp_path: Path) -> None:
    plain, hard = find_system("uniter").finetune["retrieval"], find_system("vilbert").finetune["retrieval"]
    assert rivals_of(plain, find("coco"), source, "", tmp_path) == (None, "")
    assert rivals_of(hard, find("coco"), source, "", tmp_path) == (None, "")
    with pytest.raises(BadInput, match="takes none"):
        rivals_of(plain, find("coco"), source, "nearest", tmp_path)


def test_a_triplet_counts_the_hardest_broken_pair_of_each_sample() -> None:
    scores = torch.tensor([0.5, -1.0, 0.4, -2.0, 3.0, -3.0, -4.0, -5.0, -1.0, -2.0, 2.0, 0.0])
    true = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1])
    batch = Batch(tuple(map(str, range(12))), torch.arange(12) // 4, targets={"retrieval": true})
    s = torch.sigmoid(scores)
    by_hand = torch.stack([0.2 + s[2] - s[0], torch.tensor(0.0), 0.2 + s[10] - s[11]]).mean()
    torch.testing.assert_close(RetrievalTriplet().loss(scores, batch), by_hand)


@pytest.mark.parametrize("task", ["retrieval", "retrieval_triplet", "retrieval_one"])
def test_imageberts_losses_begin_from_the_match_head_and_break_either_side(task: str, source: Annotated) -> None:
    tuned, _ = begin("imagebert", task, "base", None, None, source, (), tiny=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(42)
        whole = begin_whole(find_system("imagebert"), "imagebert", "base", None, None, source, tiny=True)
    assert torch.equal(tuned.head.weight, whole.match_head.weight)
    kinds = set()
    for seed in range(8):
        examples = tuned.documents(source[0], task, np.random.default_rng(seed), lambda: source[5])
        ids = {tuple(x.text.ids.tolist()) for x in examples if x.text is not None}
        seen = {x.regions.feats.tobytes() for x in examples if x.regions is not None}
        kinds.add((len(ids) > 1, len(seen) > 1))
        losses, _ = tuned(pack(examples))
        assert losses[task].isfinite()
        assert [int(x.targets["retrieval"]) for x in examples] == [1] + [0] * (len(examples) - 1)
    assert kinds == {(True, False), (False, True)}
