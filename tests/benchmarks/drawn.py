"""What drawn tiles give away of whom their conditions are of: the audit's attacks on tiles that the built-in model drew, per mechanism.

    python tests/benchmarks/drawn.py [--patients 50]

Members and others are the bank cohort of `privacy.py`, as many patients of each class on both sides, two tiles of each. Conditions are made
by each mechanism, one tile is drawn after each (ab2, 10 steps), and the tiles' embeddings are attacked as `synthfactory audit` does; beside
it stands what the same attack finds in the conditions themselves. Areas under the curve, over patients of all classes, with 99.9 %
intervals. Embeddings are kept in out/privacy, so that the command goes on where it stopped: some 13 minutes of one core for 600 tiles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from privacy import Cohort, embedded, members_of, mixed, unprotected

from synthfactory.embeddings.vectors import unit
from synthfactory.evaluate.audit import ATTACKS, Drawn, Real, attacks
from synthfactory.model.encoder import encoder_of
from synthfactory.model.folder import open_model
from synthfactory.model.weights import default_device, load_model
from synthfactory.phantom import CLASSES
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Sampler

POOL, BATCH = 600, 16
KEY = b"privacy benchmark"[:16]
MECHANISMS = (
    (None, 2),
    (2, 4),
    (5, 10),
)  # k of a blend (None: embeddings as they are), in how many tiles each patient is


def drawn(conditions: dict[int, np.ndarray], out: Path, name: str) -> dict[int, np.ndarray]:
    """Embeddings of one tile after each condition; kept."""
    engine: Engine | None = None
    found = {}
    for number, given in conditions.items():
        kept = out / f"{name}-{number}.npz"
        if not kept.exists():
            if engine is None:
                folder = open_model("phantom")
                engine = Engine(load_model(folder, encoder_of(folder), default_device()))
            parts = []
            for at in range(0, len(given), BATCH):
                some = given[at : at + BATCH]
                keys = [(number * 1_000_003 + at + turn, 7) for turn in range(len(some))]
                embeddings = engine.begin(some, keys, Sampler(solver="ab2", steps=10), embed=True).wait()[1]
                assert embeddings is not None
                parts.append(np.array(embeddings))
            np.savez(kept, cond=given, drawn=np.concatenate(parts))
            print(f"{name}: {len(given)} tiles of {CLASSES[number]}", flush=True)
        with np.load(kept) as file:
            assert np.array_equal(file["cond"], given), f"{kept} is of other conditions; remove it"
            found[number] = file["drawn"]
    return found


def told(made: dict[int, np.ndarray], members: Real, others: Real) -> str:
    """The area under the curve of every attack."""
    classes = np.concatenate([np.full(len(each), str(number)) for number, each in made.items()])
    areas = [
        attack.area()
        for attack in attacks(Drawn(np.concatenate(list(made.values())), classes), members, others)[""].values()
    ]
    return "  ".join(f"{area.value:.3f} ({area.interval[0]:.3f} to {area.interval[1]:.3f})" for area in areas if area)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=50, help="of each class, members and as many others")
    parser.add_argument("--out", type=Path, default=Path("out/privacy"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = embedded("bank", POOL, options.out, 1)
    members, rest = members_of(pool, POOL, options.patients, 1)
    random = np.random.default_rng(0)
    of_class = [rest[rest // POOL == number] for number in range(len(CLASSES))]
    others = np.concatenate([random.permutation(each)[: options.patients] for each in of_class])
    sides = [_real(pool.of(side)) for side in (members, others)]
    real, model = pool.of(members), open_model("phantom").sha256[:12]
    print(
        f"{len(members)} members, {len(others)} others; attacks on        {'   '.join(f'{name:<22}' for name in ATTACKS)}"
    )
    for k, each in MECHANISMS:
        name = "none" if k is None else f"mix k = {k}"
        made = unprotected(real, each, KEY) if k is None else mixed(real, k, each, KEY)
        tiles = drawn(made, options.out, f"drawn-{k or 'none'}-{each}-{options.patients}-{model}")
        print(f"{name}, each in {each}: conditions  {told(made, *sides)}", flush=True)
        near = np.mean([(unit(made[at]) * unit(tiles[at])).sum(axis=1).mean() for at in made])
        print(f"{name}, each in {each}: tiles       {told(tiles, *sides)}  cosine to conditions {near:.3f}", flush=True)


def _real(cohort: Cohort) -> Real:
    return Real(cohort.x, cohort.patients, cohort.classes.astype(str))


if __name__ == "__main__":
    main()
