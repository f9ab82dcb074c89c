"""One training step of LXMERT against the same step of Hugging Face's, and retrieval with and without what is computed once.

    python benchmarks/lxmert.py                       both workloads, one thread, about 5 minutes on an idle core
    python benchmarks/lxmert.py --workloads t7 --rounds 5

Workloads (pairs of `step.py`, texts cut at 20 pieces, 36 regions of 2048 numbers a picture):
    t7    16 pairs: hidden words, matching, classes, attributes, features, a question with 9,500 answers; forward, backward, clipping, AdamW;
          dropout 0.1. Losses and every gradient must agree with dropout off before anything is timed. Theirs pads texts to 20.
    r2    every text with every picture: `score_crossed`, which reads both once each and computes of the last layer what is pooled, against
          `score_pairs`, which reads every pair as a whole; the scores must agree within 1e-5.

Sides alternate inside one process; figures are medians of CPU time with one thread, of wall time with more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np
import step
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Example, Pick
from intarsia.evaluate.crossing import score_crossed
from intarsia.evaluate.matching import score_pairs
from intarsia.evaluate.running import Inference
from intarsia.pack import pack
from intarsia.systems.lxmert import LXMERT, LXMERTConfig
from intarsia.text import SPECIALS, Vocab

LONGEST, PAIRS, RATE = 20, 16, 0.15
BARS = {"t7: ours fp32 / theirs fp32": 0.74, "t7: ours bf16 / theirs bf16": 0.72}
RETRIEVAL = {"r2: cached / not": 0.55}
CONFIG = LXMERTConfig()


def make_examples(pairs: int = PAIRS) -> list[Example]:
    """Pairs of `step.make_examples` with the targets of all six losses; every second pair is true and has an answer."""
    words, regions = step.lengths(pairs, adaptive=False)
    examples = step.make_examples(np.minimum(words, LONGEST), regions)
    for i, x in enumerate(examples):
        rng, rows = np.random.default_rng([step.SEED, i, 1]), x.regions
        assert rows is not None
        low = rng.random((len(rows), 2)) / 2
        rows.boxes = np.concatenate([low, low + 0.4], 1).astype(np.float32)
        hidden = np.flatnonzero(rng.random(len(rows)) < RATE)
        x.targets["feat"] = Pick("regions", hidden, rows.feats[hidden].copy())
        rows.masked[hidden] = True
        for goal, count in (("obj", CONFIG.num_object_labels), ("attr", CONFIG.num_attr_labels)):
            told = np.stack([rng.integers(0, count, len(rows)), rng.random(len(rows))], 1).astype(np.float32)
            x.targets[goal] = Pick("regions", np.arange(len(rows)), told)
        x.targets["qa"] = np.array(rng.integers(CONFIG.num_qa_labels) if i % 2 else -1)
    return examples


def padded_inputs(examples: list[Example]) -> dict[str, object]:
    """The same pairs as Hugging Face takes them."""
    given = step.padded_inputs(examples, LONGEST, 36)
    batch = pack(examples)
    regions = batch.regions
    assert regions is not None

    def told(goal: str) -> tuple[Tensor, Tensor]:
        ids, sure = batch.picks(goal).labels.view(len(examples), 36, 2).unbind(-1)
        return ids.long(), sure

    feats = regions.feats.clone()
    feats[batch.picks("feat").rows] = batch.picks("feat").labels
    answers = batch.labels("qa")
    return {
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "labels": given["labels"][:, :LONGEST].contiguous(),
        "visual_feats": regions.feats.view(len(examples), 36, -1),
        "visual_pos": regions.boxes.view(len(examples), 36, 4),
        "matched_label": batch.labels("itm"),
        "obj_labels": {
            "obj": told("obj"),
            "attr": told("attr"),
            "feat": (feats.view(len(examples), 36, -1), regions.masked.view(len(examples), 36).float()),
        },
        "ans": torch.where(answers < 0, -100, answers),
    }


def hugging_face() -> nn.Module:
    """LxmertForPreTraining at its published size, random weights, biases and norms away from 0 and 1."""
    from transformers import LxmertConfig, LxmertForPreTraining

    torch.manual_seed(0)
    model: nn.Module = LxmertForPreTraining(LxmertConfig(visual_loss_normalizer=1 / RATE))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name:
                value += 0.02 * torch.randn_like(value)
    return model


class Ours(LXMERT):
    """LXMERT whose last layer computes the rows that losses read, in evaluation too, so that the gate sees what is timed."""

    def read(self, batch: Batch) -> dict[str, Tensor] | None:
        """The rows that targets pick."""
        return batch.read


def ours(cls: type[LXMERT] = Ours) -> LXMERT:
    """Ours at the published size."""
    return cls(CONFIG, Vocab([*SPECIALS, *(f"w{i}" for i in range(step.VOCAB - len(SPECIALS)))]))


def measure_step(kinds: tuple[str, ...], rounds: int, threads: int, fused: bool) -> None:
    """T7."""
    their_model, model, keys = hugging_face(), ours(), LXMERT.layouts["hf"]
    model.load_state_dict(keys.to_ours(their_model.state_dict()))
    examples = make_examples()
    inputs, batch = padded_inputs(examples), pack(examples)
    print(f"t7: {batch.rows} useful of {PAIRS * (LONGEST + 36)} positions")
    theirs = step.Side(
        their_model,
        torch.optim.AdamW(their_model.parameters(), lr=1e-6, fused=fused or None),
        lambda: their_model(**inputs).loss,
    )
    mine = step.our_side(model)
    mine.loss = lambda: sum(model(batch)[0].values(), torch.zeros(()))
    step.check_equal(theirs, mine, kinds, keys)
    step.race("t7", theirs, mine, kinds, rounds, threads, BARS)


def measure_retrieval(rounds: int, threads: int) -> None:
    """R2."""
    torch.manual_seed(0)
    model, examples, how = ours(LXMERT).eval(), make_examples(), Inference(progress=False)
    said, shown = ([replace(x, targets={}) for x in examples] for _ in range(2))
    plain, cached = score_pairs(model, said, shown, None, how), score_crossed(model, said, shown, how)
    apart = float(np.abs(plain - cached).max())
    print(f"r2: {plain.size} pairs; scores differ by {apart:.1e} at most, and spread over {np.ptp(plain):.3f}")
    if apart > 1e-5:
        sys.exit("the two ways do not score the same; nothing was timed")
    runs = {
        "not": lambda: score_pairs(model, said, shown, None, how),
        "cached": lambda: score_crossed(model, said, shown, how),
    }
    spent = step.alternate(runs, rounds, threads)
    for name, value in spent.items():
        print(f"  {name:14s} {value:7.3f} s, {plain.size / value:.1f} pairs a second")
    step.judge("r2: cached / not", spent["cached"] / spent["not"], RETRIEVAL)


def main() -> None:
    """Parses the options and runs the workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=("t7", "r2"), default=("t7", "r2"))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="both where bf16 products are faster")
    parser.add_argument("--fused", action="store_true", help="give theirs the fused AdamW too")
    options = parser.parse_args()
    kinds = step.begin(options.threads, options.precisions)
    if "t7" in options.workloads:
        measure_step(kinds, options.rounds, options.threads, options.fused)
    if "r2" in options.workloads:
        measure_retrieval(options.rounds, options.threads)


if __name__ == "__main__":
    main()
