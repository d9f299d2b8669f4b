"""Are planted copies found, and real tiles left alone? The audit's own control, on phantom tiles, with many copies.

    python tests/benchmarks/planted_copies.py [--members 2000] [--holdout 4400] [--copies 2400]

Members are of the cohort `bank`, the holdout of `heldout`: disjoint invented patients, other ones than the shortlists were set on. Half of
the holdout's patients set the threshold, the tiles of the rest are the tests of false alarms. Prints shares with 99.9 % intervals.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from synthfactory.evaluate.audit import Drawn, Real, threshold
from synthfactory.model.encoder import open_encoder
from synthfactory.model.weights import load_encoder
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.run import auditing
from synthfactory.run.audit_tiles import DrawnTiles, Source, embedded

FIRST_PATIENT = 6000


def source_of(cohort: str, count: int, embed: object) -> Source:
    """Tiles of a cohort, as many of each class."""
    refs = cohort_tiles(cohort, dict.fromkeys(CLASSES, -(-count // len(CLASSES))), 8, first_patient=FIRST_PATIENT)
    tiles = [ref.render()[0] for ref in refs]
    vectors, prints = embedded(iter(tiles), embed, len(tiles[0]))  # type: ignore[arg-type]
    patients, classes = (
        np.array(names) for names in zip(*((r.patient.patient_id, r.patient.class_name) for r in refs), strict=True)
    )
    return Source(cohort, Real(vectors, patients, classes), tiles.__getitem__, prints)


def main() -> None:
    """Prints what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--members", type=int, default=2000)
    options.add_argument("--holdout", type=int, default=4400)
    options.add_argument("--copies", type=int, default=2400)
    given = options.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    embed = load_encoder(open_encoder("phantom")).embed
    members, holdout = source_of("bank", given.members, embed), source_of("heldout", given.holdout, embed)
    auditing.PLANTS, auditing.PIXEL_TILES = given.copies, given.holdout + len(CLASSES)
    some = np.arange(len(CLASSES))
    drawn = Drawn(members.real.embeddings[some], np.array(CLASSES))  # no figure of a set is asked for
    assert members.fingerprints is not None
    tiles = DrawnTiles(drawn, [str(n) for n in some], lambda: map(members.pixels, some), members.fingerprints[some])  # type: ignore[arg-type]
    audit = auditing.Audit(tiles, members, holdout, embed, 224)
    _, (rows, scores) = audit._scores()
    limit = threshold(scores, holdout.real.of(rows), auditing.SEED)
    found = audit._planted(limit)
    alarms, (low, high) = found["false_alarms"], found["found_999"]
    print(f"planted copies found: {found['found']:.2%} of {found['planted']:,} ({low:.2%} to {high:.2%} at 99.9 %)")
    print(f"of these, the very original named: {found['named_the_right_tile']:.2%}")
    for name, share in found["by_change"].items():
        print(f"  {name}: {share:.2%}")
    one, other = alarms["interval_999"]
    print(f"false alarms: {alarms['value']:.2%} of {alarms['n']:,} real tiles ({one:.2%} to {other:.2%} at 99.9 %)")
    print(f"threshold {limit.limit if limit else float('nan'):.3f}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
