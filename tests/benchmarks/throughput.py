"""Speed and memory, printed: `make bench`, or python tests/benchmarks/throughput.py [--tiles N] [--json FILE] [--model FOLDER]

- tiles/s and the share of time of each stage, of one --local build (encode runs beside the others, so `other` may be below zero)
- Ray's overhead: wall time of a build by two Ray workers against two --local builds of half the tiles each, begun together. Both
  ways are run in turn, and the best run of each counts, so that what else the machine does weighs less.
- peak memory of a driver, of a worker, and of `plan` for 10^3 and for 10^9 tiles

Nothing is asserted: figures depend on the machine. Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_parent import Child, Workshop, side_by_side

from synthfactory.spec.errors import InputError

STAGES = ("condition", "sample", "decode", "screen", "encode", "commit")
SAMPLER = {"method": "ode", "solver": "heun", "steps": 10, "guidance": {"scale": 1.5}}  # that of specs/demo.yaml
RAY_WORKERS = 2
SHARDS_PER_WORKER = 2
GOAL = 0.05
MB = 1e6


def measure(model: str, tiles: int, repeats: int) -> dict[str, Any]:
    """All figures: seconds, bytes, shares of 1."""
    found: dict[str, Any] = {
        "model": model,
        "sampler": SAMPLER,
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "load_before": os.getloadavg()[0]},
    }
    with tempfile.TemporaryDirectory(prefix="synthfactory-bench-") as scratch:
        shop = Workshop(Path(scratch), model, SAMPLER)
        # Every shard gets the same tiles: a worker that waits for the other's larger shard would count as Ray's.
        shard_size = shop.num_classes * max(1, round(tiles / (RAY_WORKERS * SHARDS_PER_WORKER * shop.num_classes)))
        half = SHARDS_PER_WORKER * shard_size
        found["plan"] = _plans(shop)
        with Child() as alone:
            found["local"] = _stages(alone.build(shop.spec(half, shard_size)))
        pairs, rays = [], []
        for repeat in range(repeats):
            for by_ray in (False, True) if repeat % 2 == 0 else (True, False):
                # New processes every time, on both sides: a process's first batches are slower (kernels are set up, memory is claimed).
                if by_ray:
                    with Child() as driver:
                        rays.append(driver.build(shop.spec(half * RAY_WORKERS, shard_size), RAY_WORKERS))
                else:
                    specs = [shop.spec(half, shard_size) for _ in range(RAY_WORKERS)]
                    with Child() as first, Child() as second:
                        pairs.append(max(run["wall"] for run in side_by_side([first, second], specs)))
    best = min(rays, key=lambda run: run["wall"])
    overhead = best["wall"] / min(pairs) - 1
    found["ray"] = {
        "workers": RAY_WORKERS, "tiles": best["tiles"], "repeats": repeats, "wall": best["wall"],
        "wall_of_local_pair": min(pairs), "start": best["start"], "stop": best["stop"],
        "all_walls": [run["wall"] for run in rays], "all_walls_of_local_pairs": pairs,
        "idle_share": 1 - sum(best["seconds"].get(stage, 0.0) for stage in STAGES[1:]) / (RAY_WORKERS * best["wall"]),
        "overhead": overhead, "goal": GOAL, "reached": overhead < GOAL,
    }  # fmt: skip
    found["memory"] = {
        "local": found["local"].pop("peak"),
        "ray_driver": max(run["peak"] for run in rays),
        "ray_worker": max(run["worker_peak"] for run in rays),
    }
    return found


def _stages(run: dict[str, Any]) -> dict[str, Any]:
    seconds = {stage: run["seconds"].get(stage, 0.0) for stage in STAGES}
    seconds["other"] = run["wall"] - sum(seconds.values())
    return {
        "tiles": run["tiles"],
        "wall": run["wall"],
        "tiles_per_second": run["tiles"] / run["wall"],
        "network_calls": run["network_calls"],
        "seconds": seconds,
        "share": {stage: value / run["wall"] for stage, value in seconds.items()},
        "peak": run["peak"],
    }


def _plans(shop: Workshop) -> dict[str, Any]:
    found = {}
    for power in (3, 9):
        with Child() as child:
            child.send(plan=str(shop.spec(10**power, 1000)))
            answer = child.answer()
        found[f"1e{power}"] = {"wall": answer["wall"], "peak": answer["peak"]}
    found["peak_difference"] = found["1e9"]["peak"] - found["1e3"]["peak"]
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """The figures for people, at most 80 columns."""
    local, ray, memory, plan = found["local"], found["ray"], found["memory"], found["plan"]
    load, cores = found["machine"]["load_before"], found["machine"]["cores"]
    yield f"model {Path(found['model']).name}, heun, {SAMPLER['steps']} steps, guidance 1.5; {cores} cores"
    if load > 0.3:
        yield f"the machine was busy before the start (load {load:.1f}): these figures are disturbed"
    yield ""
    yield f"one --local build: {local['tiles']} tiles in {local['wall']:.1f} s, {local['tiles_per_second']:.3g} tiles/s"
    yield "  stage          seconds    share"
    for stage, value in local["seconds"].items():
        yield f"  {stage:<12} {value:>9.2f} {local['share'][stage]:>7.1%}"
    yield ""
    yield f"{ray['tiles']} tiles by {ray['workers']} workers (best of {ray['repeats']}; start and stop not counted)"
    yield f"  two --local builds     {ray['wall_of_local_pair']:>8.1f} s"
    yield f"  Ray                    {ray['wall']:>8.1f} s   start {ray['start']:.1f} s, stop {ray['stop']:.1f} s"
    reached = "reached" if ray["reached"] else "NOT reached"
    yield f"  its workers idle       {ray['idle_share']:>8.1%}"
    yield f"  Ray's overhead         {ray['overhead']:>8.1%}     goal below {ray['goal']:.0%}: {reached}"
    yield ""
    yield "peak memory"
    yield f"  --local build          {memory['local'] / MB:>8.0f} MB"
    yield f"  Ray, driver            {memory['ray_driver'] / MB:>8.0f} MB"
    yield f"  Ray, a worker          {memory['ray_worker'] / MB:>8.0f} MB"
    yield f"  plan of 10^3 tiles     {plan['1e3']['peak'] / MB:>8.0f} MB  in {plan['1e3']['wall']:.2f} s"
    yield f"  plan of 10^9 tiles     {plan['1e9']['peak'] / MB:>8.0f} MB  in {plan['1e9']['wall']:.2f} s"


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="Speed and memory of a build.")
    parser.add_argument("--tiles", type=int, default=192, help="tiles of a two-worker build, about (default 192)")
    parser.add_argument("--model", default="phantom", help="phantom (default) or a model folder")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way of working (default 2)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.tiles < RAY_WORKERS or options.repeats < 1:
        parser.error(f"--tiles is at least {RAY_WORKERS}, --repeats at least 1")
    try:
        found = measure(options.model, options.tiles, options.repeats)
    except InputError as error:
        parser.error(str(error))
    for line in table(found):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
