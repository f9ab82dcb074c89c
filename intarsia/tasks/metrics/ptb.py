"""The tokens that captions are compared by: Penn Treebank words in lower case, punctuation dropped.

Stands in for Stanford CoreNLP 3.4.1's PTBTokenizer with `-preserveLines -lowerCase` and for the list of tokens that pycocoevalcap's ptbtokenizer.py drops.
Rules are tried together and the longest match wins, the first of equals, as in the original's lexer. Written for captions in ASCII and Latin-1 letters; the
original itself is `intarsia.tasks.metrics.java.tokenise`. Dropped tokens are never told apart here (which way a quote turns, how long a dash is).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from intarsia.errors import BadInput

Key = TypeVar("Key", bound=int | str)

_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
DROPPED = frozenset(_DROPPED.split())
"""Tokens left out. The brackets among them never occur, since they are in lower case by then: brackets stay."""

_LETTER = r"[^\W\d_¼½¾⅓⅔⅛²³¹]"
_APOS = r"(?:['’\x92]|&apos;)"
_LOOSE = rf"(?:{_APOS}|[`‘\x91‛])"
_NUM = r"(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+)"
_WORD = rf"{_LETTER}(?:{_LETTER}|[0-9])*(?:[.!?]{_LETTER}(?:{_LETTER}|[0-9])*)*"
_ALNUM = r"[A-Za-z0-9À-ÖØ-öø-ÿ]"
_ACRO = r"[A-Za-z](?:\.[A-Za-z])*"
_ELIDED = rf"(?:[dDoOlL]{_LOOSE}{_ALNUM})?"
_SPACE = r"[ \t\xa0]"
_ENDING = rf"{_APOS}(?i:[msd]|re|ve|ll)"
_ABBREVIATIONS = r"""
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo
    inc co cos corp pty ptys ppty pte ltd plc rt bancorp bhd assn univ intl sys tel est ext sq jr bros ed\.d ph\.d esq etc al seq
"""
_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
"""Abbreviations that are words where they have no capital."""
_TITLES = r"""
    mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste ave pres lieut hon brig cmdr comdr
    pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr sfc sr vs alex wm jos cie a\.k\.a treas ph invt elec natl mfg mtg dept blvd rd
"""
_BEFORE_NUMBERS = "ca fig figs prop no nos art arts bldg pp op"
_STARTS = r"""
    About According Additionally After An A As At But Did During Earlier He Her Here How However If In It Last Many More Mr\. Ms\. Now Once One Other Our She
    Since So Some Such That The Their Then There These They This We When While What Who Why Yet You
