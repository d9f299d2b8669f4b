"""How long, and with how much memory, are 100,000 tiles looked up in two references of 100,000? Random unit vectors.

    python tests/benchmarks/neighbours.py [--rows 100000] [--width 128 768] [--threads 1]

Each width runs in a process of its own, so that peak memory is its own. Prints seconds (by the clock and of the CPU) and megabytes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

K = 8


def measure(rows: int, width: int) -> None:
    """One width, in this process."""
    import numpy as np

    from synthfactory.embeddings.vectors import unit
    from synthfactory.evaluate.neighbours import nearest

    random = np.random.default_rng(0)
    queries, members, others = (unit(random.standard_normal((rows, width), dtype=np.float32)) for _ in range(3))
    began, used = time.monotonic(), time.process_time()
    for references in (members, others):
        nearest(queries, references, K)
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{rows:,} tiles, two references of {rows:,}, width {width}: {seconds:.0f} s ({cpu:.0f} s of CPU), {peak:,.0f} MB"
    )


def main() -> None:
    """A process for each width."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--width", type=int, nargs="+", default=[128, 768])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.here:
        measure(given.rows, given.width[0])
        return
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(given.threads))
    for width in given.width:
        command = [sys.executable, __file__, "--here", "--rows", str(given.rows), "--width", str(width)]
        subprocess.run(command, check=True, env={**os.environ, **threads})


if __name__ == "__main__":
    main()
