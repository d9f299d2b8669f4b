"""Speed and memory of training, and how long a step waits for its tiles: python tests/benchmarks/training.py [--steps N] [--precision P]

Every line is a run of its own process on the same tars: the built-in model's SiT, plain and with `recompute`, and its autoencoder.
Printed: seconds a step, the share of them spent waiting for data (goal below 5 %), peak memory of the process (on CUDA: of the device),
and with a GPU the share of its peak that the arithmetic used (MFU; goal 45 % for SiT-XL/2:
--model xl --batch 64 --precision bfloat16 --kept --compile). `xl` is a model of CytoSyn's sizes with random weights, which take as long
as any. Nothing is asserted.
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

from synthfactory.model.config_check import FORMAT
from synthfactory.model.files import sha256_of
from synthfactory.model.folder import open_model
from synthfactory.model.sit import SiT, SiTConfig
from synthfactory.model.tensors import write_tensors
from synthfactory.model.vae import VAE, VAEConfig
from synthfactory.model.vit import ViT, ViTConfig

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
from train import checkpoint
from train.cli import cli
checkpoint.save = lambda *given, **named: None  # no step's work; of 683 M weights about 11 GB
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


def make_xl(folder: Path) -> str:
    """A model folder with SiT-XL/2, SD's autoencoder and an encoder of H0-mini's sizes, float16, weights as torch begins them."""
    folder.mkdir()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        sit, vae, vit = SiT(SiTConfig()), VAE(VAEConfig()), ViT(ViTConfig())
    files = {}
    for name, network in {"sit": sit, "vae": vae, "encoder": vit}.items():
        path = folder / f"{name}.safetensors"
        write_tensors(
            {k: v.half().cpu() if v.is_floating_point() else v.cpu() for k, v in network.state_dict().items()}, path
        )
        files[path.name] = sha256_of(path)
    sizes = {"sit": sit.config, "vae": VAEConfig(), "encoder": vit.config}
    description = {
        "format": FORMAT, "id": "random-xl", "revision": "0", "licence": {"name": "none", "sharing": "local"}, "files": files,
        "tile_size_px": 224, "resolution_mpp": 0.5, **{name: json.loads(config.model_dump_json()) for name, config in sizes.items()},
    }  # fmt: skip
    description["encoder"]["id"] = "random"
    (folder / "config.json").write_text(json.dumps(description))
    return str(folder)


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
    options.add_argument("--model", default="phantom", help="another base, for example an import; or xl")
    options.add_argument("--kept", action="store_true", help="nothing aligned, the encoder's tokens made beforehand")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--only", help="one of the lines")
    given = options.parse_args()
    plan = {"steps": given.steps, "batch": given.batch, "rate": 1e-5, "warmup": 1}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tars").mkdir()
        make_tars(folder / "tars", 500)
        base = make_xl(folder / "xl") if given.model == "xl" else given.model
        common = {
            **BASE, "base": base, "compile": given.compile, "data": {"shards": str(folder / "tars")}, "optimiser": plan,
            "precision": given.precision, **({"diffusion": {"alignment": 0, "features": "cache"}} if given.kept else {}),
        }  # fmt: skip
        kinds = {"sit": {}, "sit, recompute": {"recompute": True}, "vae": {"mode": "vae"}}
        kinds = {name: change for name, change in kinds.items() if given.only in (None, name)}
        print(f"{'':<16}{'s/step':>9}{'waiting':>9}{'peak MB':>9}{'MFU':>7}")
        for name, change in kinds.items():
            found = run(folder, name.replace(", ", "-"), {**common, **change})
            mfu = "-"
            if torch.cuda.is_available() and name.startswith("sit"):
                sit = open_model(base).config["sit"]
                tokens = (sit["latent_size"] // sit.get("patch_size", 2)) ** 2
                flops = step_flops(sit["width"], sit["depth"], tokens, given.batch)
                mfu = f"{flops / found['seconds'] / (given.peak_tflops * 1e12):.0%}"
            print(
                f"{name:<16}{found['seconds']:>9.3f}{found['waiting']:>9.1%}{found['peak'] / 1e6:>9,.0f}{mfu:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
