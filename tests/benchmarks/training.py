"""Speed and memory of training, and how long a step waits for its tiles: python tests/benchmarks/training.py [--steps N] [--precision P]

Every line is a run of its own process on the same tars: the built-in model's SiT, plain and with `recompute`, and its autoencoder.
Printed: seconds a step, the share of them spent waiting for data (goal below 5 %), peak memory of the process (on CUDA: of the device),
and with a GPU the share of its peak that the arithmetic used (MFU; goal 45 % for SiT-XL/2:
--model xl --batch 64 --precision bfloat16 --kept --compile). `xl` is a model of CytoSyn's sizes with random weights, which take as long
as any. `--vary lean cudnn lean+cudnn` repeats every line with the run's `lean` and with switches of torch (SWITCHES), so that each is
timed against the plain one on the same machine; `--profile` prints where each line's time on the device went (what is made once
included). Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
SWITCHES = {
    "cudnn": "attention.enable_flash_sdp(False), attention.enable_mem_efficient_sdp(False), attention.enable_cudnn_sdp(True)",
    "flash": "attention.enable_cudnn_sdp(False)",
    "autotune": "setattr(inductor, 'max_autotune_gemm', True)",
}
CHILD = """
import contextlib, json, resource, sys
import torch
import torch._inductor.config as inductor
import torch.backends.cuda as attention
from train import checkpoint
from train.cli import cli
checkpoint.save = lambda *given, **named: None  # no step's work; of 683 M weights about 11 GB
switches, profile = json.loads(sys.argv[1])
for switch in switches:
    exec(switch)
kinds = [torch.profiler.ProfilerActivity.CUDA if torch.cuda.is_available() else torch.profiler.ProfilerActivity.CPU]
with torch.profiler.profile(activities=kinds) if profile else contextlib.nullcontext() as seen:
    cli(sys.argv[2:], standalone_mode=False)
if profile:
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90), file=sys.stderr)
cuda = torch.cuda.is_available()
peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak}))
"""


def run(
    folder: Path, name: str, config: dict[str, Any], switches: Sequence[str] = (), *, profile: bool = False
) -> dict[str, float]:
    """Seconds a step (the first quarter left out), share of waiting, peak bytes."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = ["run", path, "--run", folder / name, "--cache", folder / "cache"]
    given = json.dumps([[SWITCHES[switch] for switch in switches], profile])
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, given, *map(str, command)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{name}: {ended.stderr[-2000:]}")
    if profile:
        print(ended.stderr, flush=True)
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
    options.add_argument("--vary", nargs="*", default=[], help=f"of lean, {', '.join(SWITCHES)}; joined by +")
    options.add_argument(
        "--profile", action="store_true", help="where a line's time on the device went, compiling and latents included"
    )
    given = options.parse_args()
    unknown = {switch for how in given.vary for switch in how.split("+")} - {"lean", *SWITCHES}
    if unknown:
        options.error(f"--vary: {', '.join(sorted(unknown))}: known are lean, {', '.join(SWITCHES)}, joined by +")
    if given.precision != "bfloat16" and any("lean" in how for how in given.vary):
        options.error("--vary lean goes with --precision bfloat16")
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
        print(f"{'':<26}{'s/step':>9}{'waiting':>9}{'peak MB':>9}{'MFU':>7}")
        varied = [(name, change, "") for name, change in kinds.items()]
        varied += [(name, change, how) for name, change, _ in varied for how in given.vary if name.startswith("sit")]
        for name, change, how in varied:
            switches = how.split("+") if how else []
            change = {**change, "lean": "lean" in switches}
            switches = [switch for switch in switches if switch != "lean"]
            folder_name = f"{name}-{how}".replace(", ", "-")
            found = run(folder, folder_name, {**common, **change}, switches, profile=given.profile)
            mfu = "-"
            if torch.cuda.is_available() and name.startswith("sit"):
                sit = open_model(base).config["sit"]
                tokens = (sit["latent_size"] // sit.get("patch_size", 2)) ** 2
                flops = step_flops(sit["width"], sit["depth"], tokens, given.batch)
                mfu = f"{flops / found['seconds'] / (given.peak_tflops * 1e12):.0%}"
            print(
                f"{' '.join((name, how)):<26}{found['seconds']:>9.3f}{found['waiting']:>9.1%}{found['peak'] / 1e6:>9,.0f}{mfu:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
