"""Search among 100,000 vectors: all compared, and some cells only.

    python benchmarks/search.py                    width 2048, the published WenLan's
    python benchmarks/search.py --width 128        the tiny recipe's

Vectors are drawn around 1,000 centres, queries near stored ones. Figures are medians over queries, the file in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from intarsia.search import About, Cells, Index, Writer, recall, sort_into_cells

CENTRES, QUERIES, READ = 1000, 50, 16


def main() -> None:
    """Makes an index and times both searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, options.width)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "index"
        writer = Writer(folder, About("wenlan", "", "", "", "", options.width))
        for start in range(0, options.count, 10_000):
            many = min(10_000, options.count - start)
            near = centres[rng.integers(CENTRES, size=many)]
            near += rng.normal(size=near.shape).astype(np.float32)
            writer.add([str(start + i) for i in range(many)], near)
        writer.finish()
        index = Index(folder)
        chosen = rng.integers(options.count, size=QUERIES)
        queries = index.vectors[chosen] + 0.3 / options.width**0.5 * rng.normal(size=(QUERIES, options.width))
        exact, took = zip(*(timed(index.search, query) for query in queries), strict=True)
        print(
            f"{options.count:,} vectors of width {options.width}, all compared: {1e3 * np.median(took):.1f} ms a query"
        )
        began = time.perf_counter()
        cells = sort_into_cells(index)
        print(f"sorted into {cells} cells in {time.perf_counter() - began:.0f} s")
        sorted_index = Cells(index)
        found, took = zip(*(timed(sorted_index.search, query, 10, READ) for query in queries), strict=True)
        print(
            f"{READ} cells read: {1e3 * np.median(took):.1f} ms a query, recall of the ten {recall(exact, found):.3f}"
        )


def timed(search, *arguments):  # type: ignore[no-untyped-def]
    """What a search finds, and seconds."""
    began = time.perf_counter()
    hits = search(*arguments)
    return hits, time.perf_counter() - began


if __name__ == "__main__":
    main()
