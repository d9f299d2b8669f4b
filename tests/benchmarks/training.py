"""Speed and memory of training, and how long a step waits for its tiles: python tests/benchmarks/training.py [--steps N] [--precision P]

Every line is a run of its own process on the same tars: the built-in model's SiT, plain and with `recompute`, and its autoencoder.
Printed: seconds a step, the share of them spent waiting for data (goal below 5 %), peak memory of the process (on CUDA: of the device),
and with a GPU the share of its peak that the arithmetic used (MFU; goal 45 % for SiT-XL/2: --model IMPORT --batch 64 --precision bfloat16).
Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from loader import make_tars

BASE: dict[str, Any] = {
    "mode": "finetune",
    "base": "phantom",
    "samples": None,
    "log_every": 1,
    "checkpoint_every": 10_000,
}
CHILD = """
import json, resource, sys
import torch
from train.cli import cli
cli(sys.argv[1:], standalone_mode=False)
cuda = torch.cuda.is_available()
peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak}))
"""


def run(folder: Path, name: str, config: dict[str, Any]) -> dict[str, float]:
    """Seconds a step (the first quarter left out), share of waiting, peak bytes."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = ["run", path, "--run", folder / name, "--cache", folder / "cache"]
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, command)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{name}: {ended.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[len(lines) // 4], lines[-1]
    seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return {"seconds": seconds, "waiting": last["waiting"], "peak": json.loads(ended.stdout.splitlines()[-1])["peak"]}


def step_flops(width: int, depth: int, tokens: int, batch: int) -> float:
    """Multiply-adds counted twice, forward once and backward twice: matrices of the blocks, and attention. Embedders are left out."""
    matrices, modulation = 12 * width**2, 6 * width**2 / tokens
    return 3 * 2 * batch * tokens * depth * (matrices + modulation + 2 * tokens * width)


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=24)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense bfloat16 (default: H100)")
    options.add_argument("--model", default="phantom", help="another base, for example an import of SiT-XL/2")
    given = options.parse_args()
    plan = {"steps": given.steps, "batch": given.batch, "rate": 1e-5, "warmup": 1}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tars").mkdir()
        make_tars(folder / "tars", 500)
        common = {
            **BASE, "base": given.model, "data": {"shards": str(folder / "tars")}, "optimiser": plan, "precision": given.precision,
        }  # fmt: skip
        kinds = {"sit": {}, "sit, recompute": {"recompute": True}, "vae": {"mode": "vae"}}
        print(f"{'':<16}{'s/step':>9}{'waiting':>9}{'peak MB':>9}{'MFU':>7}")
        for name, change in kinds.items():
            found = run(folder, name.replace(", ", "-"), {**common, **change})
            mfu = "-"
            if torch.cuda.is_available() and name.startswith("sit"):
                from synthfactory.model.folder import open_model

                sit = open_model(given.model).config["sit"]
                tokens = (sit["latent_size"] // sit.get("patch_size", 2)) ** 2
                flops = step_flops(sit["width"], sit["depth"], tokens, given.batch)
                mfu = f"{flops / found['seconds'] / (given.peak_tflops * 1e12):.0%}"
            print(
                f"{name:<16}{found['seconds']:>9.3f}{found['waiting']:>9.1%}{found['peak'] / 1e6:>9,.0f}{mfu:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