"""
"""Words that begin a sentence: a single letter with a period before one ends the sentence before, and its period is dropped; the next line counts."""


def _any(words: str) -> str:
    return "|".join(words.split())


_RULES: tuple[tuple[str, str], ...] = (
    # what is matched, and what must follow (counted in the length of the match)
    (rf"(?i:cannot|gonna|gotta|lemme|gimme|wanna|{_APOS}twas|{_APOS}tis)", ""),
    (
        r"<(?:[!?][A-Za-z-][^>]*|[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"))?)* */?|/[A-Za-z][\w:.-]*) *>",
        "",
    ),
    (r"[–—―\x96\x97]|&(?:MD|mdash|ndash);|&amp;", ""),
    (_WORD, _ENDING),
    (r"[A-Za-z]*[A-MO-Za-mo-z]", rf"[nN]{_LOOSE}[tT]"),
    (_WORD, ""),
    (
        rf"{_APOS}n(?:{_APOS}|(?![A-Za-z]))|[lLdDjJ]{_APOS}|Dunkin{_APOS}|DUNKIN{_APOS}|somethin{_APOS}|(?i:ol){_APOS}|{_APOS}(?i:em)"
        rf"|[A-HJ-XZn]{_LOOSE}{_LETTER}{{2,}}|{_APOS}[2-9]0s|{_APOS}(?i:till?)|{_LETTER}+[aeiouyAEIOUY]{_LOOSE}[aeiouA-Z]{_LETTER}*"
        rf"|{_APOS}(?i:cause)|cont'd\.?|nor'easter|(?i:c'mon|e'er|s'mores|ev'ry|li'l|nat'l|cap'n|c'est)",
        "",
    ),
    (rf"[yY]{_APOS}", _LETTER),
    (r"(?i:ftp|https?)://[^ \t\"<>|(){}]+[^ \t\"'<>|.!?(){},-]", ""),
    (
        r"(?i:www\.(?:[^ \t\"<>|.!?(){},]+\.)+[a-z]{2,4}|(?:[^ \t\"`'<>|.!?(){},_$-]+\.)+(?:com|net|org|edu))"
        r"(?:/[^ \t\"<>|()]+[^ \t\"<>|.!?(){},-])?",
        "",
    ),
    (r"[a-zA-Z0-9][^ \t\"<>|(){}]*@(?:[^ \t\"<>|(){}.]+\.)*[^ \t\"<>|(){}.]+", ""),
    (rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+", ""),
    (_ENDING, r"[^A-Za-z]|$"),
    (r"’(?i:[msd]|re|ve|ll)", ""),
    (rf"[nN]{_LOOSE}[tT]", r"[^A-Za-z]|$"),
    (r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", ""),
    (rf"[-+]?{_NUM}", ""),
    (r"(?:[0-9]{1,4}[- \xa0])?[0-9]{1,4}\\?/[0-9]{1,4}", ""),
    (r"[¼½¾⅓⅔]", ""),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", ""),
    (r"[A-Z]*\$|#", ""),
    (r"[¢£¤¥€\x80]", ""),
    (rf"{_ACRO}\.", rf"{_SPACE}+(?:{_any(_STARTS)})(?:{_SPACE}|$|[?!])"),
    (rf"(?i:{_any(_BEFORE_NUMBERS)})\.", rf"{_SPACE}?[0-9]"),
    (rf"(?i:{_any(_ABBREVIATIONS)})\.|(?:{_any(_STATES)})\.", "..|.|$"),
    (rf"(?i:{_any(_TITLES)})\.", ""),
    (rf"{_ACRO}\.", ""),
    (_ACRO, rf"{_SPACE}|$"),
    (rf"{_APOS}[0-9][0-9]", rf"{_SPACE}|$"),
    (rf"(?:{_WORD}|{_ALNUM}+(?:-{_ALNUM}+)+)\.", r"[,;:]"),
    (
        r"(?:\([0-9]{2,3}\) ?|(?:\+?[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}"
        r"|(?:\+?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        "",
    ),
    (r"\"|&quot;|[`'‘’]'", ""),
    (r"<<|>>|<|&lt;|>|&gt;", ""),
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", r"[^A-Za-z0-9]|$"),
    (r"[-^x=~<>']_[-^x=~<>']", ""),
    (r"\.\.\.+|…|\.(?:[ \xa0]\.)+[ \xa0]\.", ""),
    (r"-+|@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+", ""),
    (rf"{_ELIDED}(?:{_ALNUM}+|[0-9]+(?:[.:,][0-9]+)*)(?:[-_]{_ELIDED}{_ALNUM}+)*", ""),
    (rf"{_ALNUM}[A-Za-z0-9À-ÖØ-öø-ÿ.,]*(?:-(?:{_ALNUM}+|{_ACRO}\.))+", r"[^A-Za-z0-9+]|$"),
    (
        r"[A-Za-z0-9]+(?:[-.][A-Za-z0-9]+)*\.(?i:bmp|c|doc|exe|gif|gz|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|tar|txt|wav|x|xml|zip)",
        r"[ \t.?!,]|$",
    ),
    (r"(?i:c\+\+|[cf]#)", ""),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", ""),
    (r"S&Ls|C\.D\.s|pro-|anti-|-(?:RRB|LRB|RCB|LCB|RSB|LSB)-", ""),
    (rf"{_APOS}|[`‘‛“”«»‹›]{{1,2}}", ""),
    (r"\S", ""),
)
_LEXER = tuple((re.compile(what), re.compile(then) if then else None) for what, then in _RULES)
_ENDS_SENTENCE = re.compile(rf"[A-Za-z]\.(?=[ \t\xa0\n]+(?:{_any(_STARTS)})(?:[ \t\xa0\n]|$|[?!]))")
_BEFORE_NUMBER_BELOW = re.compile(rf"(?i:{_any(_BEFORE_NUMBERS)})\.\n[0-9]")
_AUXILIARY = re.compile(rf"{_ENDING}|[nN]{_LOOSE}[tT]")
_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'twas": 2, "'tis": 2}
"""Words that are cut in two, and where."""
_WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"£": "#", "€": "$", "\x80": "$", "¢": "cents", "&amp;": "&", "&lt;": "<", "&gt;": ">"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
}
_QUOTES = re.compile(r"['’‘`\"“”«»‹›]{1,2}|&quot;|&apos;|[–—―\x96\x97]|&(?:MD|mdash|ndash);")


def words(caption: str, following: str = "") -> list[str]:
    """All tokens of a caption, punctuation included, as the lexer finds them, in lower case; a token that will be dropped may be another dropped one.

    Args:
        caption: what is cut.
        following: the line after it in the original's input, empty lines passed over.
    """
    text = _plain(caption)
    ahead = f"{text}\n{_plain(following)}"
    found: list[str] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        end = _longest(text, place)
        if end == place + 2 and _ENDS_SENTENCE.match(ahead, place):
            end -= 1
        elif _BEFORE_NUMBER_BELOW.match(ahead, place, end + 3):
            end += 1
        found.append(text[place:end])
        place = end
    return [_written(x) for x in found]


def _plain(line: str) -> str:
    """One line; what needs two units of UTF-16 is dropped, as by the original's lexer."""
    return re.sub(r"[\n\r]|&nbsp;|[^\x00-\uffff]", " ", line.replace("\xad", ""))


