"""The contracts: what a system must say, what a task must say, and how the two are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Images, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.features.kmeans import Codebook
from intarsia.objectives import itm
from intarsia.objectives.contrast import alone
from intarsia.packed import Packing
from intarsia.recipe import SGD, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.text import Vocab
from intarsia.weights.bert import FromBert
from intarsia.weights.files import fill
from intarsia.weights.keymap import KeyMap


@dataclass(frozen=True)
class Tuning:
    """One published fine-tuning run of one size."""

    optim: Optim
    schedule: Schedule
    batching: Batching
    head_lr: float = 1.0
    """Factor on the learning rate of the head."""
    sgd: SGD | None = None
    """A second optimizer, where the paper has one."""
    samples: int = 0
    """Samples of a micro-batch where the authors count samples; 0 = they count rows, see `batching`."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """Weights of losses beside the task's own, see `System.beside`; 1 where none is named."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Config fields that differ in this run, beside those of `Finetune.config`."""
    note: str = ""


@dataclass(frozen=True)
class Captioning:
    """How a paper writes captions: an objective of the system's own goes on, without a head."""

    recipes: Mapping[str, str]
    """By size, the name of the recipe in `System.recipes`."""
    search: Literal["frames", "hypotheses"]
    """The beam search of the authors, in `decode`."""
    length: int
    """Most pieces of a caption, the closing one among them."""
    critical: Mapping[str, Tuning] = field(default_factory=dict)
    """Self-critical training by size, from a captioner; none where the paper has none."""
    times: int = 1
    """Captions drawn of a picture, see `decode.self_critical`."""
    over: Literal["captions", "pieces"] = "captions"
    """What the self-critical loss is the mean over."""
    paired: bool = False
    """A drawn caption is judged against the one it was drawn for, piece by piece, instead of all of its picture, in words."""
    beams: int = 5
    fresh: tuple[str, ...] = ()
    """Parts of the system that pre-training has not: they begin as they are drawn."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> the pre-trained one that it starts from where the weights have none."""
    published: str = ""
    """Scores, for the table; R, T or M says how well they are known."""


