"""One training step of a packed BERT-base over words and regions against the same step of Hugging Face's VisualBERT.

    python benchmarks/step.py                         all workloads, one thread, about 10 minutes on an idle core
    python benchmarks/step.py --workloads w1 --rounds 5

A step is: forward, masked words + matching loss, backward, clipping, AdamW; dropout 0.1 everywhere. Both sides hold the same weights and see the same
16 pairs; before anything is timed, the losses and every gradient must agree with dropout off. Sides alternate inside one process; figures
are medians of CPU time with one thread, of wall time with more. Theirs runs as its users run it: padded, default AdamW. Ours: packed rows,
vocabulary product at the hidden words only, fused AdamW.

Workloads (captions 8.5 + Gamma(4, 1.25) pieces, clipped to 8..36; 15 % of the words hidden; features of 2048 numbers):
    w1    36 regions a picture; theirs pads texts to 36
    w2a   10..100 regions (lognormal, median 34, sigma 0.42); theirs pads texts to 36, regions to 100
    w2b   the same pairs; theirs pads texts to 36, regions to the batch's maximum
    mfu   about 3,000 rows of ours alone: useful FLOPs a second as a share of the matrix product rate measured in the same run
    t9    64 pairs of w2 lengths against as many rows in pairs of one length: what raggedness costs

Useful FLOPs count unpadded rows, the vocabulary product at hidden words, no recomputation, three forward passes (two for the feature projection).
The last layer counts, and is computed by ours, at the rows that are read only: [CLS] and the hidden words.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Example, Pick, RegionRows, TextRows
from intarsia.pack import pack
from intarsia.packed import join, joined_rows
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Table
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.train.optim import clip, step_if
from intarsia.weights.keymap import KeyMap

H, LAYERS, HEADS, INNER, VOCAB, WIDTH = 768, 12, 12, 3072, 30522, 2048
MASK, FIRST_WORD = 103, 1000
SEED = 5  # its lengths hold 202 pieces, 472 adaptive regions, 56 of them in the fullest picture


# ------------------------------------------------------------------------------------------------------------ workloads


def lengths(pairs: int, adaptive: bool, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Pieces and regions of each pair."""
    rng = np.random.default_rng(seed)
    words = np.clip(np.round(8.5 + rng.gamma(4, 1.25, pairs)), 8, 36).astype(int)
    regions = np.clip(np.round(34 * np.exp(0.42 * rng.standard_normal(pairs))), 10, 100).astype(int)
    return words, regions if adaptive else np.full(pairs, 36)


