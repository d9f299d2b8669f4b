"""Makes a bank of conditioning embeddings from features that you have already: a numpy array and a table.

    python examples/bank_from_features.py features.npy tiles.csv bank.parquet --model phantom

features.npy   float (N, E): one row per tile. They must come from the very encoder that the model was trained with: the class token
               as the encoder gives it (not normalised), of 224 px tiles at 0.5 um/px. `synthfactory build` compares id and sha256 of
               the encoder, and refuses a bank of another one, since its directions would mean nothing to the model.
tiles.csv      one line per row, in its order: label, patient_id, slide_id, site where known; label_level unless --label-level gives it.
               label_level says what was labelled: the tile itself, a region around it, or only the whole slide. Leave an id empty
               where it is unknown; all such tiles of a class count as one patient.

Where features come from another program, write down how: --encoder-id and --encoder-sha256 name the encoder instead of --model. The
sha256 is that of the encoder's weight file. A bank is patient data, as the tiles are: keep it where those are kept.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from synthfactory.embeddings.bank import LEVELS
from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import write_bank
from synthfactory.model.folder import open_model
from synthfactory.spec.errors import InputError


def read_table(path: Path, label_level: str | None) -> dict[str, list[str]]:
    """The columns of the CSV. InputError where one is missing."""
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        lines = list(reader)
    columns = ["label", "patient_id", "slide_id"] + ([] if label_level else ["label_level"])
    for column in columns:
        if column not in (reader.fieldnames or ()):
            hint = ", or give --label-level" if column == "label_level" else ""
            raise InputError(f"{path}: has no column '{column}'; add it{hint}")
    table = {column: [(line.get(column) or "").strip() for line in lines] for column in [*columns, "site"]}
    if label_level:
        table["label_level"] = [label_level] * len(lines)
    return table


def make(options: argparse.Namespace) -> None:
    """Checks, writes the bank, prints what it holds."""
    if options.encoder_id:
        encoder = {"id": options.encoder_id, "sha256": options.encoder_sha256, "token": "class"}
    else:
        encoder = open_model(options.model).encoder
    features = np.load(options.features, allow_pickle=False)
    table = read_table(options.table, options.label_level)
    if features.ndim != 2 or len(features) != len(table["label"]):
        raise InputError(f"{options.features}: is {features.shape}; {len(table['label'])} rows are in {options.table}")
    bank = make_bank(
        features,
        table["label"],
        table["label_level"],
        [value or None for value in table["patient_id"]],
        [value or None for value in table["slide_id"]],
        encoder,
        str(options.features),
        sites=table["site"],
    )
    write_bank(options.bank, bank)
    for warning in bank.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    tiles: dict[str, int] = defaultdict(int)
    patients: dict[str, set[str | None]] = defaultdict(set)
    for label, patient in zip(bank.labels, bank.patient_ids, strict=True):
        tiles[label] += 1
        patients[label].add(patient)
    print(f"{options.bank}: {len(bank)} embeddings of width {features.shape[1]} by {encoder['id']}")
    for label, count in sorted(tiles.items()):
        print(f"  {label}: {count} tiles of {len(patients[label])} patients")


def main() -> None:
    """Parses; what the user can mend is one message and status 2."""
    parser = argparse.ArgumentParser(description="Make a bank from an array of embeddings and a table.")
    parser.add_argument("features", type=Path, help="numpy array (N, E)")
    parser.add_argument("table", type=Path, help="CSV with label, patient_id, slide_id, site")
    parser.add_argument("bank", help="parquet file to write (path or URL)")
    parser.add_argument("--label-level", choices=LEVELS, help="for all rows, where the CSV has no such column")
    parser.add_argument("--model", default="phantom", help="model whose encoder made the features (default phantom)")
    parser.add_argument("--encoder-id", help="the encoder's name, instead of --model")
    parser.add_argument("--encoder-sha256", help="sha256 of the encoder's weight file")
    options = parser.parse_args()
    if bool(options.encoder_id) != bool(options.encoder_sha256):
        parser.error("--encoder-id and --encoder-sha256 go together")
    try:
        make(options)
    except (InputError, OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
