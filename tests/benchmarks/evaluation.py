"""Time and memory of `evaluate`'s figures on large sides: drawn, real and unseen embeddings, everything but the embedding itself.

    python tests/benchmarks/evaluation.py [--rows 100000] [--width 768] [--threads 2]

Prints seconds (clock and processor) of each step and the peak of memory. Embeddings are Gaussian, of 20 classes and 5,000 patients.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--threads", type=int, default=2)
given = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)

import numpy as np  # noqa: E402 - reads the number of threads as it is loaded
import torch  # noqa: E402

from synthfactory.evaluate.fidelity import Tiles  # noqa: E402
from synthfactory.run.evaluating import Sides, fidelity_figures, shortcut_figures  # noqa: E402
from synthfactory.run.spaces import Kept  # noqa: E402
from synthfactory.run.worth import utility_figures  # noqa: E402

CLASSES, PATIENTS = 20, 5000


def side(seed: int) -> Tiles:
    random = np.random.default_rng(seed)
    centres = 0.5 * np.random.default_rng(0).standard_normal((CLASSES, given.width)).astype(np.float32)
    patients = random.integers(0, PATIENTS, given.rows)
    classes = patients % CLASSES
    rows = random.standard_normal((given.rows, given.width), dtype=np.float32)
    rows += centres[classes]
    names = np.array([f"class-{number:02d}" for number in range(CLASSES)])
    return Tiles(rows, names[classes], patients + seed * PATIENTS)


def main() -> None:
    torch.set_num_threads(given.threads)
    drawn = side(1)
    drawn = Tiles(drawn.embeddings, drawn.classes, drawn.groups + PATIENTS)  # they rest on the real side's patients
    behind = tuple(frozenset({str(name)}) for name in drawn.groups.tolist())
    sides = Sides(drawn, side(2), side(3), sources=behind)
    print(f"{given.rows:,} drawn, real and unseen tiles, width {given.width}, {given.threads} threads", flush=True)
    began, spent = time.monotonic(), time.process_time()
    last = [began, spent]

    def begin(what: str, total: int):  # type: ignore[no-untyped-def]
        now = [time.monotonic(), time.process_time()]
        print(f"  {now[0] - last[0]:7.1f} s ({now[1] - last[1]:7.1f} s of processors) until: {what}", flush=True)
        last[:] = now
        return lambda count: None

    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder))
        fidelity_figures(sides, kept, begin)
        utility_figures(sides, kept, begin, 1)
        shortcut_figures(sides, kept, begin)
        begin("the end", 0)
        whole = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"whole: {whole:.0f} s by the clock, {time.process_time() - spent:.0f} s of processors, peak {peak:,.0f} MB"
        )
        again = time.monotonic()
        fidelity_figures(sides, kept, begin)
        utility_figures(sides, kept, begin, 1)
        print(f"the same again, from what was kept: {time.monotonic() - again:.0f} s")


if __name__ == "__main__":
    main()