def level_out(total: int, pairs: int) -> np.ndarray:
    """The same total in lengths that differ by one at most."""
    return np.array([total // pairs + (i < total % pairs) for i in range(pairs)])


def make_examples(words: np.ndarray, regions: np.ndarray, seed: int = SEED) -> list[Example]:
    """Pairs of random pieces and features, 15 % of the inner pieces hidden, at least one."""
    made = []
    for i, (n, r) in enumerate(zip(words, regions, strict=True)):
        rng = np.random.default_rng([seed, i])
        ids = rng.integers(FIRST_WORD, VOCAB, n)
        hidden = 1 + np.flatnonzero(rng.random(n - 2) < 0.15)
        hidden = hidden if len(hidden) else np.array([1])
        labels = ids[hidden].copy()
        ids[hidden] = MASK
        zeros = np.zeros(r, np.int64)
        made.append(
            Example(
                key=f"pair {i}",
                text=TextRows(ids, np.zeros(n, np.int64), np.arange(n), np.arange(n)),
                regions=RegionRows(
                    feats=np.maximum(rng.standard_normal((r, WIDTH)), 0).astype(np.float32),
                    boxes=np.zeros((r, 4), np.float32),
                    segment_ids=zeros + 1,
                    position_ids=zeros,
                    image=zeros,
                    masked=np.zeros(r, np.bool_),
                ),
                targets={"mlm": Pick("text", hidden, labels), "itm": np.array(i % 2)},
            )
        )
    return made


def padded_inputs(examples: list[Example], text_to: int, regions_to: int) -> dict[str, Tensor]:
    """The same pairs as Hugging Face takes them."""
    pairs = len(examples)
    out = {
        "input_ids": torch.zeros(pairs, text_to, dtype=torch.long),
        "attention_mask": torch.zeros(pairs, text_to, dtype=torch.long),
        "visual_embeds": torch.zeros(pairs, regions_to, WIDTH),
        "visual_attention_mask": torch.zeros(pairs, regions_to, dtype=torch.long),
        "labels": torch.full((pairs, text_to + regions_to), -100),
        "sentence_image_labels": torch.tensor([int(np.asarray(x.targets["itm"])) for x in examples]),
    }
    for i, x in enumerate(examples):
        text, regions, pick = x.text, x.regions, x.targets["mlm"]
        assert text is not None
        assert regions is not None
        assert isinstance(pick, Pick)
        out["input_ids"][i, : len(text)] = torch.from_numpy(text.ids)
        out["attention_mask"][i, : len(text)] = 1
        out["visual_embeds"][i, : len(regions)] = torch.from_numpy(regions.feats)
        out["visual_attention_mask"][i, : len(regions)] = 1
        out["labels"][i, pick.rows] = torch.from_numpy(pick.labels)
    return out


def useful_flops(examples: list[Example]) -> float:
    """FLOPs of a step that no exact method can leave out: the last layer is read at [CLS] and the hidden words only."""
    rows = np.array([x.rows for x in examples], dtype=float)
    regions = sum(len(x.regions) for x in examples if x.regions is not None)
    hidden = sum(len(x.targets["mlm"].rows) for x in examples if isinstance(x.targets["mlm"], Pick))
    read = np.array(
        [1 + len(x.targets["mlm"].rows) for x in examples if isinstance(x.targets["mlm"], Pick)], dtype=float
    )
    layer = rows.sum() * 2 * (4 * H * H + 2 * H * INNER) + 4 * H * (rows**2).sum()
    last = rows.sum() * 4 * H * H + read.sum() * 2 * (2 * H * H + 2 * H * INNER) + 4 * H * (rows * read).sum()
    heads = hidden * 2 * (H * H + H * VOCAB) + len(examples) * 2 * (H * H + 2 * H)
    return float(3 * ((LAYERS - 1) * layer + last + heads) + 2 * regions * 2 * WIDTH * H)


# --------------------------------------------------------------------------------------------------------------- models


class VisualBERT(nn.Module):
    """VisualBERT's pre-training model put together from the library's parts."""

    def __init__(self, dropout: float = 0.1, attention_dropout: float = 0.1) -> None:
        super().__init__()
        numbers = SimpleNamespace(
            hidden_size=H,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INNER,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=attention_dropout,
            layer_norm_eps=1e-12,
        )
        self.word, self.position, self.segment = Table(VOCAB, H), nn.Embedding(512, H), nn.Embedding(2, H)
        self.region_position, self.region_segment = nn.Embedding(512, H), nn.Embedding(2, H)
        self.project = nn.Linear(WIDTH, H)
        self.norm = nn.LayerNorm(H, 1e-12)
        self.encoder = Encoder(numbers)
        self.pooler = Pooler(H)
        self.head = TiedHead(H, VOCAB, 1e-12)
        self.match = nn.Linear(H, 2)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Batch) -> Tensor:
        """The sum of both losses."""
        text, regions = batch.text, batch.regions
        assert text is not None
        assert regions is not None
        words = self.word(text.ids) + self.segment(text.segment_ids) + self.position(text.position_ids)
        place = self.region_position(regions.position_ids) + self.region_segment(regions.segment_ids)
        joined = join(text.packing, regions.packing)
        x = joined_rows(joined, words, (self.project(regions.feats) + place).to(words.dtype))
        assert batch.read is not None
        read = torch.cat([joined.rows_a[batch.read["text"]], joined.rows_b[batch.read["regions"]]]).sort().values
        x = self.encoder(self.dropout(self.norm(x)), joined.packing, read)
        picks = batch.picks("mlm")
        logits = self.head(x.index_select(0, joined.rows_a.index_select(0, picks.rows)), self.word.weight)
        match = self.match(self.pooler(x, joined.packing))
        return F.cross_entropy(logits.float(), picks.labels) + F.cross_entropy(match.float(), batch.labels("itm"))


LAYER = "visual_bert.encoder.layer.{i}."
KEYS = KeyMap(
    ("visual_bert.embeddings.word_embeddings.", "word."),
    ("visual_bert.embeddings.position_embeddings.", "position."),
    ("visual_bert.embeddings.token_type_embeddings.", "segment."),
    ("visual_bert.embeddings.LayerNorm.", "norm."),
    ("visual_bert.embeddings.visual_token_type_embeddings.", "region_segment."),
    ("visual_bert.embeddings.visual_position_embeddings.", "region_position."),
    ("visual_bert.embeddings.visual_projection.", "project."),
    (LAYER + "attention.self.{query,key,value}.", "encoder.layers.{i}.attention.qkv."),
    (LAYER + "attention.output.dense.", "encoder.layers.{i}.attention.out."),
    (LAYER + "attention.output.LayerNorm.", "encoder.layers.{i}.attention_norm."),
    (LAYER + "intermediate.dense.", "encoder.layers.{i}.up."),
    (LAYER + "output.dense.", "encoder.layers.{i}.down."),
    (LAYER + "output.LayerNorm.", "encoder.layers.{i}.norm."),
    ("visual_bert.pooler.dense.", "pooler.dense."),
    ("cls.predictions.transform.dense.", "head.transform.dense."),
    ("cls.predictions.transform.LayerNorm.", "head.transform.norm."),
    ("cls.predictions.bias", "head.bias"),
    ("cls.seq_relationship.", "match."),
)


def hugging_face() -> nn.Module:
    """VisualBertForPreTraining at BERT-base size, random weights."""
    from transformers import VisualBertConfig, VisualBertForPreTraining

    torch.manual_seed(0)
    config = VisualBertConfig(vocab_size=VOCAB, visual_embedding_dim=WIDTH, layer_norm_eps=1e-12)
    model: nn.Module = VisualBertForPreTraining(config)
    with torch.no_grad():
        for name, value in model.named_parameters():  # biases and norms away from 0 and 1, so that the gate sees them
            if name.endswith("bias") or "LayerNorm" in name:
                value += 0.02 * torch.randn_like(value)
    return model


# ---------------------------------------------------------------------------------------------------------------- sides


@dataclass
class Side:
    """One competitor: a model, its optimizer, and its loss on the workload at hand."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    loss: Callable[[], Tensor]

    def backward(self, bf16: bool) -> float:
        """Loss and gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = self.loss()
        loss.backward()
        return loss.item()

    def step(self, bf16: bool) -> None:
        """One whole training step, as Hugging Face's trainer does it."""
        self.backward(bf16)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()


class OurSide(Side):
    """The library's step: clipping happens inside the fused optimizer."""

    def step(self, bf16: bool) -> None:
        """One whole training step."""
        self.backward(bf16)
        _, divide = clip(self.model.parameters(), 5.0)
        step_if(self.optimizer, torch.zeros(()), divide)


def check_equal(theirs: Side, ours: Side, kinds: tuple[str, ...], keys: KeyMap = KEYS) -> None:
    """Both sides must compute the same: loss and every gradient, dropout off. `keys` gives their names ours.

    Raises:
        SystemExit: they do not.
    """
    for side in (theirs, ours):
        side.model.eval()
    loss_a, loss_b = theirs.backward(False), ours.backward(False)
    grads_a = keys.to_ours({k: p.grad for k, p in theirs.model.named_parameters()})
    grads_b = {k: p.grad for k, p in ours.model.named_parameters()}
    assert grads_a.keys() == grads_b.keys(), sorted(grads_a.keys() ^ grads_b.keys())
    norm = sum(float(g.square().sum()) for g in grads_a.values()) ** 0.5
    worst = max(float((grads_a[k] - g).abs().max()) for k, g in grads_b.items() if g is not None)
    apart = sum(float((grads_a[k] - g).square().sum()) for k, g in grads_b.items() if g is not None) ** 0.5 / norm
    print(
        f"  gate: losses {loss_a:.6f} {loss_b:.6f}; gradients differ by {worst:.1e} at most, {apart:.1e} of their norm"
    )
    if abs(loss_a - loss_b) > 1e-6 * abs(loss_a) or worst > 1e-5 or apart > 1e-5:
        sys.exit("the two sides do not compute the same; nothing was timed")
    if "bf16" in kinds and abs((half := ours.backward(True)) - loss_b) > 1e-2 * abs(loss_b):
        sys.exit(f"bf16 loss {half:.4f} is far from {loss_b:.4f}; nothing was timed")
    for side in (theirs, ours):
        side.model.train()


def seconds(run: Callable[[], Any], threads: int) -> float:
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def peak(bf16: bool, threads: int) -> float:
    """FLOPs a second of a matrix product, the best of several shapes, repeats and two libraries: torch's choice, and oneDNN with the second matrix laid out."""
    return max(rates(bf16, threads))


def rates(bf16: bool, threads: int) -> tuple[float, float]:
    """The same by library."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    best = [0.0, 0.0]
    for m, k, n in ((2048, 2048, 2048), (3072, 768, 3072)):
        a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        laid = torch.ops.mkldnn._reorder_linear_weight(b, m)
        ways = (
            lambda a=a, b=b: F.linear(a, b),
            lambda a=a, b=laid: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "none"),
        )
        for _ in range(6):
            best = [max(x, 2 * m * k * n / seconds(way, threads)) for x, way in zip(best, ways, strict=True)]
    return best[0], best[1]


def alternate(runs: dict[str, Callable[[], None]], rounds: int, threads: int) -> dict[str, float]:
    """Median seconds of each run; one warm-up round, then all runs in turn, round after round."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, threads)
            if i:
                spent[name].append(taken)
    return {name: float(np.median(values)) for name, values in spent.items()}


# ----------------------------------------------------------------------------------------------------------------- bars

BARS = {
    "w1: ours fp32 / theirs fp32": 0.45,
    "w1: ours bf16 / theirs fp32": 0.15,
    "w1: ours bf16 / theirs bf16": 0.52,
    "w2a: ours fp32 / theirs fp32": 0.18,
    "w2b: ours bf16 / theirs bf16": 0.35,
    "t9: fp32": 1.05,
    "t9: bf16": 1.05,
}
FLOORS = {"mfu: fp32": 0.85, "mfu: bf16": 0.65}


def judge(name: str, value: float, bars: dict[str, float] = BARS) -> None:
    """Prints a figure beside its bar."""
    note = ""
    if name in bars:
        note = f"bar <= {bars[name]:.2f}  {'met' if value <= bars[name] else 'MISSED'}"
    elif name in FLOORS:
        note = f"bar >= {FLOORS[name]:.2f}  {'met' if value >= FLOORS[name] else 'MISSED'}"
    print(f"  {name:34s} {value:6.3f}  {note}")


def our_side(model: nn.Module) -> Side:
    return OurSide(model, torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True), lambda: torch.zeros(()))


