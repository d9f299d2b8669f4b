"""Speed of sampling beside two baselines, in one run: python tests/benchmarks/sampling.py [--size xl] [--steps 50] [--json FILE]

Same weights, shapes, conditions, steps and guidance; the SDE of REPA-E (Euler-Maruyama):
  (a) as REPA-E's generate.py samples: float32 (TF32 on a GPU), state in float64, no compilation
  (b) plain bfloat16 autocast with SDPA, state in float32, no compilation
  ours  sample.engine.Engine in bfloat16, compiled on a GPU (on a CPU where --compile is given)
Each goes once unmeasured, then --repeats times in turn; the best counts. Printed: tiles/s, ratios, the network's share of the device's
own matmul rate in bfloat16, peak memory. Nothing is asserted: figures depend on the machine. Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthfactory.model.folder import open_model
from synthfactory.model.interpolant import score_from_velocity
from synthfactory.model.sit import SiT, SiTConfig
from synthfactory.model.vae import VAE, VAEConfig, pixels_to_uint8
from synthfactory.model.vit import ViT, ViTConfig
from synthfactory.model.weights import LoadedModel, default_device, load_model
from synthfactory.plan.cost import LAST_SDE_TIME, calls_per_tile
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Guidance, Sampler

Draw = Callable[[], np.ndarray]
GOALS = {"cuda": {"a": 4.0, "b": 1.5}, "cpu": {"a": 1.3}}
RATE_GOAL = 0.6


def xl_model(device: torch.device) -> LoadedModel:
    """SiT-XL/2, SD-VAE and H0-mini's ViT with random weights: their speed is that of trained ones."""
    random = torch.Generator().manual_seed(0)
    sit, encoder = SiT(SiTConfig()), ViT(ViTConfig())
    sit.initialise(random)
    encoder.initialise(random)
    for module in sit.modules():  # gates and output are zero at the start of training
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0.0, 0.02, generator=random)
    parts = [part.eval().requires_grad_(False).to(device) for part in (sit, VAE(VAEConfig()), encoder)]
    return LoadedModel(*parts, tile_size_px=224, device=device)  # type: ignore[arg-type]


def repae_way(model: LoadedModel, conditions: Tensor, sampler: Sampler, state: torch.dtype, cast: bool) -> Tensor:
    """Euler-Maruyama as REPA-E writes it: one plain loop on one stream of noise; tiles uint8 on the device."""
    rows, config, device = len(conditions), model.sit.config, model.device
    size = (rows, config.latent_channels, config.latent_size, config.latent_size)
    guidance = sampler.guidance
    is_null = torch.arange(2 * rows, device=device) >= rows
    doubled = torch.cat([conditions, conditions])

    def drift(x: Tensor, t: float) -> Tensor:
        both = guidance.scale != 1.0 and guidance.low <= t <= guidance.high
        given = torch.cat([x, x]) if both else x
        times = torch.full((len(given),), t, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cast):
            found = model.sit(given.float(), times, doubled if both else conditions, is_null if both else None)[0]
        v = found.to(state)
        d = v - t * score_from_velocity(v, given, t)
        return d[rows:] + guidance.scale * (d[:rows] - d[rows:]) if both else d

    times = np.linspace(1.0, LAST_SDE_TIME, sampler.steps).tolist()
    x = torch.randn(size, device=device, dtype=state)
    for now, after in zip(times[:-1], times[1:], strict=True):
        x = x + (after - now) * drift(x, now) + (2 * now * (now - after)) ** 0.5 * torch.randn_like(x)
    x = x - times[-1] * drift(x, times[-1])
    with torch.autocast(device.type, torch.bfloat16, enabled=cast):
        return pixels_to_uint8(model.vae.decode(model.sit.denormalise(x.float())))


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large square matmul."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        _settle(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def call_flops(model: LoadedModel) -> float:
    """Floating-point operations of one network call of one tile, counted by torch."""
    config = model.sit.config
    x = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size, device=model.device)
    with FlopCounterMode(display=False) as counter:
        model.sit(x, torch.ones(1, device=model.device), torch.zeros(1, config.condition_width, device=model.device))
    return float(counter.get_total_flops())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    device = default_device()
    torch.backends.cuda.matmul.allow_tf32 = True
    if options.threads:
        torch.set_num_threads(options.threads)
    model = xl_model(device) if options.size == "xl" else load_model(open_model(options.model), device=device)
    flops = call_flops(model)
    guidance = Guidance(scale=2.5, high=0.75)
    sampler = Sampler(method="sde", solver="euler_maruyama", steps=options.steps, guidance=guidance)
    width = model.sit.config.condition_width
    conditions = np.random.default_rng(0).standard_normal((options.batch, width)).astype(np.float32)
    on_device = torch.from_numpy(conditions).to(device)
    keys = [(number, 1) for number in range(options.batch)]

    def plain(state: torch.dtype, cast: bool) -> Draw:
        def draw() -> np.ndarray:
            with torch.inference_mode():
                return repae_way(model, on_device, sampler, state, cast).cpu().numpy()

        return draw

    seconds: dict[str, list[float]] = {"a": [], "b": [], "ours": []}
    peaks: dict[str, float] = {}
    ways: dict[str, Draw] = {"a": plain(torch.float64, False), "b": plain(torch.float32, True)}
    for repeat in range(-1, options.repeats):
        for name, draw in ways.items():
            _timed(name, draw, device, seconds, peaks, counts=repeat >= 0)
    # Last, because the engine converts the weights in place.
    engine = Engine(
        model,
        dtype=options.dtype,
        threads=None,
        compiled=options.compile or device.type == "cuda",
        full_rows=options.batch,
    )
    for repeat in range(-1, options.repeats):
        _timed("ours", lambda: engine.draw(conditions, keys, sampler), device, seconds, peaks, counts=repeat >= 0)
    best = {name: min(values) for name, values in seconds.items()}
    rate = matmul_rate(device, torch.bfloat16)
    calls = calls_per_tile(sampler) * options.batch
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "kind": device.type,
        "model": options.size or options.model,
        "steps": options.steps,
        "batch": options.batch,
        "calls_per_tile": calls_per_tile(sampler),
        "dtype": options.dtype,
        "compiled": engine.compiled,
        "tiles_per_second": {name: options.batch / value for name, value in best.items()},
        "ratio_over": {name: best[name] / best["ours"] for name in ("a", "b")},
        "matmul_rate_tflops": rate / 1e12,
        "share_of_matmul_rate": {name: calls * flops / value / rate for name, value in best.items()},
        "peak_memory_mb": {name: value / 1e6 for name, value in peaks.items()},
        "all_seconds": seconds,
    }


