"""Does fine-tuning on a rare class help it? The built-in model against itself fine-tuned on 12 patients' tiles of one class.

    python tests/benchmarks/rare_class.py [--seeds 5] [--class phantom-keratin] [--steps 150]

Of each seed: other 12 patients (8 tiles each), another order and noise. Both models draw from the same conditions (those patients' tiles)
and the same noise; measured is the kernel distance of what they draw to tiles of as many unseen patients, in the features of an
independent judge and of the encoder. Prints a line a seed, then the mean difference with its 95 % interval (t, over seeds). Resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from synthfactory.evaluate.distance import KernelDistance
from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.phantom import cohort_tiles
from synthfactory.phantom.cohort import write_shards
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Guidance, Sampler
from train.config import load_config
from train.export import export
from train.judge import judge_features
from train.loop import train
from train.measure import judge_of

PATIENTS, TILES = 12, 8


def tuned_on(shards: Path, folder: Path, seed: int, steps: int) -> Path:
    """The built-in model after `steps` steps on these tars."""
    config = folder / "config.json"  # JSON is YAML
    config.write_text(
        json.dumps({
            "mode": "finetune", "base": "phantom", "data": {"shards": str(shards)}, "seed": seed, "samples": None, "threads": 2,
            "optimiser": {"steps": steps, "batch": 16, "rate": 3e-4, "warmup": 10, "ema": 0.97}, "checkpoint_every": 25,
        })
    )  # fmt: skip
    train(load_config(str(config)), folder / "run", folder / "cache")
    out = folder / "model"
    return out if (out / "config.json").exists() else export(folder / "run", out, model_id="tuned", revision=str(seed))


def distances_of(seed: int, class_name: str, steps: int, out: Path) -> dict[str, list[float]]:
    """{space: [base, tuned, other real tiles]} of a seed; kept in OUT."""
    folder = out / f"{class_name}-{steps}-{seed}"
    kept = folder / "distances.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    count = PATIENTS * TILES
    tiles = cohort_tiles("bank", {class_name: count}, TILES, first_patient=5000 + 100 * seed)
    list(write_shards(folder / "shards", tiles, count))
    real = np.stack([tile.render()[0] for tile in tiles])
    unseen, others = (
        np.stack([tile.render()[0] for tile in cohort_tiles("heldout", {class_name: count}, 1, first_patient=first)])
        for first in (3000, 4000)
    )
    judge = judge_of(out)
    random = np.random.default_rng(seed)
    keys = [(int(a), int(b)) for a, b in random.integers(0, 2**63, (count, 2))]
    sampler = Sampler(method="ode", solver="heun", steps=10, guidance=Guidance(scale=1.5))
    base = load_model(open_model("phantom"))
    features = {"judge": lambda images: judge_features(judge, images), "encoder": base.embed}
    drawn = []
    for name in ("phantom", str(tuned_on(folder / "shards", folder, seed, steps))):
        model = load_model(open_model(name))
        engine, conditions = Engine(model, threads=2), model.embed(real)
        drawn.append(np.concatenate([
            engine.draw(conditions[at : at + 16], keys[at : at + 16], sampler) for at in range(0, count, 16)
        ]))  # fmt: skip
    found = {}
    for space, of in features.items():
        distance = KernelDistance(of(unseen))
        found[space] = [float(distance.of(distance.matrices(of(images)))[0]) for images in (*drawn, others)]
    kept.write_text(json.dumps(found))
    return found


def main() -> None:
    """Prints what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--class", dest="class_name", default="phantom-keratin")
    options.add_argument("--steps", type=int, default=150)
    options.add_argument("--out", type=Path, default=Path("out/rare-class"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    lines = []
    for seed in range(given.seeds):
        lines.append(distances_of(seed, given.class_name, given.steps, given.out))
        for space, (base, tuned, real) in lines[-1].items():
            print(f"seed {seed}, {space}: base {base:.4f}, fine-tuned {tuned:.4f}, real {real:.4f}", flush=True)
    for space in lines[0]:
        off = [line[space][1] - line[space][0] for line in lines]
        mean = statistics.mean(off)
        spread = statistics.stdev(off) if len(off) > 1 else float("nan")
        half = float(t.ppf(0.975, len(off) - 1)) * spread / math.sqrt(len(off))
        base = statistics.mean(line[space][0] for line in lines)
        print(
            f"{space}: fine-tuned - base {mean:+.4f} (95 % {mean - half:+.4f} to {mean + half:+.4f}), base {base:.4f}"
        )


if __name__ == "__main__":
    main()