def compare(name: str, theirs: Side, ours: Side, kinds: tuple[str, ...], rounds: int, threads: int) -> None:
    """One workload, both sides, alternating."""
    words, regions = lengths(16, adaptive=name != "w1")
    examples = make_examples(words, regions)
    inputs = padded_inputs(examples, 36, {"w1": 36, "w2a": 100, "w2b": int(regions.max())}[name])
    batch = pack(examples)
    rows, padded = batch.rows, inputs["labels"].numel()
    print(f"{name}: {rows} useful of {padded} positions, {useful_flops(examples) / 1e12:.3f} useful TFLOP a step")
    theirs.loss = lambda: theirs.model(**inputs).loss
    ours.loss = lambda: ours.model(batch)
    check_equal(theirs, ours, kinds)
    race(name, theirs, ours, kinds, rounds, threads)


def race(
    name: str,
    theirs: Side,
    ours: Side,
    kinds: tuple[str, ...],
    rounds: int,
    threads: int,
    bars: dict[str, float] = BARS,
) -> None:
    """Times both sides in turn and prints their ratios beside the bars."""
    runs = {
        f"{who} {kind}": (lambda side=side, bf16=kind == "bf16": side.step(bf16))
        for kind in kinds
        for who, side in (("theirs", theirs), ("ours", ours))
    }
    spent = alternate(runs, rounds, threads)
    for run, value in spent.items():
        print(f"  {run:14s} {value:7.3f} s")
    for a, b in (("ours fp32", "theirs fp32"), ("ours bf16", "theirs fp32"), ("ours bf16", "theirs bf16")):
        if a in spent and b in spent:
            judge(f"{name}: {a} / {b}", spent[a] / spent[b], bars)


