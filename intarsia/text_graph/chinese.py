"""The scene graph of a Chinese caption: phrases between commas and 和, describing words before the noun, 在 .. 的 <place> for relations.

Made for captions that list things ("一个大的红色圆形在一个蓝色方形的左边"); a sentence with verbs gives a phrase too much or too little.
"""

from __future__ import annotations

import re

from intarsia.text_graph import Span, TextGraph

_PLACE = (
    "|".join(f"{side}{end}" for side in "左右上下前后里外" for end in ("边", "侧", "面", "方", "部", "头"))
    + "|旁边|中间|之间|附近|对面"
)
_COUNT = "[一两二三四五六七八九十几\\d]+"
_MEASURE = "[个只条头张朵辆块本把座棵匹艘架顶件支双对串片杯碗台副套颗位名幅根]"
_OPENING = re.compile("(?:图中|画面上|画面中|这里|照片里|图片里|我们看到)?(?:有|是|我们看到)?")
_BETWEEN = re.compile("[、，,。！!；;：:\\s]+|还有|以及|和|与")
_ARTICLE = re.compile(f"(?P<count>{_COUNT}){_MEASURE}")
_WORD = re.compile("(?:紫罗兰色|[红棕黄绿青蓝紫粉黑白灰橙褐赤金银翠碧靛桃]色)的?|(?:(?!在)[^的])+的")
"""A describing word: a colour, or anything that ends in 的."""
_RELATION = re.compile(f"的?(?P<place>{_PLACE})$")


def read(text: str) -> TextGraph:
    """The graph of a caption."""
    objects: list[Span] = []
    attributes: list[tuple[int, Span]] = []
    relations: list[tuple[int, Span, int]] = []

    def thing(start: int, end: int) -> int | None:
        """Reads one noun with what describes it; its number."""
        words: list[Span] = []
        if article := _ARTICLE.match(text, start, end):
            start = article.end()
            if article["count"] != "一":
                words.append(article.span("count"))
        while (word := _WORD.match(text, start, end)) and word.end() < end:
            words.append(word.span())
            start = word.end()
        if start >= end:
            return None
        objects.append((start, end))
        attributes.extend((len(objects) - 1, word) for word in words)
        return len(objects) - 1

    start = 0
    ends = [(x.start(), x.end()) for x in _BETWEEN.finditer(text)]
    for end, following in [*ends, (len(text), len(text))]:
        if (opening := _OPENING.match(text, start, end)) is not None:
            start = opening.end()
        place, at = _RELATION.search(text, start, end), text.find("在", start, end)
        if place is not None and at > start:
            subject, other = thing(start, at), thing(at + 1, place.start())
            if subject is not None and other is not None:
                relations.append((subject, place.span("place"), other))
        elif start < end:
            thing(start, end)
        start = following
    return TextGraph(tuple(objects), tuple(attributes), tuple(relations))
