"""phantom shards, tiles, bank: invented tissue to try things on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from synthfactory.commands.common import say


@click.group(short_help="Make invented tissue: shards, tiles, banks.")
def phantom() -> None:
    """Make invented H&E-like tissue: training shards, folders of tiles, banks."""


cohort_option = click.option(
    "--cohort",
    type=click.Choice(["train", "bank", "heldout"]),
    required=True,
    help="Disjoint sets of invented patients.",
)
count_option = click.option(
    "--per-class", type=click.IntRange(1), help="Tiles of each class (default: imbalanced, 400 200 100 50 25 12)."
)


def _refs(cohort: str, per_class: int | None) -> Any:
    from synthfactory.phantom import CLASSES, SHIPPED_COUNTS, cohort_tiles

    return cohort_tiles(cohort, dict.fromkeys(CLASSES, per_class) if per_class else SHIPPED_COUNTS)


@phantom.command()
@click.argument("folder")
@cohort_option
@count_option
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, show_default="cores", help="Processes.")
def shards(folder: str, cohort: str, per_class: int | None, workers: int) -> None:
    """Write WebDataset shards with labels, patients and structure maps, for synthfactory-train."""
    from synthfactory.phantom import write_shards

    _drawn(folder, _refs(cohort, per_class), lambda out, refs: write_shards(out, refs, workers=workers))


@phantom.command()
@click.argument("folder")
@cohort_option
@count_option
def tiles(folder: str, cohort: str, per_class: int | None) -> None:
    """Write CLASS/KEY.png and tiles.csv, as embeddings.tiles and embeddings.metadata take them."""
    from synthfactory.phantom import write_folder

    _drawn(folder, _refs(cohort, per_class), write_folder)


def _drawn(folder: str, refs: Any, write: Any) -> None:
    from synthfactory.run.progress import Progress

    progress = Progress(len(refs), say=say, screened=False)
    for count in write(Path(folder), refs):
        progress.tick(count, 0)
    progress.close()
    click.echo(f"{folder}: {len(refs):,} tiles")


@phantom.command()
@click.argument("file")
@cohort_option
@count_option
@click.option(
    "--model", "model_name", default="phantom", show_default=True, help="Model whose encoder embeds the tiles."
)
def bank(file: str, cohort: str, per_class: int | None, model_name: str) -> None:
    """Write a parquet bank: one embedding per tile of the cohort, with label, patient and slide."""
    from synthfactory.run.phantom_bank import write_phantom_bank

    click.echo(write_phantom_bank(file, _refs(cohort, per_class), model_name, say))
