"""Shows which patients stand behind which tiles, and why tiles were dropped, from a build's lineage folder.

    python examples/inspect_lineage.py out/demo out/demo-lineage

NEVER PUBLISH what this prints, nor the lineage folder: it names patients. It is for whoever holds the real data: to see whether a class
rests on few patients, or to find every tile that a patient stands behind, should that patient withdraw consent.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from typing import Any

import pyarrow.parquet as pq

from synthfactory.shards.commit import list_commits
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError

WARNING = "INTERNAL: what follows names patients. Do not publish it, nor the lineage folder."


def candidates(out: str, lineage: str) -> list[dict[str, Any]]:
    """Every candidate that was drawn for the set as it stands: a row of LINEAGE/units/SHARD-<sha12>.parquet.

    A build that lost a race, or a shard that was damaged and drawn anew, may have left other files there: the commit of a shard says
    which tar counts, and the lineage of that tar carries the first 12 digits of its sha256.
    """
    store = open_store(lineage)
    rows: list[dict[str, Any]] = []
    for shard, commit in list_commits(open_store(out)).items():
        with store.open(f"units/{shard:06d}-{commit.body['tar']['sha256'][:12]}.parquet") as handle:
            # Without threads: those that read a Python file may still run when the process ends, and then abort it.
            rows += pq.ParquetFile(handle, pre_buffer=False).read(use_threads=False).to_pylist()
    return rows


def patients_of(row: dict[str, Any]) -> list[str]:
    """Whose tiles a candidate rests on: one patient, k patients of a blend, or nobody in particular."""
    return [part["patient_id"] or "(unknown)" for part in row["sources"]]


def tiles_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """class -> patient -> keys of the published tiles."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["accepted"]:
            for patient in patients_of(row):
                found[row["class_name"]][patient].append(row["key"])
    return found


def main() -> None:
    """Parses, reads, prints; a reader that has had enough (`| head`) is no error."""
    try:
        report()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report() -> None:
    """What `main` prints."""
    parser = argparse.ArgumentParser(description="Patients behind tiles, and reasons for rejects. Internal.")
    parser.add_argument("out", help="the set (path or URL)")
    parser.add_argument("lineage", help="the lineage folder of its build (path or URL)")
    parser.add_argument("--patient", help="list the tiles that this patient stands behind")
    options = parser.parse_args()
    try:
        rows = candidates(options.out, options.lineage)
    except (InputError, FileNotFoundError) as error:
        parser.error(f"{options.lineage} is not the lineage of {options.out}: {error}")
    if not rows:
        parser.error(f"{options.out} holds no committed shard")
    print(WARNING)
    behind = tiles_of(rows)
    if options.patient:
        if not any(options.patient in patients_of(row) for row in rows):
            raise SystemExit(
                f"no patient {options.patient} stands behind any candidate of {options.out}: check how it is written"
            )
        if not any(options.patient in patients for patients in behind.values()):
            print(f"{options.patient} stands behind no published tile, only behind candidates that were dropped")
        for name, patients in sorted(behind.items()):
            for key in patients.get(options.patient, []):
                print(f"{name}  {key}")
        return
    drawn = Counter(row["class_name"] for row in rows)
    for name in sorted(drawn):
        patients = behind[name]
        tiles = sum(row["accepted"] for row in rows if row["class_name"] == name)
        print(
            f"\n{name}: {tiles} tiles kept of {drawn[name]} drawn, {len(patients)} patient{'s' * (len(patients) != 1)}"
        )
        for patient, keys in sorted(patients.items(), key=lambda item: (-len(item[1]), item[0]))[:10]:
            print(f"  {len(keys):>5} tiles  {patient}")
        if len(patients) > 10:
            print(f"        and {len(patients) - 10} other patients")
        reasons = Counter(reason for row in rows if row["class_name"] == name for reason in row["reasons"])
        for reason, count in reasons.most_common():
            print(f"  {count:>5} dropped  {reason}")


if __name__ == "__main__":
    main()
