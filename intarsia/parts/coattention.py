"""Two streams that meet: one of words, one of regions, each as wide as it likes, which read each other in co-attention layers.

Source: ViLBERT, sec. 3.1 and code; ERNIE-ViL has the same network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.attend import attend
from intarsia.batch import Regions
from intarsia.errors import BadInput
from intarsia.packed import Packing
from intarsia.parts.dropout import Dropout
from intarsia.parts.encoder import Layer, SelfAttention
from intarsia.parts.linear import Linear
from intarsia.parts.numbers import BertNumbers, TwoStreamNumbers

Step = tuple[Literal["words", "regions", "meet"], int]
"""A layer of the words' stream, of the regions' stream, or a meeting of both, and its number."""


class LocatedRegions(nn.Module):
    """Features and five numbers of a box, each projected, summed and normalised; no positions, no segments."""

    def __init__(self, config: TwoStreamNumbers) -> None:
        super().__init__()
        self.feature = nn.Linear(config.feature_size, config.v_hidden_size)
        self.location = nn.Linear(5, config.v_hidden_size)
        self.norm = nn.LayerNorm(config.v_hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions) -> Tensor:
        """Embeds packed regions: (R, Hv)."""
        dtype = self.feature.weight.dtype
        places = self.location(boxes.five(regions.boxes).to(dtype))
        return self.dropout(self.norm(self.feature(regions.feats.to(dtype)) + places))  # type: ignore[no-any-return]


class Projections(nn.Module):
    """Query, key and value of a stream's rows where it meets the other, in one product, and the way back to its own width."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        if inner % heads:
            raise BadInput(f"bi_hidden_size {inner} is no multiple of bi_num_attention_heads {heads}")
        self.heads = heads
        self.qkv = Linear(width, 3 * inner)
        self.out = Linear(inner, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, H) to queries, keys and values, (N, heads, D) each."""
        width = self.qkv.out_features // (3 * self.heads)
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.heads, width).unbind(1)
        return q, k, v


class Side(Layer):
    """One stream's half of a meeting: projections, and what follows attention, feed-forward and all."""

    attention: Projections

    def __init__(self, config: BertNumbers, inner: int, heads: int) -> None:
        super().__init__(config, attention=Projections(config.hidden_size, inner, heads))

    def read(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Rows (N, H) and the other stream's values that they attended to, (N, heads, D): (N, H)."""
        return self.after(x, self.attention.out(mixed.flatten(1)))


class CoAttention(nn.Module):
    """A meeting: words attend to regions while regions attend to words, both as they were before. Source: ViLBERT, fig. 2b."""

    def __init__(self, config: TwoStreamNumbers) -> None:
        super().__init__()
        inner, heads = config.bi_hidden_size, config.bi_num_attention_heads
        self.words = Side(config, inner, heads)
        self.regions = Side(config.visual, inner, heads)
        self.word_dropout = config.attention_probs_dropout_prob
        self.region_dropout = config.v_attention_probs_dropout_prob

    def forward(self, words: Tensor, regions: Tensor, text: Packing, visual: Packing) -> tuple[Tensor, Tensor]:
        """One meeting.

        Args:
            words: (T, H).
            regions: (R, Hv).
            text: where the words lie.
            visual: where the regions lie; a document without regions leaves its words with nothing to add.

        Returns:
            (T, H) and (R, Hv).
        """
        word_q, word_k, word_v = self.words.attention(words)
        region_q, region_k, region_v = self.regions.attention(regions)
        over_words, over_regions = (x if self.training else 0.0 for x in (self.word_dropout, self.region_dropout))
        seen = attend(word_q, region_k, region_v, text, visual, over_regions)
        said = attend(region_q, word_k, word_v, visual, text, over_words)
        return self.words.read(words, seen), self.regions.read(regions, said)


class GatedAttention(SelfAttention):
    """Attention of regions to each other whose queries and keys the words scale: times 1 + sigmoid of a linear map of the words' mean.

    Source: the code of ViLBERT and 12-in-1, `dynamic_attention`.
    """

    def __init__(self, config: BertNumbers, said: int) -> None:
        super().__init__(config)
        self.gates = nn.Linear(said, 2 * config.hidden_size)

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None, said: Tensor | None = None) -> Tensor:
        """As `SelfAttention`. Args: said (B, H), what is told of each document; needed."""
        assert said is not None, "the words are not told"
        q, k, v, queries = self.project(x, packing, read)
        gates = (1 + self.gates(said).sigmoid()).view(len(said), 2, *q.shape[1:])  # (B, 2, heads, D)
        return self.mix(q * gates[queries.doc, 0], k * gates[packing.doc, 1], v, queries, packing)


