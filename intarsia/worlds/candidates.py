"""Sets of scenes for retrieval in which only the right caption is true of a picture."""

from __future__ import annotations

from intarsia.errors import BadInput
from intarsia.worlds.captions import holds
from intarsia.worlds.source import WorldSource


def candidate_sets(source: WorldSource, size: int = 100, sets: int = 1) -> list[tuple[int, ...]]:
    """Chooses disjoint sets of scenes such that no caption is true of another picture of its set.

    Without that rule the ceiling of recall is below 1. Scenes are tried in their order; one that does not fit a set
    waits for the next. Held-out scenes allow about 20 a set: there are only 28 ways to name two of their eight pairs.

    Raises:
        BadInput: the source has too few scenes that fit.
    """
    left = list(range(len(source)))
    chosen: list[tuple[int, ...]] = []
    said = {i: (source.caption(i), source.scene(i)) for i in left}
    while len(chosen) < sets:
        now: list[int] = []
        for i in left:
            caption, scene = said[i]
            if holds(caption, scene) and not any(holds(caption, said[j][1]) or holds(said[j][0], scene) for j in now):
                now.append(i)
                if len(now) == size:
                    break
        else:
            raise BadInput(
                f"world: only {len(now)} of {len(left)} {source.split} scenes fit "
                f"set {len(chosen) + 1} of {sets}, {size} needed"
            )
        taken = set(now)
        left = [i for i in left if i not in taken]
        chosen.append(tuple(now))
    return chosen