class System(nn.Module, ABC):
    """One published system: its inputs, streams, objectives, recipes, downstream heads and checkpoint layout.

    A system whose parameters live on the meta device can still `lay_out` and `hide`: that is what the loader's workers hold.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[Any]]
    recipes: ClassVar[Mapping[str, Recipe[Any]]]
    finetune: ClassVar[Mapping[str, Finetune]]
    captioning: ClassVar[Captioning | None] = None
    """How captions are tuned, scored and sent in, where the paper writes any."""
    keys: ClassVar[KeyMap]
    """The authors' layout."""
    layouts: ClassVar[Mapping[str, KeyMap]] = {}
    """Other published layouts by name, such as "hf"."""
    sizes: ClassVar[Mapping[str, tuple[str, int]]]
    """Config fields that the shapes of weights tell: field -> (key, axis)."""
    depths: ClassVar[Mapping[str, str]] = {"num_hidden_layers": "encoder.layers."}
    """Config fields that count the layers of a stack: field -> how keys of ours begin, up to the number."""
    flags: ClassVar[Mapping[str, str | Callable[[Mapping[str, Tensor]], bool]]] = {}
    """Config fields that are True exactly if the weights hold a key of ours, or look so: field -> key, or a test."""
    from_bert: ClassVar[FromBert | None] = None
    """How pre-training starts from BERT, where the paper's does."""
    needs: ClassVar[tuple[str, ...]]
    """Streams of a Batch that must be there."""
    specials: ClassVar[tuple[str, ...]] = ()
    """Special tokens beside BERT's; a vocabulary must have them, or unused rows to give them."""
    remembers: ClassVar[bool] = True
    """Captions may go on from remembered keys and values, see `decode.cached_next_piece`."""
    reads_text_alone: ClassVar[bool] = False
    """Samples without pictures take part in pre-training."""
    picked_goals: ClassVar[tuple[str, ...]] = ()
    """Objectives whose losses read only picked rows and what is pooled from the first row."""
    chosen: ClassVar[tuple[str, ...]] = ()
    """Config fields that pre-training takes from the recipe where it goes on from weights."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Parameters that no gradient reaches in pre-training; weight decay alone changes them."""
    towers: ClassVar[bool] = False
    """Text and picture are encoded apart: `encode` takes either alone, and `match_scores` is a product of `pooled_text` and `pooled_visual`."""
    word_table: ClassVar[str] = "words.word.weight"
    """The parameter whose rows are the words, in and out."""
    memory: ClassVar[tuple[str, ...]] = ()
    """Buffers that only pre-training needs and published weights lack (queues); fresh where a file has none."""
    heads: ClassVar[tuple[str, ...]]
    """Modules that only pre-training needs; fine-tuned weights come without them."""

    config: Any
    vocab: Vocab
    gather: Callable[[Tensor], Tensor]
    """Rows (N, ..) of this process to those of all, in order of rank, without gradient; `train.parallel` sets it where there are several."""

    @abstractmethod
    def __init__(self, config: Any, vocab: Vocab) -> None:
        super().__init__()
        self.gather = alone

    @abstractmethod
    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Rows, segments and positions of one sample, nothing hidden. No randomness.

        Args:
            sample: the sample.
            task: a downstream task of `finetune` that the paper lays out in its own way; None = as in pre-training.
            form: which of the task's documents of the sample (the second picture of NLVR2, the third choice of VCR).

        Raises:
            TooLong: the text does not fit.
        """

    @abstractmethod
    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Lays a sample out for one objective: what it hides or swaps, and the targets.

        Args:
            sample: the sample.
            goal: the objective, one of the recipe's mix.
            rng: the only source of randomness.
            draw: gives another sample of the data set, with another picture.
        """

    def forms(self, sample: Sample) -> list[Example]:
        """All documents of a sample, nothing hidden; one in pre-training."""
        return [self.lay_out(sample)]

    def documents(
        self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """All documents of a sample with the targets of a goal, as `hide` gives one of them; they stay in one batch, in their order."""
        return [self.hide(sample, goal, rng, draw)]

    def vary(self, sample: Sample, task: str | None, rng: np.random.Generator) -> Sample:
        """A sample as training sees it, where the authors change pictures at random; for a downstream task the loop asks, `hide` for itself."""
        return sample

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """The streams."""

    @abstractmethod
    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalar losses of every goal in batch.targets."""

    def beside(self) -> dict[str, Tensor]:
        """Scalars of the last pass that no target asks for; a recipe weighs with 0 those that are only told."""
        return {}

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Encoded]:
        """The one entry that DDP, FSDP and compile wrap."""
        encoded = self.encode(batch)
        return self.losses(encoded, batch), encoded

    passes = 0
    """Forward passes of this process in training before the present one, since the run began, not since it was resumed; the loop counts them."""

    pooled_only = False
    """Whether in evaluation nothing is read but the first word's row of each document, of batches without targets."""

    def read(self, batch: Batch) -> dict[str, Tensor] | None:
        """The rows that the last layer must give: in training on `picked_goals` those that are read, while pairs are scored what is pooled, else all (None)."""
        if self.pooled_only and not self.training:
            return batch.read
        picked = bool(batch.targets) and set(batch.targets) <= set(self.picked_goals)
        return batch.read if self.training and picked else None

    def weigh(self, losses: dict[str, Tensor], mix: Mix) -> Tensor:
        """The scalar that a step trains: the sum of its losses, weighed as the recipe's mix says, unless the paper weighs them by what they are."""
        total: Tensor = mix.weigh(losses)
        return total

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) float: how well each document's text fits its picture, higher is better; what retrieval ranks by.

        Here the log odds of `match_head`, of two outputs, 1 = matched.
        """
        if not self.matches:
            raise TypeError(f"{self.card.name} was not trained to match texts and pictures")
        return itm.log_odds(self.get_submodule("match_head")(encoded.pooled))

    @property
    def matches(self) -> bool:
        """Whether `match_scores` says anything."""
        return hasattr(self, "match_head") or type(self).match_scores is not System.match_scores

    @property
    def reads_features(self) -> bool:
        """Whether its regions must come with features; not where a trunk of its own reads them off pixels."""
        return "regions" in self.needs and getattr(self.config, "trunk", None) is None

    @property
    def predicts_words(self) -> bool:
        """Whether `word_logits` says anything."""
        return hasattr(self, "word_head")

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary) logits of the words at the given text rows, by the module `word_head`, which shares the `word_table`."""
        if not self.predicts_words:
            raise TypeError(f"{self.card.name} does not predict words")
        assert encoded.text is not None
        head, table = self.get_submodule("word_head"), self.get_parameter(self.word_table)
        return head(encoded.text.index_select(0, rows), table)  # type: ignore[no-any-return]

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """The document in which the system names the next piece of a caption.

        Args:
            sample: its picture counts, its texts do not.
            said: the pieces so far.

        Returns:
            The document, and the text row of the [MASK] that stands for the next piece.
        """
        raise TypeError(f"{self.card.name} does not generate texts")

    def fitted(self, state: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
        """Weights with tensors of another shape turned into this system's, where the authors' code does so. Args: where, the file, for warnings."""
        return state

    def fill_trunk(self, path: Path) -> None:
        """Starts the image trunk from published weights of its own, such as timm's.

        Raises:
            BadInput: the system has no trunk, or the file is of another.
        """
        raise BadInput(f"{path}: {self.card.name} has no image trunk to start from it")

    def fill_words(self, book: Codebook) -> None:
        """Starts the table of visual words from the centroids of a codebook.

        Raises:
            BadInput: the system reads no visual words, or the codebook has other sizes than the config.
        """
        raise BadInput(f"{self.card.name} reads no visual words: a codebook is of no use to it")

    def alignments(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Named word-region maps of the system's own, each (B, Lt, Lr), beside its attention; none by default."""
        return {}


@runtime_checkable
class Crossing(Protocol):
    """A system whose texts and pictures are first read apart, so that what is computed of one serves every pair it is in.

    `encode` is `cross` of what the other two return.
    """

    def encode_text(self, text: Text) -> Tensor:
        """(T, H) the words of each document, before they meet a picture."""

    def encode_visual(self, regions: Regions, images: Images | None = None) -> Tensor:
        """(R, H') the regions of each document, before they meet a text; `images` are the pixels that they are read off, where they have no features."""

    def cross(
        self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: dict[str, Tensor] | None = None
    ) -> Encoded:
        """Lets them meet.

        Args:
            words: (T, H) as `encode_text` returns them.
            text: where they lie.
            seen: (R, H') as `encode_visual` returns them.
            visual: where they lie.
            read: rows that somebody reads beside what is pooled, as in `Batch.read`; the others may come back as NaN. None = all.
        """


def fit_config(config: Any, pieces: int, width: int, classes: int, attributes: int = 0) -> Any:
    """A system's config with the numbers that the data give, as far as it has such fields.

    Args:
        config: any system's.
        pieces: of the vocabulary.
        width: numbers of a region feature.
        classes: of the soft labels, background among them.
        attributes: of regions, "none" among them; 0 = unknown, the config's number stays.
    """
    found: dict[str, Any] = {"vocab_size": pieces, "feature_size": width, "classes": classes}
    found["num_object_labels"] = max(classes - 1, 1)
    found |= {"num_attr_labels": attributes - 1} if attributes > 1 else {}
    return replace(config, **{name: value for name, value in found.items() if name in config.__dataclass_fields__})


class Lay(Protocol):
    """Lays a sample out as one document of the task at hand."""

    @property
    def vocab(self) -> Vocab:
        """The system's."""

    def __call__(self, sample: Sample, form: int = 0, name: str = "") -> Example:
        """Args: sample; form, which of its documents; name, of the layout, where it is not the task's own."""


class Task(Protocol):
    """A benchmark's documents, head, scores and loss; it meets a system only through Lay, Encoded and Batch."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The documents of a sample, without targets."""

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """The documents of a sample to train on, with targets; `draw` gives samples with another picture."""

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """For each sample of the batch, in order, what its choices score: (C); of each phrase, (M, C)."""

    def head(self, config: Any) -> nn.Module:
        """The module put on the system, freshly drawn from torch's default generator."""

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """Logits."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """A scalar."""


@runtime_checkable
class Regularised(Protocol):
    """A task with a second loss, on other outputs than its scores read."""

    def beside(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """A scalar, added to the task's loss in training."""


@dataclass(frozen=True)
class Given:
    """How a paper puts the regions of annotated boxes behind the detected ones of a picture."""

    tested: bool = True
    """False = in training only."""
    in_whole: bool = True
    """The whole picture is weighed from both, each counted with one more; False = it stays that of the detected ones."""


@dataclass(frozen=True)
class Finetune:
    """A task as a paper fine-tuned it."""

    task: Task
    tunings: Mapping[str, Tuning]
    """By size, as in `System.recipes`."""
    keys: KeyMap
    """From the authors' names of the head to ours, which begin with "head."."""
    keeps: tuple[str, ...] = ()
    """Pre-training heads that the authors' fine-tuned weights still hold."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Start of a key in the authors' fine-tuned weights -> what it is in `keys` and in `System.keys`, where it differs."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Config fields that differ from pre-training."""
    frozen: tuple[str, ...] = ()
    """Parameters of the system whose names begin so do not train."""
    fresh: tuple[str, ...] = ()
    """Parts of the system that pre-training has not: they begin as they are drawn."""
    grows: Mapping[str, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)
    """Config field -> the table whose rows it counts, and the rows added: copies of the rows named, or fresh ones (None)."""
    grown: tuple[str, int] | None = None
    """Config field and its number in weights whose tables are grown already, by a second pre-training: then none grows."""
    copies: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Table -> a row, and the row that it starts as a copy of."""
    head_from: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    """Tensor of the head -> pre-trained tensor and the row of it that it starts from; None = all rows."""
    given: Given | None = None
    """None = the paper has no annotated boxes beside detected ones."""
    with_trunk: Mapping[str, Any] = field(default_factory=dict)
    """Config fields with which a system pre-trained on features made beforehand reads pixels by a trunk of its own; none where the paper does not."""
    extra: tuple[str, int] | None = None
    """A benchmark whose training items come beside the task's own, and in how many of the first epochs; 0 = in all."""


class FineTuned(nn.Module):
    """A system with the head of a task, as fine-tuned weights hold them.

    Args:
        system: its config is the task's (see `begin` for one that is not yet). It keeps its pre-training heads; this module shares all else.
        finetune: the task.
    """

    def __init__(self, system: System, finetune: Finetune) -> None:
        super().__init__()
        self.finetune = finetune
        self.system = copy(system)
        left_out = set(system.heads) - set(finetune.keeps)
        self.system._modules = {name: part for name, part in system._modules.items() if name not in left_out}
        self.head = finetune.task.head(system.config)

    @property
    def keys(self) -> KeyMap:
        """The authors' layout of these fine-tuned weights."""
        return self.system.keys.under("system.") + self.finetune.keys

    def scores(self, batch: Batch) -> Tensor:
        """The task's logits; needs no targets."""
        return self.finetune.task.score(self.head, self.system.encode(batch), batch)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The task's loss, a scalar, and its logits."""
        task, encoded = self.finetune.task, self.system.encode(batch)
        scores = task.score(self.head, encoded, batch)
        loss = task.loss(scores, batch)
        return loss + task.beside(self.head, encoded, batch) if isinstance(task, Regularised) else loss, scores


def grow(
    state: dict[str, Tensor], config: Any, finetune: Finetune, only: tuple[str, ...] | None = None
) -> dict[str, int]:
    """Grows tables of a state dict, in place, as a task needs, unless they are grown. Args: only, the config fields to grow by; None = all.

    Returns:
        The config fields that changed.
    """
    changes: dict[str, int] = {}
    if finetune.grown and getattr(config, finetune.grown[0]) == finetune.grown[1]:
        return changes
    for name, (table, rows) in finetune.grows.items():
        if only is not None and name not in only:
            continue
        old = state[table]
        new = old.new_empty(len(rows), *old.shape[1:]).normal_(0.0, config.initializer_range)
        for i, row in enumerate(rows):
            if row is not None:
                new[i] = old[row]
        state[table] = torch.cat([old, new])
        changes[name] = getattr(config, name) + len(rows)
    return changes


def begin(system: System, finetune: Finetune) -> FineTuned:
    """What fine-tuning starts from: a copy of a pre-trained system, its tables grown as the task needs, with a fresh head."""
    config, state = system.config, system.state_dict()
    changes = dict(finetune.config) | grow(state, config, finetune)
    tuned = FineTuned(type(system)(replace(config, **changes), system.vocab), finetune)
    kept = tuned.system.state_dict()
    known = {key: value for key, value in state.items() if key in kept}
    fill(tuned.system, known, system.card.name, finetune.fresh)
    for name, parameter in tuned.system.named_parameters():
        if name.startswith(finetune.frozen):
            parameter.requires_grad_(False)
    with torch.no_grad():
        for name, (to, like) in finetune.copies.items():
            rows_of = tuned.system.get_parameter(name)
            rows_of[to] = rows_of[like]
        for name, (source, row) in finetune.head_from.items():
            if source not in state:
                continue  # as configured, the system has no such part (B2T2's dual encoder)
            tuned.head.get_parameter(name).copy_(state[source] if row is None else state[source][row : row + 1])
    return tuned