def _longest(text: str, start: int) -> int:
    """Where the token that starts here ends."""
    best, end = 0, start + 1
    for what, then in _LEXER:
        match = what.match(text, start)
        while match is not None and then is not None:
            after = then.match(text, match.end())
            if after is not None:
                break
            match = what.match(text, start, match.end() - 1) if match.end() - 1 > start else None
        if match is None or match.end() == start:
            continue
        reach = after.end() if then is not None and after is not None else match.end()
        if reach > best:
            best, end = reach, match.end()
    cut = _SPLIT.get(text[start:end].lower().replace("’", "'"))
    return start + cut if cut and end == best else end


def _written(token: str) -> str:
    if _QUOTES.fullmatch(token):
        return "'"
    if token == "…" or (token[0] == "." and len(token) > 2 and not token[1].isdigit()):
        return "..."
    if token in ("---", "----"):
        return "--"
    if _AUXILIARY.fullmatch(token):
        token = re.sub(r"[’\x92]|&apos;", "'", token)
    token = _WRITTEN.get(token, token).replace("(", "-lrb-").replace(")", "-rrb-")
    return token.lower().replace(" ", "\xa0")


def tokenise(caption: str, following: str = "") -> str:
    """The tokens of a caption in lower case, without punctuation, joined by single spaces; may be empty. Args: following, see `words`."""
    return " ".join(x for x in words(caption, following) if x not in DROPPED)


def tokenise_all(captions: Mapping[Key, Sequence[str]]) -> dict[Key, list[str]]:
    """Every caption as the original cuts it that is given them all, in this order, a line each.

    Raises:
        BadInput: an image has no caption.
    """
    empty = [x for x, mine in captions.items() if not mine]
    if empty:
        raise BadInput(f"image {empty[0]} has no caption")
    found = iter(of_lines([x for mine in captions.values() for x in mine]))
    return {key: [next(found) for _ in mine] for key, mine in captions.items()}


def of_lines(lines: Sequence[str]) -> list[str]:
    """`tokenise` of the lines of one input."""
    found, following = [], ""
    for line in reversed(lines):
        found.append(tokenise(line, following))
        following = line if line.strip() else following
    return found[::-1]
