import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.data.subtitles import (
    Segmentation,
    Sentence,
    Word,
    find_subtitles,
    read_subtitles,
    read_words,
    sentences,
    spread,
    srt,
)
from intarsia.errors import BadInput

ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.320 --> 00:00:02.550 align:start position:0%
 
now<00:00:00.640><c> let</c><00:00:00.880><c> me</c><00:00:01.120><c> show</c>

00:00:02.550 --> 00:00:02.560 align:start position:0%
now let me show
 

00:00:02.560 --> 00:00:04.790 align:start position:0%
now let me show
you<00:00:02.800><c> how</c>

00:00:04.790 --> 00:00:04.800 align:start position:0%
you how
 

00:00:04.800 --> 00:00:06.000 align:start position:0%
you how
how

00:00:06.000 --> 00:00:06.010 align:start position:0%
how
 

00:00:08.000 --> 00:00:09.000 align:start position:0%
how
[Music]<00:00:08.500><c> stir</c>
"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False), encoding="utf-8")
    return path


def shown(said):
    return [(x.text, round(x.start, 3), round(x.end, 3)) for x in said]


def test_srt(tmp_path):
    text = "\ufeff1\r\n00:00:01,000 --> 00:00:03,500\r\n<i>Cut the onion.</i>\r\nThen fry\r\n\r\n2\r\n00:00:03,500 --> 00:01:04,5\r\n{\\an8}it &amp; stir. 42\r\n"
    said = read_subtitles(write(tmp_path, "a.srt", text), Segmentation(seconds=100))
    assert [x.text for x in said] == ["Cut the onion.", "Then fry it & stir.", "42"]
    assert said[0].start == 1 and said[-1].end == 64.5
    assert said[0].end == pytest.approx(1 + 2.5 * 12 / 19)  # of 19 characters
    assert said[1].start == said[0].end


def test_srt_with_empty_lines_inside_a_cue_and_without_numbers(tmp_path):
    text = "00:00:01,000 --> 00:00:02,000\none\n\ntwo 3\n\n00:00:02,000 --> 00:00:03,000\nfour\n"
    assert [x.text for x in read_words(write(tmp_path, "a.srt", text))] == ["one", "two", "3", "four"]


def test_vtt_with_notes_names_and_settings(tmp_path):
    text = "WEBVTT - title\n\nNOTE a\nb\n\nSTYLE\n::cue {}\n\nintro\n00:01.000 --> 00:02.000 line:0\n<v Ann>Hello there.</v>\n\n7\n01:00:02.000 --> 01:00:03.000\nBye.\n"
    said = read_subtitles(write(tmp_path, "a.vtt", text))
    assert shown(said) == [("Hello there.", 1, 2), ("Bye.", 3602, 3603)]


def test_rolling_captions_say_everything_once(tmp_path):
    words = read_words(write(tmp_path, "a.en.vtt", ROLLING))
    assert [x.text for x in words] == ["now", "let", "me", "show", "you", "how", "how", "stir"]
    np.testing.assert_allclose([x.start for x in words], [0.32, 0.64, 0.88, 1.12, 2.56, 2.8, 4.8, 8.5])
    assert [x.text for x in read_subtitles(tmp_path / "a.en.vtt")] == ["now let me show you how", "how", "stir"]


def test_rolling_captions_that_lost_their_times_say_everything_once(tmp_path):
    cues = [("a b",), ("a b", "c d"), ("c d", "e"), ("e", "f g")]
    text = "".join(
        f"{i + 1}\n00:00:0{i},000 --> 00:00:0{i + 1},000\n" + "\n".join(x) + "\n\n" for i, x in enumerate(cues)
    )
    assert "".join(x.text for x in read_words(write(tmp_path, "a.srt", text))) == "abcdefg"


def test_a_word_said_twice_in_plain_cues_stays(tmp_path):
    said = [Sentence(x, i, i + 1.0) for i, x in enumerate(["Yes.", "No.", "No.", "Go on.", "Now stop.", "Yes."])]
    assert read_subtitles(write(tmp_path, "a.srt", srt(said))) == said


WHISPER = {
    "segments": [
        {
            "start": 0.0,
            "end": 2.0,
            "text": " Hi there.",
            "words": [{"word": " Hi", "start": 0.1, "end": 0.4}, {"word": " there.", "start": 0.5, "end": 1.2}],
        },
        {"start": 3.0, "end": 4.0, "text": " Bye."},
    ]
}
JSON3 = {
    "events": [
        {"tStartMs": 0, "dDurationMs": 9000, "id": 1},
        {
            "tStartMs": 1000,
            "dDurationMs": 5000,
            "segs": [{"utf8": "now"}, {"utf8": " stir", "tOffsetMs": 300}, {"utf8": " it", "tOffsetMs": 700}],
        },
        {"tStartMs": 2000, "aAppend": 1, "segs": [{"utf8": "\n"}]},
        {"tStartMs": 3500, "dDurationMs": 1000, "segs": [{"utf8": "well", "tOffsetMs": 0}]},
    ]
}


