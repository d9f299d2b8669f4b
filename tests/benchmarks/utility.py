"""What drawn tiles are worth for rare classes, and under each mechanism: `make bench-utility`.

    python tests/benchmarks/utility.py [--seeds 5] [--per-class 60] [--model phantom] [--out out/utility]

Rare classes: of each seed another cohort of invented patients at a natural imbalance (100, 50, 25, 12, 6 and 3 tiles of 13 to 3 patients),
a set drawn from its embeddings, as many of each class, and 200 unseen patients of each class to test on. Probes and a small CNN learn from
the real tiles alone, from what is free (class weights, oversampling with stain augmentation, mixup, SMOTE), and from real and drawn.
Mechanisms: of each of two seeds a cohort of 60 patients of each class, two tiles each, and as many drawn tiles under none, mix and dp.

All by `synthfactory build` and `synthfactory evaluate`; intervals are at 95 %, by t over the seeds. Resumes: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t

from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.phantom.cohort import write_folder

NATURAL = dict(zip(CLASSES, (100, 50, 25, 12, 6, 3), strict=True))  # tiles of one hospital's cohort
STRIDE, FIRST, TEST_FIRST = 1000, 10_000, 90_000  # numbers of invented patients: no two cohorts share one
TEST_PATIENTS, BALANCED_PATIENTS, BALANCED_TILES = 200, 60, 2
SAMPLER = {"solver": "ab2", "steps": 10, "guidance": {"scale": 1.5}}
MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {"mechanism": "none"},
    "mix, k 5": {"mechanism": "mix", "k": 5},
    "dp, epsilon 8": {"mechanism": "dp", "epsilon": 8.0},
    "dp, epsilon 3": {"mechanism": "dp", "epsilon": 3.0},
}
Json = dict[str, Any]


def call(*arguments: object) -> None:
    """`synthfactory ARGUMENTS` in a process of its own."""
    program = "from synthfactory.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def tiles(place: Path, cohort: str, counts: dict[str, int], first: int, each: int) -> Path:
    """Class folders of a cohort's tiles; whole or not at all."""
    if not place.exists():
        temporary = place.with_name(f".tmp-{place.name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        list(write_folder(temporary, cohort_tiles(cohort, counts, tiles_per_patient=each, first_patient=first)))
        temporary.rename(place)
    return place


def evaluated(folder: Path, model: str, real: Path, test: Path, per_class: int, privacy: Json, cnn: bool) -> Json:
    """The evaluation of a set drawn from these real tiles."""
    report = folder / "evaluation.json"
    if report.exists():
        return dict(json.loads(report.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    if privacy["mechanism"] == "dp":
        privacy = {
            **privacy, "population": dict.fromkeys(CLASSES, BALANCED_PATIENTS), "label_level": "tile", "cohort": "invented",
            "ledger": str((folder / "ledger").resolve()),
        }  # fmt: skip
    spec = folder / "spec.yaml"
    spec.write_text(
        yaml.safe_dump({
            "name": "utility", "model": model, "classes": dict.fromkeys(CLASSES, per_class),
            "embeddings": {"tiles": str(real), "metadata": str(real / "tiles.csv"), "label_level": "tile"},
            "privacy": privacy, "sampler": SAMPLER, "screen": {"tissue": {"min_fraction": 0.1}, "blur": {"min_sharpness": 0.005}},
            "output": {"path": str(folder / "out"), "shard_size": 60}, "lineage": str(folder / "lineage"), "seed": 7,
        })
    )  # fmt: skip
    call("build", spec, "--local")
    more = ["--cnn"] if cnn else []
    if privacy["mechanism"] == "none":
        more += ["--lineage", folder / "lineage"]
    call("evaluate", folder / "out", "--real", real, "--unseen", test, "--seeds", 1, "--report", report, *more)
    return dict(json.loads(report.read_text()))


def over_seeds(values: list[float]) -> str:
    """Mean with its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f} (one seed)"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def learners(found: Json) -> dict[str, Json]:
    """Figures of utility by who learned."""
    spaces = {f"probe in {name}": space["utility"] for name, space in found["spaces"].items()}
    return {**spaces, "small CNN": found["cnn"]} if found["cnn"] else spaces


def rare(given: argparse.Namespace, test: Path) -> None:
    """Prints the gain on the three rarest classes, a line a seed and learner, then over the seeds."""
    gains: dict[str, list[tuple[float, float]]] = {}
    for seed in range(given.seeds):
        folder = given.out / f"rare-{seed}"
        real = tiles(folder / "real", "bank", NATURAL, FIRST + STRIDE * seed, 8)
        found = evaluated(folder, given.model, real, test, given.per_class, MECHANISMS["none"], cnn=True)
        for who, figures in learners(found).items():
            of_rare, best = figures["gain_rarest"], figures["gain_rarest"]["best_free"]
            gains.setdefault(who, []).append((of_rare["over_best_free"]["value"], of_rare["over_real_only"]["value"]))
            rarest = {arm: figures["arms"][arm]["rarest"]["value"] for arm in ("real only", best, "real + synthetic")}
            told = ", ".join(f"{arm} {value:.3f}" for arm, value in rarest.items())
            print(f"seed {seed}, {who}: balanced accuracy of {', '.join(figures['rarest'])}: {told}", flush=True)
    for who, values in gains.items():
        best, alone = (over_seeds([pair[at] for pair in values]) for at in range(2))
        print(f"rare classes, {who}: real + synthetic gains {best} over the best that is free, {alone} over real only")


def mechanisms(given: argparse.Namespace, test: Path) -> None:
    """Prints what drawn tiles alone reach of what as many real ones do."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for seed in range(given.mechanism_seeds):
        counts = dict.fromkeys(CLASSES, BALANCED_PATIENTS * BALANCED_TILES)
        first = FIRST + STRIDE * (50 + seed)
        real = tiles(given.out / f"mechanisms-{seed}/real", "bank", counts, first, BALANCED_TILES)
        for name, privacy in MECHANISMS.items():
            folder = given.out / f"mechanisms-{seed}" / name.replace(", ", "-").replace(" ", "-")
            found = evaluated(folder, given.model, real, test, counts[CLASSES[0]], privacy, cnn=True)
            for who, figures in learners(found).items():
                ratio = figures["synthetic_over_real"]
                ratios.setdefault((name, who), []).append(ratio["value"])
                low, high = ratio["interval_95"]
                print(
                    f"seed {seed}, {name}, {who}: synthetic / real only {ratio['value']:.4f} ({low:.4f} to {high:.4f})",
                    flush=True,
                )
    for (name, who), values in ratios.items():
        print(
            f"mechanism {name}, {who}: synthetic / real only {statistics.mean(values):.4f} over {len(values)} cohorts"
        )


def main() -> None:
    """Both parts."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--mechanism-seeds", type=int, default=2)
    options.add_argument("--per-class", type=int, default=60)
    options.add_argument("--model", default="phantom")
    options.add_argument("--out", type=Path, default=Path("out/utility"))
    given = options.parse_args()
    test = tiles(given.out / "test", "heldout", dict.fromkeys(CLASSES, TEST_PATIENTS), TEST_FIRST, 1)
    rare(given, test)
    mechanisms(given, test)


if __name__ == "__main__":
    main()
