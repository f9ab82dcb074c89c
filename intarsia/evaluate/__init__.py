"""Measurements of a trained system: functions of (system, samples) and nothing else, each with its chance level beside it."""

from intarsia.evaluate.baseline import baseline_retrieval
from intarsia.evaluate.evaluation import Evaluation, evaluate
from intarsia.evaluate.grounding import (
    Look,
    Pointing,
    WordRegionMaps,
    choose_look,
    linked_words,
    occlusion,
    pointing,
    word_region_maps,
)
from intarsia.evaluate.matching import Choice, Recall, Retrieval, choice, match, rank, retrieval
from intarsia.evaluate.running import Inference, Share
from intarsia.evaluate.words import ChosenWord, Hidden, MaskedWords, Word, every_word, guess_words, masked_words

__all__ = [
    "Choice",
    "ChosenWord",
    "Evaluation",
    "Hidden",
    "Inference",
    "Look",
    "MaskedWords",
    "Pointing",
    "Recall",
    "Retrieval",
    "Share",
    "Word",
    "WordRegionMaps",
    "baseline_retrieval",
    "choice",
    "choose_look",
    "evaluate",
    "every_word",
    "guess_words",
    "linked_words",
    "masked_words",
    "match",
    "occlusion",
    "pointing",
    "rank",
    "retrieval",
    "word_region_maps",
]
