import json

import numpy as np
import pytest
from PIL import Image

from intarsia.data.decode import decode_image
from intarsia.data.fetch import NOTE, cache_root
from intarsia.data.formats.pairs import PairsFolder
from intarsia.data.stamps import OVERLAP, compose, held_out, phrase, read_stamps

FETCHED = cache_root() / "stamps"


def write_stamp(root, name, lines, colour, size=(40, 30)):
    """A solid rectangle inside a transparent margin of 6 pixels."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((size[1] + 12, size[0] + 12, 4), np.uint8)
    image[6:-6, 6:-6] = (*colour, 255)
    Image.fromarray(image).save(root / f"{name}.png")
    (root / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "stamps"
    rng = np.random.default_rng(0)
    for number in range(25):
        lines = [f"A thing{number}.", f"fr.utf8=Une chose{number}.", f"zh_CN.utf8 = 东西{number}。"]
        write_stamp(root, f"animals/birds/t{number:02d}", lines[: 2 if number == 3 else 3], rng.integers(0, 100, 3))
    write_stamp(root, "symbols/a", ["The letter a."], (1, 2, 3))
    write_stamp(root, "animals/birds/t00_mirror", ["A mirrored thing."], (9, 9, 9))
    write_stamp(
        root, "space/planets/mars", ["Mars—the red planet. It’s just beyond earth.", "zh_CN.utf8=火星。"], (7, 7, 7)
    )
    (root / "animals/drawn.txt").write_text("A drawing only.\n")
    (root / "animals/drawn.svg").write_text("<svg/>")
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(root / "animals/uncaptioned.png")
    return root


def lines_of(folder):
    return [json.loads(x) for x in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def test_only_captioned_cut_outs_of_objects_are_read(root):
    stamps = read_stamps(root, ("en", "zh", "fr"))
    assert len(stamps) == 26
    assert {x.category for x in stamps} == {"animals", "space"}
    assert stamps[0].captions == {"en": "A thing0.", "zh": "东西0。", "fr": "Une chose0."}
    assert stamps[0].phrases == {"en": "a thing0", "zh": "东西0", "fr": "une chose0"}
    assert stamps[0].kind == "birds"
    assert stamps[-1].phrases == {"zh": "火星"}
    assert "zh" not in stamps[3].captions


def test_an_unpacked_package_is_found(root, tmp_path):
    inner = tmp_path / "package/usr/share/tuxpaint"
    inner.mkdir(parents=True)
    root.rename(inner / "stamps")
    assert read_stamps(tmp_path / "package")[0].name == "animals/birds/t00"


@pytest.mark.parametrize(
    ("caption", "language", "expected"),
    [
        ("A brown hen.", "en", "a brown hen"),
        ("An Adelaide Rosella.", "en", "an Adelaide Rosella"),
        ("A happy lion!", "en", "a happy lion"),
        ("Anthurium", "en", ""),
        ("Eat your broccoli!", "en", ""),
        ("A dumper. It carries its load.", "en", ""),
        ("A hoverfly resembles a honeybee drone.", "en", ""),
        ("A “pattypan” squash.", "en", ""),
        ("A mince pie as they are eaten in the UK.", "en", ""),
        ("褐色母鸡。", "zh", "褐色母鸡"),
        ("吃椰菜！", "zh", "吃椰菜"),
        ("“十字路口”。", "zh", ""),
        ("在美国糖果手杖是圣诞的一种传统款待。", "zh", ""),
    ],
)
def test_only_short_names_of_objects_join_scenes(caption, language, expected):
    assert phrase(caption, language) == expected


def test_pictures_and_lines_agree(root, tmp_path):
    out = tmp_path / "out"
    made = compose(read_stamps(root), out, scenes=40, seed=1)
    assert (made.stamps, made.in_scenes) == (26, 25)
    assert made.held_out == 5
    assert made.lines == {"train": 21 + 32, "test": 5 + 8}
    source = PairsFolder(out)
    assert len(source) == sum(made.captions.values())
    colours = {x.name: np.asarray(Image.open(x.file).convert("RGB"))[20, 20].astype(int) for x in read_stamps(root)}
    for line in lines_of(out):
        image = decode_image(out / line["image"])
        assert image.shape[:2] == (line["height"], line["width"])
        for text, start, end, box in line["links"]:
            caption = line["captions"][text]
            words = caption["text"][start:end]
            number = int("".join(x for x in words if x.isdigit()) or -1)
            name = f"animals/birds/t{number:02d}" if number >= 0 else "space/planets/mars"
            x1, y1, x2, y2 = line["boxes"][box]
            assert np.abs(image[(y1 + y2) // 2, (x1 + x2) // 2] - colours[name]).max() < 30 or overlapped(line["boxes"])


def overlapped(boxes):
    return any(
        a is not b and min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
        for a in boxes
        for b in boxes
    )


def test_boxes_are_exact(root, tmp_path):
    compose(read_stamps(root), tmp_path / "out", scenes=30)
    checked = 0
    for line in lines_of(tmp_path / "out"):
        image = decode_image(tmp_path / "out" / line["image"]).astype(int)
        if overlapped(line["boxes"]):
            continue
        for x1, y1, x2, y2 in line["boxes"]:
            middle = image[(y1 + y2) // 2, (x1 + x2) // 2]
            inside = image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            assert np.abs(inside - middle).max() < 40
            for y, x in ((y1 - 3, x1), (y2 + 2, x1), (y1, x1 - 3), (y1, x2 + 2)):
                free = not any(
                    a - 3 <= x < c + 3 and b - 3 <= y < d + 3 for a, b, c, d in line["boxes"] if (a, b) != (x1, y1)
                )
                if free and 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                    assert np.abs(image[y, x] - middle).max() > 40
            checked += 1
    assert checked > 40


def test_scenes_hardly_overlap_and_name_what_they_show(root, tmp_path):
    compose(read_stamps(root), tmp_path / "out", scenes=60)
    scenes = [x for x in lines_of(tmp_path / "out") if x["key"].startswith("scene")]
    assert {len(x["boxes"]) for x in scenes} == {2, 3, 4}
    for line in scenes:
        english = line["captions"][0]
        assert english["language"] == "en"
        parts = english["text"].replace(" and ", ", ").split(", ")
        assert len(parts) == len(set(parts)) == len(line["boxes"])
        linked = [[link for link in line["links"] if link[0] == text] for text in range(len(line["captions"]))]
        for text, links in enumerate(linked):
            assert sorted(x[3] for x in links) == list(range(len(line["boxes"])))
            spans = [line["captions"][text]["text"][start:end] for _, start, end, _ in links]
            assert len(set(spans)) == len(spans)
        assert [english["text"][start:end] for _, start, end, _ in linked[0]] == parts
        assert (len(line["captions"]) == 1) == ("thing3" in parts or "a thing3" in parts)
        for i, a in enumerate(line["boxes"]):
            for b in line["boxes"][:i]:
                shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
                assert shared <= (OVERLAP + 0.05) * min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))


def test_no_test_stamp_is_in_a_training_picture(root, tmp_path):
    compose(read_stamps(root), tmp_path / "out", scenes=80, seed=3)
    seen = {"train": set(), "test": set()}
    for line in lines_of(tmp_path / "out"):
        for text, start, end, _ in line["links"]:
            if line["captions"][text]["language"] == "en":
                seen[line["split"]].add(line["captions"][text]["text"][start:end].lower())
    assert len(seen["test"]) >= 4
    assert not seen["train"] & seen["test"]


def test_copies_of_a_picture_stay_together(root):
    for number in (1, 2):
        data = (root / "animals/birds/t00.png").read_bytes()
        (root / f"animals/birds/copy{number}.png").write_bytes(data)
        (root / f"animals/birds/copy{number}.txt").write_text(f"A copy{number}.\n")
    stamps = read_stamps(root)
    assert len({x.digest for x in stamps}) == 26
    for seed in range(20):
        tested = held_out(stamps, seed)
        assert len({x.digest in tested for x in stamps if "copy" in x.name or x.name.endswith("t00")}) == 1


def test_the_same_seed_gives_the_same_folder(root, tmp_path):
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        compose(read_stamps(root), tmp_path / name, scenes=12, seed=seed)
    files = {
        name: {x.relative_to(tmp_path / name): x.read_bytes() for x in (tmp_path / name).rglob("*") if x.is_file()}
        for name in "abc"
    }
    assert files["a"] == files["b"]
    assert files["a"].keys() == files["c"].keys()
    assert files["a"] != files["c"]


def test_languages_are_chosen(root, tmp_path):
    made = compose(read_stamps(root, ("zh",)), tmp_path / "out", languages=("zh",), scenes=10)
    assert made.captions == {"zh": 25 + 10}
    assert "、" in "".join(x["captions"][0]["text"] for x in lines_of(tmp_path / "out"))


def test_what_cannot_be_used_is_named(root, tmp_path):
    (tmp_path / "empty").mkdir()
    for call, said in (
        (lambda: read_stamps(tmp_path / "empty"), "no captioned stamps"),
        (lambda: compose(read_stamps(root), tmp_path / "empty"), "is already there"),
        (lambda: compose(read_stamps(root, ("xx",)), tmp_path / "out", languages=("xx",)), "no captioned stamps"),
        (lambda: compose(read_stamps(root), tmp_path / "out", scenes=-1), "scenes -1"),
    ):
        with pytest.raises(Exception, match=said):
            call()
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(root / "animals/birds/t07.png")
    with pytest.raises(Exception, match=r"t07\.png: has no visible pixel"):
        compose(read_stamps(root), tmp_path / "out", scenes=4)
    (root / "animals/birds/t07.png").write_bytes(b"not a picture")
    with pytest.raises(Exception, match=r"t07\.png: cannot be decoded"):
        compose(read_stamps(root), tmp_path / "out", scenes=4)
    assert not (tmp_path / "out").exists()
    assert {x.name for x in tmp_path.iterdir()} == {"stamps", "empty"}


@pytest.mark.skipif(not (FETCHED / NOTE).is_file(), reason="needs `intarsia data fetch stamps`")
def test_the_real_stamps(tmp_path):
    stamps = read_stamps(FETCHED / "stamps")
    assert len(stamps) > 500
    assert sum("zh" in x.captions for x in stamps) > 400
    hen = next(x for x in stamps if x.name == "animals/birds/hen")
    assert hen.captions == {"en": "A brown hen.", "zh": "褐色母鸡。"}
    assert sum("en" in x.phrases for x in stamps) > 400