def _timed(
    name: str,
    draw: Draw,
    device: torch.device,
    seconds: dict[str, list[float]],
    peaks: dict[str, float],
    *,
    counts: bool,
) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _settle(device)
    began = time.perf_counter()
    draw()
    _settle(device)
    if counts:
        seconds[name].append(time.perf_counter() - began)
    used = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    peaks[name] = max(peaks.get(name, 0), used)


def table(found: dict[str, Any]) -> list[str]:
    """The figures for people."""
    lines = [
        f"{found['model']} on {found['device']}: {found['steps']} SDE steps, {found['calls_per_tile']} calls a tile, "
        f"batch {found['batch']}",
        f"{'':<34}{'tiles/s':>9}{'ours over it':>14}{'of matmul rate':>16}{'peak MB':>9}",
    ]
    names = {
        "a": "(a) float32, float64 state",
        "b": "(b) plain bfloat16, SDPA",
        "ours": f"ours, {found['dtype']}" + (", compiled" if found["compiled"] else ""),
    }
    for key, name in names.items():
        ratio = f"{found['ratio_over'][key]:.2f}" if key != "ours" else ""
        lines.append(
            f"{name:<34}{found['tiles_per_second'][key]:>9.3f}{ratio:>14}{found['share_of_matmul_rate'][key]:>15.1%} "
            f"{found['peak_memory_mb'][key]:>8.0f}"
        )
    for key, goal in GOALS[found["kind"]].items():
        reached = "reached" if found["ratio_over"][key] >= goal else "NOT reached"
        lines.append(f"goal: {goal:g} over ({key}): {reached}")
    if found["kind"] == "cuda":
        reached = "reached" if found["share_of_matmul_rate"]["ours"] >= RATE_GOAL else "NOT reached"
        lines.append(f"goal: {RATE_GOAL:.0%} of the matmul rate: {reached}")
    else:
        lines.append(
            "no GPU here: the goals for GPUs are not measured; peak memory of a CPU is the process's, rising from row to row"
        )
    return lines


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="Speed of sampling beside two baselines.")
    parser.add_argument("--model", default="phantom", help="phantom (default) or a model folder")
    parser.add_argument("--size", choices=["xl"], help="instead: SiT-XL/2, SD-VAE and ViT-B/14 with random weights")
    parser.add_argument("--steps", type=int, default=10, help="SDE steps (default 10)")
    parser.add_argument("--batch", type=int, default=16, help="tiles in a batch (default 16)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"], help="of ours")
    parser.add_argument("--compile", action="store_true", help="compile ours on a CPU too")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = measure(options)
    print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