def measure_mfu(ours: Side, kinds: tuple[str, ...], rounds: int, threads: int) -> None:
    """Useful FLOPs a second as a share of the product rate, at about 3,000 rows."""
    examples = make_examples(*lengths(62, adaptive=False))
    batch = pack(examples)
    ours.loss = lambda: ours.model(batch)
    flops = useful_flops(examples)
    for kind in kinds:
        found, taken = [0.0, 0.0], []
        for i in range(rounds + 1):
            found = [max(pair) for pair in zip(found, rates(kind == "bf16", threads), strict=True)]
            spent = seconds(lambda kind=kind: ours.step(kind == "bf16"), threads)
            taken += [spent] if i else []
        median = float(np.median(taken))
        print(
            f"mfu: {batch.rows} rows, {kind}: {median:.2f} s a step, {batch.rows / median:.0f} rows/s;"
            f" product of torch {found[0] / 1e9:.0f}, of oneDNN {found[1] / 1e9:.0f} GFLOP/s"
        )
        judge(f"mfu: {kind}", flops / median / max(found))
        print(f"  as a share of the rate of torch's product {flops / median / found[0]:.3f}")


def measure_raggedness(ours: Side, kinds: tuple[str, ...], rounds: int, threads: int) -> None:
    """64 pairs of random lengths against the same rows in pairs of one length."""
    words, regions = lengths(64, adaptive=True)
    ragged = pack(make_examples(words, regions))
    even = pack(make_examples(level_out(int(words.sum()), 64), level_out(int(regions.sum()), 64)))
    assert ragged.rows == even.rows

    def run(batch: Batch, bf16: bool) -> Callable[[], None]:
        def step() -> None:
            ours.loss = lambda: ours.model(batch)
            ours.step(bf16)

        return step

    runs = {f"{n} {k}": run(b, k == "bf16") for k in kinds for n, b in (("ragged", ragged), ("even", even))}
    spent = alternate(runs, rounds, threads)
    print(f"t9: {ragged.rows} rows; " + ", ".join(f"{name} {value:.2f} s" for name, value in spent.items()))
    for kind in kinds:
        judge(f"t9: {kind}", spent[f"ragged {kind}"] / spent[f"even {kind}"])


