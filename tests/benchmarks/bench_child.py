"""One process of the benchmark. Every line of standard input asks for something; the answer is a line of JSON.

{"build": SPEC, "workers": null | N}   builds as --local does, or with N Ray workers. Answers {"ready": true} once every worker holds
                                       the model, and waits for one more line, so that processes can begin side by side.
{"plan": SPEC}                         `synthfactory plan SPEC`, and how long it took
{"peak": true}                         peak memory of this process so far
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Peak resident memory of this process. On Linux VmHWM: ru_maxrss there starts from what the parent had."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _build(spec_file: str, workers: int | None) -> dict[str, Any]:
    from synthfactory.run import driver
    from synthfactory.run.prepare import prepare
    from synthfactory.run.task import Setup, Tick
    from synthfactory.spec.load import load_spec

    times: dict[str, float] = {}
    worker_peaks: list[int] = []

    def make_pool(setup: Setup, tick: Tick) -> Any:
        began = time.perf_counter()
        pool, peaks = _local(setup, tick) if workers is None else _ray(setup, tick, workers)
        close = pool.close

        def close_measured() -> None:
            worker_peaks.extend(peaks())
            closing = time.perf_counter()
            close()
            times["stop"] = time.perf_counter() - closing

        pool.close = close_measured
        times["start"] = time.perf_counter() - began
        _answer({"ready": True})
        sys.stdin.readline()
        times["go"] = time.perf_counter()
        return pool

    result = driver.build(prepare(load_spec(spec_file)), make_pool, say=lambda text: None)
    assert result.complete, driver.summary(result, spec_file)
    return {
        "tiles": result.tiles,
        "wall": time.perf_counter() - times["go"] - times["stop"],
        "start": times["start"],
        "stop": times["stop"],
        "seconds": dict(result.seconds),
        "network_calls": result.network_calls,
        "worker_peak": max(worker_peaks),
        "peak": peak_bytes(),
    }


def _local(setup: Any, tick: Any) -> Any:
    from synthfactory.run.local import LocalPool

    return LocalPool(setup, tick), lambda: [peak_bytes()]


def _ray(setup: Any, tick: Any, workers: int) -> Any:
    import ray

    from synthfactory.run.ray_pool import RayPool

    pool = RayPool(setup, tick, workers=workers, threads=int(setup.lock["execution"]["threads"]), address=None)
    actors = list(pool._actors.values())
    ray.get([actor.ready.remote() for actor in actors])  # the pool itself waits for the first of them only
    return pool, lambda: ray.get([actor.__ray_call__.remote(lambda _: peak_bytes()) for actor in actors])


def _plan(spec_file: str) -> dict[str, Any]:
    from synthfactory.cli import cli

    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        cli.main(["plan", spec_file], standalone_mode=False)
    return {"wall": time.perf_counter() - began, "peak": peak_bytes(), "text": text.getvalue()}


def _answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    """Answers until standard input ends."""
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "build" in asked:
            _answer(_build(asked["build"], asked["workers"]))
        elif "plan" in asked:
            _answer(_plan(asked["plan"]))
        else:
            _answer({"peak": peak_bytes()})


if __name__ == "__main__":
    main()