class TwoStreams(nn.Module):
    """Both stacks of layers and their meetings, in the order that `schedule` says.

    Raises:
        BadInput: the config's meetings do not fit its layers.
    """

    fixed = (0, 0)
    """How many layers of words and of regions do not train, the first ones."""

    def __init__(self, config: TwoStreamNumbers) -> None:
        super().__init__()
        self.steps = tuple(schedule(config))
        self.alone = self.steps[: self.apart()] if len(config.t_biattention_id) else ()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.visual_layers = nn.ModuleList(self.visual_layer(config) for _ in range(config.v_num_hidden_layers))
        self.meetings = nn.ModuleList(CoAttention(config) for _ in config.t_biattention_id)

    def visual_layer(self, config: TwoStreamNumbers) -> Layer:
        """One layer of the regions' stream."""
        return Layer(config.visual)

    def told(self, words: Tensor, text: Packing) -> tuple[Tensor, ...]:
        """What the layers of the regions' stream hear of the words (T, H): nothing."""
        return ()

    def apart(self) -> int:
        """How many of the first steps read one stream alone: those before the first meeting."""
        return [what for what, _ in self.steps].index("meet")

    def fix(self, words: nn.Module, layers: int, regions: nn.Module, visual_layers: int) -> None:
        """The first layers of a stream and its embeddings do not train, as if they ran without gradient; a word table that a head shares does.

        Args:
            words: embeds words.
            layers: of words that do not train; 0 = all train, the embeddings too.
            regions: embeds regions.
            visual_layers: of regions.

        Raises:
            BadInput: more than run before the streams meet.
        """
        order: list[str] = [what for what, _ in self.steps]
        before = order[: order.index("meet")] if "meet" in order else order
        for part, what, stack, count in (
            (words, "words", self.layers, layers),
            (regions, "regions", self.visual_layers, visual_layers),
        ):
            if not 0 <= count <= before.count(what):
                raise BadInput(
                    f"{count} layers of {what} cannot be fixed: {before.count(what)} run before the first meeting"
                )
            stack[:count].requires_grad_(False)
            for name, parameter in part.named_parameters():
                parameter.requires_grad_(not count or name == "word.weight")
        self.fixed = (layers, visual_layers)

    def forward(
        self, words: Tensor, regions: Tensor, text: Packing, visual: Packing, read: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Args and Returns as for `CoAttention`.

        read: rows of "text" and "regions" that somebody reads, as in `Batch`, beside the last region of each document, which is not among them; the
        others come back as NaN. None = all.
        """
        return self.meet(self.read_words(words, text), self.read_regions(regions, visual), text, visual, read)

    def read_words(self, words: Tensor, text: Packing) -> Tensor:
        """(T, H) words, embedded, to (T, H) before they meet a picture: the same for any."""
        words = words.detach() if self.fixed[0] else words
        for number in (n for what, n in self.alone if what == "words"):
            words = self.layers[number](words, text)
        return words

    def read_regions(self, regions: Tensor, visual: Packing) -> Tensor:
        """(R, Hv) regions, embedded, to (R, Hv) before they meet a text."""
        regions = regions.detach() if self.fixed[1] else regions
        for number in (n for what, n in self.alone if what == "regions"):
            regions = self.visual_layers[number](regions, visual)
        return regions

    def meet(
        self, words: Tensor, regions: Tensor, text: Packing, visual: Packing, read: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """All that comes after: the meetings and the layers from the first one on; args as for `forward`."""
        said = shown = None
        if read is not None:
            said, shown = read["text"], torch.cat([read["regions"], visual.last]).sort().values
        last_words, last_regions = len(self.layers) - 1, len(self.visual_layers) - 1
        for what, number in self.steps[len(self.alone) :]:
            match what:
                case "words":
                    words = self.layers[number](words, text, said if number == last_words else None)
                case "regions":
                    asked = shown if number == last_regions else None
                    regions = self.visual_layers[number](regions, visual, asked, *self.told(words, text))
                case "meet":
                    words, regions = self.meetings[number](words, regions, text, visual)
        return words, regions


class DynamicStreams(TwoStreams):
    """The same, where each layer of regions is told the mean of the words as they then are. Source: the code of 12-in-1, `dynamic_attention`."""

    def visual_layer(self, config: TwoStreamNumbers) -> Layer:
        """One whose queries and keys the words scale."""
        return Layer(config.visual, attention=GatedAttention(config.visual, config.hidden_size))

    def told(self, words: Tensor, text: Packing) -> tuple[Tensor, ...]:
        """The mean (B, H) of each document's words."""
        sums = words.new_zeros(text.documents, words.shape[1]).index_add(0, text.doc, words)
        return (sums / text.lengths[:, None],)

    def apart(self) -> int:
        """The layers of words before the first meeting; those of regions hear the words from the first one on."""
        return [what == "words" for what, _ in self.steps].index(False)


def schedule(config: TwoStreamNumbers) -> Iterator[Step]:
    """What runs after what: before meeting k the layers of both streams below its ids, after the last one all that are left, of regions first.

    A meeting thus comes before the layers with its ids, and the last to run are plain layers. Source: the code of ViLBERT.

    Raises:
        BadInput: the ids of the two streams differ in number, do not ascend, or lie above the last layer.
    """
    text, visual = config.t_biattention_id, config.v_biattention_id
    if len(text) != len(visual):
        raise BadInput(f"t_biattention_id names {len(text)} meetings, v_biattention_id {len(visual)}")
    for name, ids, layers in (("t", text, config.num_hidden_layers), ("v", visual, config.v_num_hidden_layers)):
        if list(ids) != sorted(set(ids)) or any(not 0 <= i < layers for i in ids):
            raise BadInput(f"{name}_biattention_id {ids}: must ascend within the stream's {layers} layers")
    word = region = 0
    for k, (t, v) in enumerate(zip(text, visual, strict=True)):
        yield from (("words", i) for i in range(word, t))
        yield from (("regions", i) for i in range(region, v))
        yield "meet", k
        word, region = t, v
    yield from (("regions", i) for i in range(region, config.v_num_hidden_layers))
    yield from (("words", i) for i in range(word, config.num_hidden_layers))


def layer_decay(config: TwoStreamNumbers, rate: float) -> dict[str, float]:
    """Factors on the learning rate, by the start of a name in `FineTuned`: `rate` for every layer between it and the last one, counted as they run.

    Meeting k is two layers deeper than the one before, what comes between them one. None where the rate is 1. Source: ERNIE-ViL's code, finetune.py.
    """
    if rate == 1:
        return {}
    first, last = config.t_biattention_id[0], config.num_hidden_layers + config.v_num_hidden_layers
    depth = {f"encoder.layers.{i}.": i if i < first else 2 * i - first + 1 for i in range(config.num_hidden_layers)}
    depth |= {f"encoder.meetings.{k}.": first + 2 * k for k in range(len(config.t_biattention_id))}
    depth |= {f"encoder.visual_layers.{k}.": first + 2 * k + 1 for k in range(config.v_num_hidden_layers)}
    depth |= dict.fromkeys(("words.word.", "words.position.", "words.segment."), -1)
    depth |= dict.fromkeys(("regions.feature.", "regions.location."), first - 1)
    return {f"system.{name}": rate ** (last - at) for name, at in depth.items()}


class ReLUPooler(nn.Module):
    """ReLU of a linear map of one row a document, to a width that both streams share."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, pooled)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, H) to (B, P)."""
        return F.relu(self.dense(rows))
