"""What B2T2 lays out: mentions and their objects, the whole picture, reasons, what is cut. Source: its paper and code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_single_stream import REGIONS, VOCAB, made, system

from intarsia.batch import Link
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.system import begin
from intarsia.systems.b2t2 import B2T2
from intarsia.tuned import Tuned


def test_b2t2_names_objects_after_their_mentions() -> None:
    sample = dataclasses.replace(
        made(1), texts=("w1 w2", "w3", "w4 w5 w6"), links=(Link(3, 5, 1, 0), Link(0, 2, 6, 2), Link(6, 8, 1, 2))
    )
    example = system("b2t2").lay_out(sample, "vcr", 1)
    pieces = [VOCAB.tokens[i] for i in example.text.ids]
    assert " ".join(pieces) == "[CLS] [IMAGE] w1 w2 [OBJ-1] [SEP] w4 [OBJ-6] w5 w6 [OBJ-1] [SEP]"
    assert example.text.segment_ids.tolist() == [0] * 6 + [1] * 6
    assert sorted(map(tuple, example.links.tolist())) == [(1, REGIONS), (4, 1), (7, 6), (10, 1)]
    assert not example.text.cut
    first = system("b2t2", max_num_bboxes=1).lay_out(sample, "vcr", 1)
    assert sorted(map(tuple, first.links.tolist())) == [(1, REGIONS), (4, 1)]  # later mentions carry nothing


def test_b2t2_shows_the_whole_picture_where_the_data_have_it() -> None:
    b2t2, sample = system("b2t2"), made(1)
    picture = sample.pictures[0]
    mean = b2t2.lay_out(sample)
    np.testing.assert_allclose(mean.regions.feats[-1], picture.features.mean(0), rtol=1e-5, atol=1e-6)
    boxes = picture.boxes.copy()
    boxes[4] = [0, 0, 1, 1]
    whole = b2t2.lay_out(dataclasses.replace(sample, pictures=(dataclasses.replace(picture, boxes=boxes),)))
    for example, feature in ((mean, mean.regions.feats[-1]), (whole, picture.features[4])):
        assert example.links.tolist() == [[1, REGIONS]]
        assert VOCAB.tokens[example.text.ids[1]] == "[IMAGE]"
        np.testing.assert_array_equal(example.regions.feats[example.links[0, 1]], feature)
        np.testing.assert_array_equal(example.regions.feats[:-1], picture.features)  # object i stays region i
    none = dataclasses.replace(picture, features=picture.features[:0], boxes=boxes[:0], scores=None, probs=None)
    assert not b2t2.lay_out(dataclasses.replace(sample, pictures=(none,))).regions.feats.any()


def test_b2t2_calls_objects_by_their_class_names_reasons_apart_and_counts_what_it_cuts() -> None:
    names = ("t1", "t2", "t1", "", "", "", "t3")
    picture = dataclasses.replace(made(1).pictures[0], names=names)
    texts = ("w1 w2 w3", "w4 is", "w5", "w6 w7", "w8", "w9")
    links = (Link(3, 5, 1, 0), Link(0, 2, 6, 1), Link(3, 5, 3, 3))
    sample = dataclasses.replace(made(1), texts=texts, links=links, pictures=(picture,))
    rows = system("b2t2").lay_out(sample, "vcr_reasons", 1)
    pieces = " ".join(VOCAB.tokens[i] for i in rows.text.ids)
    assert pieces == "[CLS] [IMAGE] w1 t2 [OBJ-1] w3 [SEP] t3 [OBJ-6] [UNK] w6 w7 [OBJ-3] [SEP]"
    assert rows.text.segment_ids.tolist() == [0] * 7 + [1] * 7
    named = system("b2t2", append_all_bboxes=True, max_num_bboxes=2).lay_out(sample, "vcr_reasons", 1)
    assert " ".join(VOCAB.tokens[i] for i in named.text.ids) == pieces + " t1 [OBJ-0] t2 [OBJ-1]"
    long = dataclasses.replace(sample, texts=("w1 " * 20, "w2", "w3 " * 30, "w4 " * 9, "w5"), links=())
    short = [system("b2t2", max_rows=24).lay_out(long, "vcr", form) for form in range(4)]
    # strictly less than 24 - 4 pieces; the question that the second choice has cut stays cut in the others
    assert [(len(x.text), x.text.cut, int((x.text.segment_ids == 0).sum())) for x in short] == [
        (23, 2, 3 + 18),
        (23, 31, 3 + 10),
        (23, 10, 3 + 10),
        (15, 10, 3 + 10),
    ]
    with pytest.raises(BadInput, match=r"sample s1: object 16 is mentioned, the vocabulary has no \[OBJ-16\]"):
        system("b2t2").lay_out(
            dataclasses.replace(sample, links=(Link(3, 5, 16, 0),), pictures=made(1, 20).pictures), "vcr"
        )


@pytest.mark.parametrize("fusion", ["early", "late", "dual", "blind"])
def test_vcr_goes_on_from_the_head_of_captions_or_by_the_score_of_two_towers(fusion: str) -> None:
    before = system("b2t2", fusion=fusion)
    tuned = Tuned(begin(before, B2T2.finetune["vcr"]), "vcr").eval()
    sample = dataclasses.replace(made(1), texts=("w1 w2", "w3", "w4", "w5", "w6 w7"), answers=(("2", 1.0),))
    batch = pack(tuned.documents(sample, "vcr", np.random.default_rng(0), lambda: made(9)))
    encoded = tuned.encode(batch)
    logits = tuned.task.score(tuned.head, encoded, batch)
    wanted = before.match_logits(encoded)
    torch.testing.assert_close(logits, wanted)
    (ranked,) = tuned.predict(batch)
    torch.testing.assert_close(ranked, wanted[:, 1] - wanted[:, 0])
    losses = tuned.losses(encoded, batch)
    wrong = torch.tensor([0, 0, 1, 0])
    torch.testing.assert_close(losses["vcr"], torch.nn.functional.cross_entropy(wanted, wrong))
    assert bool(list(tuned.head.parameters())) == (fusion in ("early", "late"))
