"""Milliseconds a shard that commands take on an object store that answers slowly; nothing is drawn but a tiny set to look at.

    python tests/benchmarks/latency.py [--latency-ms 20] [--shards 120]

The store is moto's S3 on loopback, which shares the machine: its own work (some 10 ms a request) is in the figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import s3server
from running import run, write_spec
from tinymodel import make_bank_file, make_tiny_model

App = Callable[..., Iterable[bytes]]


def main() -> None:
    """Prints a line a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--shards", type=int, default=120)
    options = parser.parse_args()
    delay = [0.0]
    application = s3server.S3Server.application

    def slow(self: Any, app: App) -> App:
        inner = application(self, app)

        def answer(*given: Any) -> Iterable[bytes]:
            time.sleep(delay[0])
            return inner(*given)

        return answer

    s3server.S3Server.application = slow
    with tempfile.TemporaryDirectory() as scratch, s3server.serve_s3() as server:
        root = Path(scratch)
        os.environ.update(s3server.environment(server.address))
        bucket = s3server.make_bucket(server, "tiles")
        make_tiny_model(root / "model")
        make_bank_file(root / "bank.parquet", root / "model")
        lineage = f"s3://{bucket.name}/lineage"
        spec = write_spec(
            root / "spec.yaml", model=str(root / "model"), embeddings={"bank": str(root / "bank.parquet")},
            classes={"alpha": 2 * options.shards, "beta": 2 * options.shards}, sampler={"steps": 1},
            output={"path": bucket.url, "shard_size": 4}, lineage=lineage, budget={"network_calls": 10**7},
        )  # fmt: skip
        assert run("build", spec, "--local").code == 0
        delay[0] = options.latency_ms / 1000
        commands: dict[str, list[object]] = {
            "status": ["status", bucket.url],
            "plan, with a budget": ["plan", spec],
            "build --quick, nothing to draw": ["build", spec, "--local", "--quick"],
            "build, nothing to draw": ["build", spec, "--local"],
            "gc": ["gc", bucket.url, "--lineage", lineage],
            "preview": ["preview", bucket.url, "-o", root / "preview.png"],
        }
        for name, words in commands.items():
            server.asked.clear()
            began = time.perf_counter()
            assert run(*words).code == 0
            each = (time.perf_counter() - began) / options.shards * 1000
            print(f"{name:32} {each:6.0f} ms a shard, {len(server.asked) / options.shards:4.1f} requests", flush=True)


if __name__ == "__main__":
    main()
