"""Speed of the training loader beside plain webdataset, in one run: python tests/benchmarks/loader.py [--tiles N] [--workers W]

Both read the same tars and decode each tile by the same function, shuffled: webdataset through torch's DataLoader with W processes,
ours with W threads (one order for any number of workers, exact position, eight symmetries on or off). Printed: tiles/s of each, the
ratio (goal at least 1), peak memory of this process. Nothing is asserted: figures depend on the machine. Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from torch.utils.data import DataLoader

from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.shards.record import RealRecord
from synthfactory.shards.tarfmt import decode_image, encode_image, write_shard
from train.config import Data
from train.loader import Loader
from train.sampler import Order
from train.shardset import open_index

GOAL = 1.0
BATCH = 16
PER_TAR = 250
SIDE = 224


def make_tars(folder: Path, tiles: int) -> list[str]:
    """Tars of invented tissue: a few drawn tiles, turned and tinted, so that every file has a picture of its own."""
    drawn = [ref.render()[0] for ref in cohort_tiles("train", dict.fromkeys(CLASSES, 2))]
    random = np.random.default_rng(0)
    paths = []
    for first in range(0, tiles, PER_TAR):

        def items(first: int = first) -> Iterator[tuple[RealRecord, bytes]]:
            for number in range(first, min(first + PER_TAR, tiles)):
                image = np.rot90(drawn[number % len(drawn)], int(random.integers(0, 4)))
                image = np.clip(image.astype(int) + random.integers(-8, 9), 0, 255).astype(np.uint8)
                record = RealRecord(f"t-{number:08d}", "a", "tile", 0, SIDE, SIDE, 0.5, "png")
                yield record, encode_image(np.ascontiguousarray(image), "png")

        paths.append(str(folder / f"{first:08d}.tar"))
        write_shard(Path(paths[-1]), items())
    return paths


def _decoded(sample: dict[str, Any]) -> np.ndarray:
    return decode_image(sample["png"])


def by_webdataset(tars: list[str], workers: int) -> int:
    """One pass; returns the tiles."""
    data = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).map(_decoded)
    loader = DataLoader(data, batch_size=BATCH, num_workers=min(workers, len(tars)), collate_fn=np.stack)
    return sum(len(batch) for batch in loader)


def by_loader(tars: list[str], workers: int, cache: Path, *, symmetries: bool) -> int:
    """One pass; returns the tiles."""
    data = Data.model_validate({"shards": [{"shards": path} for path in tars], "symmetries": symmetries})
    index = open_index(data, cache)
    order = Order(0, np.arange(len(index)), index.labels, np.ones(len(index)))
    with Loader(index, order, seed=0, batch=BATCH, symmetries=symmetries, threads=workers) as loader:
        return sum(len(loader.batch(step).images) for step in range(len(index) // BATCH))


def measure(tiles: int, workers: int, repeats: int) -> dict[str, Any]:
    """Best of `repeats` of each, in turn."""
    with tempfile.TemporaryDirectory(prefix="synthfactory-bench-") as scratch:
        tars = make_tars(Path(scratch), tiles)
        cache = Path(scratch) / "cache"
        by_loader(tars, workers, cache, symmetries=False)  # lists the tars, and fills the page cache for all
        ways: dict[str, Callable[[], int]] = {
            "webdataset": lambda: by_webdataset(tars, workers),
            "ours": lambda: by_loader(tars, workers, cache, symmetries=False),
            "ours, symmetries": lambda: by_loader(tars, workers, cache, symmetries=True),
        }
        rates = dict.fromkeys(ways, 0.0)
        for _ in range(repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                seen = way()
                rates[name] = max(rates[name], seen / (time.perf_counter() - began))
    ratio = rates["ours"] / rates["webdataset"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tiles": tiles, "workers": workers, "tiles_per_second": rates, "ratio": ratio, "goal": GOAL, "reached": ratio >= GOAL, "peak": peak,
    }  # fmt: skip


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="Speed of the training loader.")
    parser.add_argument("--tiles", type=int, default=2000, help="tiles of a pass (default 2000)")
    parser.add_argument("--workers", type=int, default=2, help="threads, or processes of webdataset's (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = measure(options.tiles, options.workers, options.repeats)
    print(f"{found['tiles']:,} tiles of {SIDE} px, batches of {BATCH}, {found['workers']} workers")
    for name, rate in found["tiles_per_second"].items():
        print(f"  {name:<18} {rate:>8.0f} tiles/s")
    reached = "reached" if found["reached"] else "NOT reached"
    print(f"  ratio              {found['ratio']:>8.2f}     goal at least {GOAL:g}: {reached}")
    print(f"peak memory          {found['peak'] / 1e6:>8.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
