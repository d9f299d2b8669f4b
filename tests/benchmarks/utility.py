"""What drawn tiles are worth for rare classes, and under each mechanism: `make bench-utility`.

    python tests/benchmarks/utility.py [--seeds 5] [--first-seed 0] [--per-class 60] [--model phantom] [--out out/utility] [--only rare]
        [--no-cnn] [--dtype bfloat16]

Rare classes: of each seed another cohort of invented patients at a natural imbalance (100, 50, 25, 12, 6 and 3 tiles of 13 to 3 patients),
a set drawn from its embeddings, as many of each class, and 200 unseen patients of each class to test on. Probes and a small CNN learn from
the real tiles alone, from what is free (class weights, oversampling with stain augmentation, mixup, SMOTE), and from real and drawn.
The CNN takes some 20 minutes a cohort on one core (40 without AMX); `--no-cnn` leaves it out.
Mechanisms, by probes alone: of each of three seeds a cohort of 60 patients of each class, two tiles each, and as many drawn tiles under
none, mix and dp.

All by `synthfactory build` and `synthfactory evaluate`; intervals are at 95 %: by t over the seeds, whose cohorts and sets differ while
the test is one; beside them, of each seed, over the patients of the test. Resumes: the same command goes on.
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

from synthfactory.commands.common import EXIT_INCOMPLETE
from synthfactory.model.folder import open_model
from synthfactory.phantom import CLASSES, GENERATOR_VERSION, cohort_tiles
from synthfactory.phantom.cohort import write_folder
from synthfactory.run.worth import CNN_TUNED

NATURAL = dict(zip(CLASSES, (100, 50, 25, 12, 6, 3), strict=True))  # tiles of one hospital's cohort
STRIDE, FIRST, TEST_FIRST = 1000, 10_000, 90_000  # numbers of invented patients: no two cohorts share one
TEST_PATIENTS, BALANCED_PATIENTS, BALANCED_TILES = 200, 60, 2
SAMPLER = {"solver": "ab2", "steps": 10, "guidance": {"scale": 1.5}}
SCREEN = {"tissue": {"min_fraction": 0.1}, "blur": {"min_sharpness": 0.005}}
MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {"mechanism": "none"},
    "mix, k 5": {"mechanism": "mix", "k": 5},
    "dp, epsilon 8": {"mechanism": "dp", "epsilon": 8.0},
    "dp, epsilon 3": {"mechanism": "dp", "epsilon": 3.0},
}
Json = dict[str, Any]


def call(*arguments: object) -> None:
    """`synthfactory ARGUMENTS` in a process of its own. Tiles that the screen refused as often as it may are left out, and said."""
    program = "from synthfactory.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=False, capture_output=True, text=True
    )
    if ended.returncode == EXIT_INCOMPLETE:
        print(f"{arguments[1]}: {ended.stdout.strip().splitlines()[-1]}", flush=True)
    elif ended.returncode:
        raise SystemExit(f"synthfactory {' '.join(map(str, arguments))}: {ended.stderr.strip().splitlines()[-1]}")


def tiles(place: Path, cohort: str, counts: dict[str, int], first: int, each: int) -> Path:
    """Class folders of a cohort's tiles; whole or not at all."""
    if not place.exists():
        temporary = place.with_name(f".tmp-{place.name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        list(write_folder(temporary, cohort_tiles(cohort, counts, tiles_per_patient=each, first_patient=first)))
        temporary.rename(place)
    return place


def evaluated(
    folder: Path, given: argparse.Namespace, real: Path, test: Path, per_class: int, privacy: Json, *, cnn: bool
) -> Json:
    """The evaluation of a set drawn from these real tiles."""
    model = given.model
    report, noted = folder / "evaluation.json", folder / "asked.json"
    asked = {
        "model": open_model(model).sha256, "per_class": per_class, "privacy": privacy, "sampler": SAMPLER,
        "tiles": GENERATOR_VERSION, "dtype": given.dtype, "stains": CNN_TUNED,
    }  # fmt: skip
    if noted.exists() and json.loads(noted.read_text()) != asked:
        raise SystemExit(f"{folder}: was made of another model or with other settings; name another --out")
    if report.exists() and ((found := dict(json.loads(report.read_text())))["cnn"] or not cnn):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(asked))
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
            "privacy": privacy, "sampler": SAMPLER, "screen": SCREEN, "execution": {"dtype": given.dtype},
            "output": {"path": str(folder / "out"), "shard_size": 60}, "lineage": str(folder / "lineage"), "seed": 7,
        })
    )  # fmt: skip
    call("build", spec, "--local")
    more = ["--lineage", folder / "lineage", *(["--cnn"] if cnn else [])]
    if Path(model).is_dir():
        more += ["--model", model]
    call("evaluate", folder / "out", "--real", real, "--unseen", test, "--seeds", 1, "--report", report, *more)
    return dict(json.loads(report.read_text()))


