"""Whether the files of a data set, here or remote, have the bytes that a SHA256SUMS beside them says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from intarsia.data.formats.copies import SUMS, check_sum, stated_sums
from intarsia.data.formats.files import is_file, is_remote, parent_of
from intarsia.data.formats.films import INDEX as FILMS
from intarsia.data.formats.mirror import listing
from intarsia.data.formats.shard_files import INDEX as SHARDS

MADE_HERE = (".tar.index.npz", ".lineidx")
"""Endings of indices that readers leave beside a file."""


def check_sums(spec: str, holds: Callable[[Callable[[], object]], bool]) -> tuple[int, int]:
    """Compares files with a SHA256SUMS: all it names of a folder, or one file.

    Args:
        spec: the data set, one.
        holds: runs a comparison and says whether it raised nothing.

    Returns:
        How many are right, and of how many neither it nor an index of shards says a sum.

    Raises:
        BadInput: SHA256SUMS cannot be read, or what `holds` raises.
    """
    if "*" in str(spec) or (not is_remote(spec) and not Path(spec).exists()):
        return 0, 0  # a pattern, or generated
    single = is_file(spec)
    folder = parent_of(spec) if single else spec
    stated = stated_sums(folder)
    there = [str(spec).rpartition("/")[2]] if single else listing(str(spec)) if is_remote(spec) else _below(Path(spec))
    named = {name: value for name, value in stated.items() if not single or name in there}
    right = sum(holds(partial(check_sum, folder, name, value)) for name, value in named.items())
    indexed = not single and any(name in (SHARDS, FILMS) for name in there)
    bare = [name for name in there if name not in stated and name != SUMS and not name.endswith(MADE_HERE)]
    return right, sum(not (indexed and name.startswith("shard-")) for name in bare)


def _below(folder: Path) -> list[str]:
    return [x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file()]
