"""The READMEs' Python runs, their commands parse, and both say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from intarsia.cli import COMMANDS, main
from intarsia.worlds import WorldSource

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README.zh.md")


def blocks(page: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    return [text for kind, text in fenced if kind == language]


def commands() -> list[list[str]]:
    lines = [x.split("#")[0].strip() for block in blocks("README.md", "") for x in block.splitlines()]
    found = [
        x.removeprefix(".venv/bin/").removeprefix("intarsia ") for x in lines if re.match(r"(\S*/)?intarsia \w", x)
    ]
    return [shlex.split(x) for x in found]


@pytest.mark.parametrize("page", PAGES)
def test_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    main(["pretrain", "uniter", "--data", "worlds:80", "--out", "runs/demo", "--schedule.steps", "2", "--workers", "0"])
    Image.fromarray(WorldSource(count=1).image(0)).resize((300, 300)).save("photo.jpg")
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(block, {})
    assert "looks at region" in capsys.readouterr().out


def test_commands_exist_with_their_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(commands()) >= 8
    for words in commands():
        assert words[0] in COMMANDS, words
        if words[0] == "list":
            continue
        head = words[:2] if words[0] in ("pretrain", "data") else words[:1]
        with pytest.raises(SystemExit) as stopped:
            main([*head, "--help"])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        own = {"--size", "--config"}
        assert all(x in said or x in own for x in words if x.startswith("--")), words


def test_both_languages_show_the_same_code() -> None:
    def plain(block: str) -> list[str]:
        return [x.split("#")[0].strip() for x in block.splitlines()]

    for language in ("", "python", "json"):
        one, other = ([plain(x) for x in blocks(page, language)] for page in PAGES)
        if language == "":
            one, other = (
                [x for x in side if any(y.startswith(("intarsia ", ".venv", "make")) for y in x)]
                for side in (one, other)
            )
        if language != "json":
            assert one == other, language