def over_seeds(values: list[float]) -> str:
    """Mean with its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f} (one seed)"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ({mean - half:.4f} to {mean + half:.4f})"


def learners(found: Json) -> dict[str, Json]:
    """Figures of utility by who learned."""
    spaces = {f"probe in {name}": space["utility"] for name, space in found["spaces"].items()}
    every = {**spaces, "small CNN": found["cnn"]}
    return {
        who: figures for who, figures in every.items() if "arms" in figures
    }  # else nobody learned, or too few were there to test on


def rare(given: argparse.Namespace, test: Path) -> None:
    """Prints the gain on the three rarest classes, a line a seed and learner, then over the seeds."""
    gains: dict[str, list[tuple[float, float]]] = {}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        folder = given.out / f"rare-{seed}"
        real = tiles(folder / "real", "bank", NATURAL, FIRST + STRIDE * seed, 8)
        found = evaluated(folder, given, real, test, given.per_class, MECHANISMS["none"], cnn=not given.no_cnn)
        for who, figures in learners(found).items():
            of_rare, best = figures["gain_rarest"], figures["gain_rarest"]["best_free"]
            over = of_rare["over_best_free"]
            gains.setdefault(who, []).append((over["value"], of_rare["over_real_only"]["value"]))
            rarest = {arm: figures["arms"][arm]["rarest"]["value"] for arm in ("real only", best, "real + synthetic")}
            told = ", ".join(f"{arm} {value:.3f}" for arm, value in rarest.items())
            spread = "" if over.get("interval_95") is None else " ({:+.3f} to {:+.3f})".format(*over["interval_95"])
            print(
                f"seed {seed}, {who}: balanced accuracy of {', '.join(figures['rarest'])}: {told}; over the best free "
                f"{over['value']:+.3f}{spread}",
                flush=True,
            )
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
            found = evaluated(folder, given, real, test, counts[CLASSES[0]], privacy, cnn=False)
            for who, figures in learners(found).items():
                ratio = figures["synthetic_over_real"]
                ratios.setdefault((name, who), []).append(ratio["value"])
                low, high = ratio["interval_95"]
                print(
                    f"seed {seed}, {name}, {who}: synthetic / real only {ratio['value']:.4f} ({low:.4f} to {high:.4f})",
                    flush=True,
                )
    for (name, who), values in ratios.items():
        print(f"mechanism {name}, {who}: synthetic / real only {over_seeds(values)} over {len(values)} cohorts")


def main() -> None:
    """Both parts."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--first-seed", type=int, default=0, help="of rare classes: cohorts from this one on")
    options.add_argument("--mechanism-seeds", type=int, default=3)
    options.add_argument("--per-class", type=int, default=60)
    options.add_argument("--model", default="phantom")
    options.add_argument("--out", type=Path, default=Path("out/utility"))
    options.add_argument("--only", choices=["rare", "mechanisms"])
    options.add_argument("--no-cnn", action="store_true")
    options.add_argument("--dtype", default="float32", help="bfloat16: half the time where a CPU has units for it")
    given = options.parse_args()
    test = tiles(given.out / "test", "heldout", dict.fromkeys(CLASSES, TEST_PATIENTS), TEST_FIRST, 1)
    if given.only != "mechanisms":
        rare(given, test)
    if given.only != "rare":
        mechanisms(given, test)


if __name__ == "__main__":
    main()