def test_json_of_recognisers(tmp_path):
    assert shown(read_subtitles(write(tmp_path, "a.json", WHISPER))) == [("Hi there.", 0.1, 1.2), ("Bye.", 3, 4)]
    words = read_words(write(tmp_path, "b.json3", JSON3))
    assert shown(words) == [("now", 1, 1.3), ("stir", 1.3, 1.7), ("it", 1.7, 2.7), ("well", 3.5, 4.5)]
    howto = {"text": ["cut it", "then stir"], "start": [1, 4.5], "end": [3, 6]}
    expected = [("cut it", 1, 3), ("then stir", 4.5, 6)]
    assert shown(read_subtitles(write(tmp_path, "c.json", howto))) == expected
    listed = [{"text": "cut it", "start": 1, "duration": 2}, {"text": "then stir", "start": 4.5, "end": 6}]
    assert shown(read_subtitles(write(tmp_path, "d.json", listed))) == expected
    assert shown(read_subtitles(write(tmp_path, "e.csv", "start,end,text\n1,3,cut it\n4.5,6,then stir\n"))) == expected


def test_chinese_characters_are_words_and_join_without_spaces(tmp_path):
    said = [Sentence("红色的圆向左移动。", 1, 4), Sentence("用 PyTorch 训练 BERT 模型！", 5, 9)]
    path = write(tmp_path, "a.zh.srt", srt(said))
    words = read_words(path)
    assert [x.text for x in words[:9]] == ["红", "色", "的", "圆", "向", "左", "移", "动。", "用"]
    assert read_subtitles(path) == said
    wrapped = "1\n00:00:01,000 --> 00:00:03,000\n红色的圆\n向左移动。\n"
    assert read_subtitles(write(tmp_path, "b.srt", wrapped))[0].text == "红色的圆向左移动。"


def test_punctuation_ends_sentences_but_not_abbreviations():
    words = spread("Mr. Smith adds 3.5 oz. of salt. E.g. now... and then? Yes!", 0, 10)
    assert [x.text for x in sentences(words)] == ["Mr. Smith adds 3.5 oz. of salt.", "E.g. now... and then?", "Yes!"]
    small = spread("first. second.", 0, 2)
    assert [x.text for x in sentences(small)] == ["first.", "second."]


def test_silence_ends_sentences_of_unpunctuated_text():
    times = [0, 0.5, 1.0, 2.1, 2.6]
    words = [Word(x, t, t + 0.45) for x, t in zip("abcde", times, strict=True)]
    assert [x.text for x in sentences(words)] == ["a b c", "d e"]
    assert [x.text for x in sentences(words, Segmentation(pause=0.04))] == ["a", "b", "c", "d", "e"]
    assert [x.text for x in sentences(words, Segmentation(pause=1))] == ["a b c d e"]


def test_long_sentences_are_cut_at_their_longest_pause():
    words = [Word(str(i), i + 0.3 * (i == 7), i + 0.9) for i in range(12)]
    cut = sentences(words, Segmentation(words=10, pause=2))
    assert [len(x.text.split()) for x in cut] == [7, 5]  # before 7 the pause is longest
    timed = sentences(words, Segmentation(seconds=5, pause=2))
    assert all(x.end - x.start <= 5 for x in timed)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b.", "圆", "c?", "Dr."]), st.floats(0, 3), st.floats(0, 2)), max_size=60)
)
def test_every_word_is_in_one_sentence_in_order(drawn):
    words, now = [], 0.0
    for text, pause, length in drawn:
        words.append(Word(text, now + pause, now + pause + length))
        now += pause + length
    made = sentences(words, Segmentation(words=7))
    assert "".join(x.text for x in made).replace(" ", "") == "".join(x.text for x in words)
    assert all(a.end <= b.start + 1e-9 for a, b in pairwise(made))
    assert all(len(spread(x.text, 0, 1)) <= 7 for x in made)


def test_files_beside_a_video(tmp_path):
    for name in ("a.srt", "a.zh-Hans.vtt", "a.en.srt", "a.en.json3", "a.b.srt", "ab.srt", "a.en-US.vtt"):
        write(tmp_path, name, "")
    found = find_subtitles(tmp_path / "a.mp4")
    assert {k: v.name for k, v in found.items()} == {"": "a.srt", "en": "a.en.json3", "zh": "a.zh-Hans.vtt"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.srt", "1\n00:00:03,000 --> 00:00:01,000\nx\n", r"a\.srt: line 2: a cue from 3 s to 1 s"),
        ("a.srt", "1\n00:00:03 --> soon\nx\n", r"a\.srt: line 2: '00:00:03 --> soon' is no pair of times"),
        ("a.srt", "just text", r"a\.srt: no times in it"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", "{}", r"a\.json: neither events"),
        ("a.json", '[{"text": "x", "start": 2, "end": 1}]', r"a\.json: piece 0 is 'x' from 2 s to 1 s"),
        ("a.json", '{"text": ["x"], "start": [1], "end": []}', r"a\.json: not timed text"),
        ("a.csv", "a,b\n1,2\n", r"a\.csv: columns a, b, expected start, end, text"),
        ("a.txt", "", r"a\.txt: not a subtitle file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    with pytest.raises(BadInput, match=message):
        read_words(write(tmp_path, name, text))