def begin(threads: int, asked: list[str] | None) -> tuple[str, ...]:
    """Sets the threads, says what machine this is, and chooses the precisions: those asked for, else those that are fast here."""
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {threads} threads, GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', 'unset')}")
    found = {kind: rates(kind == "bf16", threads) for kind in ("fp32", "bf16")}
    print(
        "matrix product, torch's and oneDNN's: "
        + ", ".join(f"{kind} {a / 1e9:.0f} and {b / 1e9:.0f} GFLOP/s" for kind, (a, b) in found.items())
    )
    if asked or max(found["bf16"]) >= 1.5 * max(found["fp32"]):
        return tuple(asked or ("fp32", "bf16"))
    print(
        "this processor has no fast bf16: its bars need one that has, and are left out here (--precisions bf16 forces them)"
    )
    return ("fp32",)


def main() -> None:
    """Parses the options and runs the workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("w1", "w2a", "w2b", "mfu", "t9")
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="both where bf16 products are faster")
    parser.add_argument("--fused", action="store_true", help="give theirs the fused AdamW too")
    options = parser.parse_args()
    kinds = begin(options.threads, options.precisions)
    model = VisualBERT()
    ours = our_side(model)
    against = [name for name in options.workloads if name in ("w1", "w2a", "w2b")]
    if against:
        their_model = hugging_face()
        model.load_state_dict(KEYS.to_ours(dict(their_model.named_parameters())))
        optimizer = torch.optim.AdamW(their_model.parameters(), lr=1e-6, fused=options.fused or None)
        theirs = Side(their_model, optimizer, ours.loss)
        weights = {k: v.clone() for k, v in their_model.state_dict().items()}
        for name in against:
            their_model.load_state_dict(weights)
            model.load_state_dict(KEYS.to_ours(dict(their_model.named_parameters())))
            compare(name, theirs, ours, kinds, options.rounds, options.threads)
        del theirs, their_model, optimizer, weights
    if "mfu" in options.workloads:
        measure_mfu(ours, kinds, options.rounds, options.threads)
    if "t9" in options.workloads:
        measure_raggedness(ours, kinds, options.rounds, options.threads)


if __name__ == "__main__":
    main()
