"""Does fine-tuning on a rare class help it? A base whose SiT has never seen the class, against itself after 12 patients' tiles of it.

    python tests/benchmarks/rare_class.py [--seeds 5] [--first-seed 0] [--class NAME] [--steps 150] [--rate 3e-4] [--base phantom]

The base is made first: a new SiT beside the built-in model's autoencoder and encoder (which know the class), trained on 1,500 tiles of
each of the other five classes for 4,000 steps of 16. `--base phantom` takes the built-in model, which knows thousands of the class.

Of each seed: other 12 patients (8 tiles each), another order and noise. Both models draw from the same conditions (those patients'
tiles) and the same noise; measured is the kernel distance of what they draw to tiles of as many unseen patients, in the features of
an independent judge and of the encoder. Prints a line a seed, then the mean difference with its 95 % interval (t, over seeds; all have the
same base, so that another base may differ by more). Resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import t

from synthfactory.evaluate.distance import KernelDistance
from synthfactory.model.files import sha256_of
from synthfactory.model.folder import open_model
from synthfactory.model.formats import slow_format
from synthfactory.model.sit import sit_from_dict
from synthfactory.model.weights import load_model
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.phantom.cohort import write_shards
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Guidance, Sampler
from train.config import load_config
from train.export import export
from train.judge import judge_features
from train.loop import train
from train.measure import judge_of
from train.streams import torch_generator

PATIENTS, TILES = 12, 8
BASE_TILES, BASE_STEPS = 1500, 4000


def newborn(folder: Path, seed: int) -> Path:
    """The built-in model with a SiT that knows nothing yet, 192 wide and 8 deep as the first revisions' was."""
    if (folder / "config.json").exists():
        return folder
    model = open_model("phantom")
    sit = sit_from_dict({**model.config["sit"], "depth": 8, "projection_depth": 4, "projection_hidden": 384})
    sit.initialise(torch_generator(seed, "sit"))
    shutil.copytree(model.path, folder, dirs_exist_ok=True)
    (folder / "config.json").unlink()  # written last: a folder that has one is whole
    save_file(sit.state_dict(), folder / "sit.safetensors")
    files = {**model.config["files"], "sit.safetensors": sha256_of(folder / "sit.safetensors")}
    fresh = {"id": "newborn", "revision": "0", "sit": sit.config.model_dump(), "files": files, "training": {}}
    (folder / "config.json").write_text(json.dumps({**model.config, **fresh}))
    return folder


def trained(folder: Path, base: str, shards: Path, seed: int, **given: Any) -> Path:
    """FOLDER/model: `base` after it has gone on with these tars; the same call resumes."""
    out = folder / "model"
    if (out / "config.json").exists():
        return out
    config = folder / "config.json"  # JSON is YAML
    precision = "float32" if slow_format("bfloat16", torch.device("cpu")) else "bfloat16"
    common = {"mode": "finetune", "samples": None, "threads": 2, "precision": precision, "checkpoint_every": 25}
    values = {**common, "base": base, "data": {"shards": str(shards)}, "seed": seed, **given}
    config.write_text(json.dumps(values))
    train(load_config(str(config)), folder / "run", folder / "cache")
    return export(folder / "run", out, model_id=folder.name, revision=str(seed))


def base_without(class_name: str, out: Path) -> str:
    """A model whose SiT has learnt from the other five classes alone."""
    folder = out / f"without-{class_name}"
    if not (folder / "shards").exists():
        tiles = cohort_tiles("train", {name: BASE_TILES for name in CLASSES if name != class_name}, TILES)
        list(write_shards(folder / "making", tiles, len(tiles)))
        (folder / "making").rename(folder / "shards")
    optimiser = {
        "kind": "muon", "steps": BASE_STEPS, "batch": 16, "rate": 1e-3, "warmup": 100, "clip": 1.0, "betas": [0.9, 0.99], "ema": 0.998,
    }  # fmt: skip
    losses = {"alignment": 0.5, "null_share": 0.1, "condition_noise": 0.1, "time": "logit_normal"}
    return str(
        trained(
            folder, str(newborn(folder / "newborn", 0)), folder / "shards", 0, optimiser=optimiser, diffusion=losses,
            finetune={"statistics": "measure"}, compile=True, checkpoint_every=200,
        )
    )  # fmt: skip


def distances_of(seed: int, base: str, class_name: str, steps: int, rate: float, out: Path) -> dict[str, list[float]]:
    """{space: [base, tuned, other real tiles]} of a seed; kept in OUT."""
    folder = out / f"{class_name}-{open_model(base).sha256[:12]}-{steps}-{rate:g}-{seed}"
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
    features = {"judge": lambda images: judge_features(judge, images), "encoder": load_model(open_model(base)).embed}
    optimiser = {"steps": steps, "batch": 16, "rate": rate, "warmup": 10, "ema": 0.97}
    drawn = []
    for name in (base, str(trained(folder, base, folder / "shards", seed, optimiser=optimiser))):
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
    options.add_argument("--rate", type=float, default=3e-4)
    options.add_argument(
        "--first-seed", type=int, default=0, help="0: those that are reported; 99 was looked at before"
    )
    options.add_argument("--base", help="model to fine-tune; default: one is trained that has not seen the class")
    options.add_argument("--out", type=Path, default=Path("out/rare-class"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    lines = []
    base_model = given.base or base_without(given.class_name, given.out)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        lines.append(distances_of(seed, base_model, given.class_name, given.steps, given.rate, given.out))
        for space, (base, tuned, real) in lines[-1].items():
            print(
                f"seed {seed}, {space}: base {base:.3f}, fine-tuned {tuned:.3f}, other real tiles {real:.3f}",
                flush=True,
            )
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
