"""English words that rules cannot guess from their ending: small closed classes, and the adjectives and verbs that captions are made of."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those some any each every another its his her their our your my both all no what which"
)
PRONOUNS = _words(
    "i you he she it we they me him them us himself herself itself themselves there this that these those what someone something everyone "
    "everything nothing anything nobody none it's that's there's what's who's"
)
RELATIVE = _words("who which that whose where when while")
AUXILIARIES = _words(
    "is are was were be been being am do does did has have had can could will would may might must shall should"
)
HAVE = _words("has have had having")
CONJUNCTIONS = _words("and or & but nor")
ADVERBS = _words(
    "very not just also too so then now here again still yet once more most less least quite rather almost always never often ever even as "
    "together away back ahead forward backward apart only early soon traditionally probably if because how than until unless since although though whether later ago"
)
NUMBERS = _words(
    "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand million several many few "
    "dozen half zero first second third fourth fifth"
)
_SHORT = """on of in with at by near under over above below beside besides behind between inside outside into onto from for through across along
against around toward towards off up down upon beneath underneath within without among atop past during to like about as beyond after"""
PREPOSITIONS = (
    ("to", "the", "left", "of"),
    ("to", "the", "right", "of"),
    ("on", "the", "left", "of"),
    ("on", "the", "right", "of"),
    ("at", "the", "top", "of"),
    ("at", "the", "bottom", "of"),
    ("on", "the", "side", "of"),
    ("in", "the", "middle", "of"),
    ("in", "front", "of"),
    ("on", "top", "of"),
    ("left", "of"),
    ("right", "of"),
    ("next", "to"),
    ("close", "to"),
    ("out", "of"),
    *((x,) for x in _SHORT.split()),
)
"""Longest first."""
PICTURES = _words("picture photo photograph image drawing painting view shot close-up closeup illustration snapshot")
"""At the beginning, before "of", these name the picture itself and are no object."""
NOUNS_TOO = _words(
    "orange silver gold chestnut jade turquoise cobalt violet rose lime crimson ivory bronze brunette light adult female male square double"
)
"""Adjectives that are nouns where no noun follows, even without an article."""
LY_NOUNS = _words("family lily jelly belly holly assembly july italy bully dolly rally supply reply tally")
NAMED = _words("letter number note figure size route channel")
"""A letter or number after one of these describes it."""

COLOURS = _words(
    "red brown yellow green cyan blue purple pink black white gray grey orange silver gold golden scarlet chestnut jade turquoise cobalt violet "
    "rose beige tan maroon navy teal lime crimson ivory bronze blond blonde brunette dark light bright pale"
)
"""Colours; many are nouns too, and are read as such where no noun follows."""
ADJECTIVES = _words(
    "small large little big tiny huge giant tall short long wide narrow thin thick fat skinny old young new ancient modern good bad nice "
    "beautiful pretty cute ugly lovely handsome plain solid striped banded dotted spotted checked checkered chequered round square-shaped flat "
    "curved straight sharp blunt full empty open closed shut hot cold warm cool wet dry dirty clean fresh ripe raw sweet sour bitter salty spicy "
    "happy sad angry funny silly scary sleepy lazy busy quick fast slow quiet loud calm wild tame hard soft rough smooth fluffy furry fuzzy hairy "
    "floppy shiny sunny cloudy rainy snowy sandy rocky grassy muddy dusty rusty foggy windy icy leafy thorny spiny curly wavy bushy bald male "
    "female adult baby-faced common rare wooden woolen metallic golden silken high low deep shallow heavy light strong weak great grand real fake "
    "broken torn frozen fallen rotten bare naked blind deaf dead alive lit tough chief main royal local public private urban rural medieval "
    "domestic tropical traditional typical historical musical electrical mechanical electric acoustic bass-like double single twin triple various "
    "different same similar other own early late last next left-hand right-hand upper lower inner outer front-facing rear northern southern "
    "eastern western swiss french dutch greek welsh polish thai czech arctic asian african german lush steep cozy vintage antique ornate elegant "
    "greater lesser bigger smaller larger taller shorter longer older younger important easy difficult free rich poor safe friendly lively elderly lonely deadly smelly "
    "hilly woolly unusual equal"
)
NATIONS = _words(
    "swiss french dutch greek welsh thai czech german arctic spanish american european canadian australian indian japanese chinese african asian"
)
"""Adjectives that begin with a capital, beside those in -ese, -ish and -ian."""
PARTICIPLE_NOUNS = _words(
    "ring king wing string spring thing ceiling building painting evening morning wedding clothing pudding earring swing sibling duckling "
    "lightning crossing railing frosting icing stuffing dressing dumpling stocking sling fling being sting gosling starling seedling herring offspring "
    "bed sled shed seed weed reed steed breed speed hundred feed deed need sacred red shred"
)
"""Nouns that end like a participle."""
VERB_STEMS = _words(
    "ride hold wear sit stand lie lay walk run play eat drink look watch jump fly swim carry catch throw hit kick pull push drive use make take "
    "get put show see read write draw paint cut cook bake serve sell buy ask tell talk speak smile laugh sleep wait lean hang rest climb cross "
    "follow chase feed pet hug kiss touch reach point cover fill surround decorate attach tie wrap pile stack park line pose perform surf ski "
    "skate snowboard fish graze listen let help mean resemble call contain include cause give bring keep leave land move live grow bloom float "
    "sail travel pass enter open close face stare gaze turn work clean wash brush prepare perch roam wander gather lead blow hover swing stick "
    "top need want like love remember become remain belong connect support capture flush protect build stop go come wave dance sing"
)
DOUBLED = {
    "sit": "sitt",
    "run": "runn",
    "swim": "swimm",
    "hit": "hitt",
    "cut": "cutt",
    "get": "gett",
    "put": "putt",
    "hug": "hugg",
    "let": "lett",
}
IRREGULAR = _words(
    "sat stood lay lain ran ate eaten drank drunk flew swam swum caught threw thrown drove driven made took taken got gotten seen saw read wrote "
    "written drew drawn cut sold bought told spoke spoken slept hung hit fed led blew blown swung stuck gave given brought kept left landed meant "
    "grew grown went came lying tying"
)


def _inflected(stem: str) -> set[str]:
    bare = stem.removesuffix("e")
    doubled = (
        DOUBLED.get(stem, bare) if stem[-2:] not in ("am", "an", "op", "ap") or stem in DOUBLED else stem + stem[-1]
    )
    third = (
        stem[:-1] + "ies"
        if stem.endswith("y") and stem[-2] not in "aeiou"
        else stem + ("es" if stem.endswith(("s", "sh", "ch", "x", "go")) else "s")
    )
    past = stem[:-1] + "ied" if third.endswith("ies") and stem.endswith("y") else doubled + "ed"
    return {third, past, doubled + "ing", bare + "ing" if stem.endswith("e") else stem + "ing"}


VERB_FORMS = frozenset(form for stem in VERB_STEMS for form in _inflected(stem)) | IRREGULAR
