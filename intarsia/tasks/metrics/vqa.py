"""VQA v2: how answers are normalised and scored, what models are trained towards, and the list of answers. Data: Goyal et al. 2017.

Equal to GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, slips included: the look-behind that never looks (`_PERIOD`), the flag that
bounds the periods removed, the rule that ten equal answers are compared as they stand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import complete, mean

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
"""Marks that are taken out, in this order. Others stay: ' : . $ % & # * | ~ ^ and curly quotes."""
ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = "none=0 zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10"
NUMBERS = dict(pair.split("=") for pair in _NUMBERS.split())
_CONTRACTIONS = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've didnt=didn't
    doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've
    he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've
    it'dve=it'd've itll=it'll let's=let's maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've
    mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
    shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've
    shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll
    somebodys=somebody's someoned=someone'd someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's
    somethingd=something'd somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
    thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've they'dve=they'd've theyll=they'll
    theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're
    whats=what's whatve=what've whens=when's whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've
    wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
    wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've
    y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
    """
CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTIONS.split())
"""120 words without their apostrophe and how they are written; four have capitals and are never met."""
_COMMA_BETWEEN_DIGITS = re.compile(r"[0-9],[0-9]")
_PERIOD = re.compile(r"(?!<=[0-9])\.(?![0-9])")
_PERIODS_REMOVED = 32
"""Periods taken out at most: the official code passes the flag re.UNICODE where the count belongs, and the flag is 32."""

Convention = Literal["official", "2015"]
"""Both normalise the prediction. "official": and the human answers, unless all ten are the same string: then nothing is normalised. "2015" (LAVIS, BLIP
and others): the prediction always, the human answers by their punctuation alone, and only if they differ."""


def clean(text: str) -> str:
    """What is always done first: newlines and tabs are spaces, both ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Takes out marks and periods.

    A mark that stands beside a space anywhere in the text is deleted, another becomes a space; if a comma stands between two digits anywhere, all are
    deleted. A period goes unless a digit follows. Spaces are not squeezed.
    """
    found = text
    joined = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        found = found.replace(mark, "" if joined or beside_space else " ")
    return _PERIOD.sub("", found, count=_PERIODS_REMOVED)


def settle_words(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes where they belong, single spaces."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise(answer: str) -> str:
    """An answer as it is compared; may be empty."""
    return settle_words(strip_punctuation(clean(answer)))


def score(prediction: str, answers: Sequence[str], convention: Convention = "official") -> float:
    """Accuracy of one answer, in [0, 1]: min(1, how many others say so / 3), averaged over the people left out in turn.

    Args:
        prediction: the answer given.
        answers: (10 as a rule) what people answered; equal strings are answers of different people.
        convention: see `Convention`.

    Raises:
        BadInput: nobody answered.
    """
    if not answers:
        raise BadInput("VQA accuracy: a question without human answers")
    said, people = clean(prediction), [clean(x) for x in answers]
    if convention == "2015":
        said, people = settle_words(strip_punctuation(said)), list(answers)
        if len(set(people)) > 1:
            people = [strip_punctuation(x) for x in people]
    elif len(set(people)) > 1:
        said, people = settle_words(strip_punctuation(said)), [settle_words(strip_punctuation(x)) for x in people]
    agree = [person == said for person in people]
    return mean(min(1.0, (sum(agree) - own) / 3) for own in agree)


@dataclass(frozen=True, slots=True)
class Question:
    """One annotated question."""

    id: int
    answers: tuple[str, ...]
    answer_type: str
    """yes/no, number or other."""
    question_type: str
    """The first words of the question."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """VQA accuracy, fractions."""

    overall: float
    by_answer_type: dict[str, float]
    by_question_type: dict[str, float]
    each: dict[int, float]
    """By question id."""
    convention: Convention


def questions(annotations: Mapping[str, object], where: str = "annotations") -> list[Question]:
    """The questions of an official annotation file (`{"annotations": [...]}`), read as JSON.

    Raises:
        BadInput: an entry lacks a field, or two answers of one question share their answer_id: the official code would take them for one.
    """
    entries = annotations.get("annotations") if isinstance(annotations, Mapping) else None
    if not isinstance(entries, list):
        raise BadInput(f"{where}: has no list 'annotations'")
    found = []
    for entry in entries:
        try:
            number, people = int(entry["question_id"]), entry["answers"]
            ids = [x["answer_id"] for x in people]
            answers = tuple(str(x["answer"]) for x in people)
            found.append(Question(number, answers, entry["answer_type"], entry["question_type"]))
        except (KeyError, TypeError, ValueError) as error:
            name = entry.get("question_id", entry) if isinstance(entry, Mapping) else entry
            what = f"no field {error}" if isinstance(error, KeyError) else f"not as published: {error}"
            raise BadInput(f"{where}: question {str(name)[:60]}: {what}") from None
        if len(set(map(str, ids))) != len(ids):
            raise BadInput(f"{where}: question {number}: answer_ids {ids} are not distinct")
    return found


def accuracy(
    predictions: Mapping[int, str], annotated: Sequence[Question], convention: Convention = "official"
) -> Accuracy:
    """VQA accuracy over all and only the annotated questions.

    Raises:
        BadInput: a question lacks its prediction, or a prediction its question.
    """
    complete([x.id for x in annotated], predictions, "question")
    each = {x.id: score(predictions[x.id], x.answers, convention) for x in annotated}

    def by(kind: Mapping[int, str]) -> dict[str, float]:
        return {name: mean(each[x] for x in each if kind[x] == name) for name in dict.fromkeys(kind.values())}

    return Accuracy(
        mean(each.values()),
        by({x.id: x.answer_type for x in annotated}),
        by({x.id: x.question_type for x in annotated}),
        each,
        convention,
    )


Softness = Literal["bucketed", "leave_one_out"]
"""How the soft target of an answer comes from how many people gave it. "bucketed": 0, .3, .6, .9, 1 (LXMERT, ViLBERT, UNITER, Oscar, ERNIE-ViL, VisualBERT);
"leave_one_out": the same up to rounding, as a mean over people (VLP, VL-BERT)."""


def soft_targets(
    answers: Sequence[str], vocabulary: Collection[str] | None = None, convention: Softness = "bucketed"
) -> dict[str, float]:
    """What a model is trained towards: each answer of the vocabulary that was given, with its soft score; empty where none is in it.

    Args:
        answers: what people answered, as it stands: the training code of most systems does not normalise here, and loses what is written otherwise.
        vocabulary: answers the model knows; None = all.
        convention: see `Softness`.
    """
    counts = Counter(answers)
    known = {x: n for x, n in counts.items() if vocabulary is None or x in vocabulary}
    if convention == "bucketed":
        return {x: (0.0, 0.3, 0.6, 0.9, 1.0)[min(n, 4)] for x, n in known.items()}
    size = len(answers)
    return {x: (n * min(1.0, (n - 1) / 3) + (size - n) * min(1.0, n / 3)) / size for x, n in known.items()}


def vocabulary_form(answer: str) -> str:
    """An answer as it stands in the list of answers: normalised, remaining commas deleted. Source: BUTD's compute_softscore.py."""
    return settle_words(strip_punctuation(answer)).replace(",", "")


def vocabulary(multiple_choice_answers: Iterable[str], at_least: int = 9) -> dict[str, int]:
    """Answers that are the commonest one of at least so many questions, with their counts; one string a question comes in.

    The order of the authors' table was that of a run of theirs: with published weights load their table, never this one.
    """
    counts = Counter(map(vocabulary_form, multiple_choice_answers))
    return {answer: count for answer, count in counts.items() if count >= at_least}
