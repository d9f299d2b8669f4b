"""phantom shards, tiles, bank: invented tissue to try things on."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import click

from synthfactory.commands.common import PLACE, say
from synthfactory.spec.errors import InputError


@click.group(short_help="Make invented tissue: shards, tiles, banks.")
def phantom() -> None:
    """Make invented H&E-like tissue: training shards, folders of tiles, banks."""


def _tiles_of(command: Any) -> Any:
    """Options that say which tiles, handed to the command as `refs`."""

    @functools.wraps(command)
    def made(cohort: str, per_class: int | None, only: tuple[str, ...], first_patient: int, **rest: Any) -> Any:
        return command(refs=_refs(cohort, per_class, only, first_patient), **rest)

    options = (
        click.option(
            "--cohort",
            type=click.Choice(["train", "bank", "heldout"]),
            required=True,
            help="Disjoint sets of invented patients.",
        ),
        click.option(
            "--per-class",
            type=click.IntRange(1),
            help="Tiles of each class (default: imbalanced, 400 200 100 50 25 12).",
        ),
        click.option("--class", "only", multiple=True, metavar="NAME", help="Only this class; several times for more."),
        click.option(
            "--first-patient",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Number of each class's first patient.",
        ),
    )
    for option in reversed(options):
        made = option(made)
    return made


def _refs(cohort: str, per_class: int | None, only: tuple[str, ...], first_patient: int) -> Any:
    from synthfactory.phantom import CLASSES, SHIPPED_COUNTS, cohort_tiles

    for name in only:
        if name not in CLASSES:
            raise InputError(f"--class {name}: is none of {', '.join(CLASSES)}")
    counts = {name: per_class or count for name, count in SHIPPED_COUNTS.items() if not only or name in only}
    return cohort_tiles(cohort, counts, first_patient=first_patient)


@phantom.command(short_help="Write WebDataset shards to train from.")
@click.argument("folder", type=PLACE)
@_tiles_of
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, show_default="cores", help="Processes.")
def shards(folder: str, refs: Any, workers: int) -> None:
    """Write WebDataset shards with labels, patients and structure maps, for synthfactory-train."""
    from synthfactory.phantom import write_shards

    _drawn(folder, refs, lambda out, refs: write_shards(out, refs, workers=workers))


@phantom.command(short_help="Write class folders of tiles and tiles.csv.")
@click.argument("folder", type=PLACE)
@_tiles_of
def tiles(folder: str, refs: Any) -> None:
    """Write CLASS/KEY.png and tiles.csv, as embeddings.tiles and embeddings.metadata take them."""
    from synthfactory.phantom import write_folder

    _drawn(folder, refs, write_folder)


def _drawn(folder: str, refs: Any, write: Any) -> None:
    from synthfactory.run.around import check_outside
    from synthfactory.run.progress import Progress

    check_outside(folder)
    progress = Progress(len(refs), say=say, screened=False)
    for count in write(Path(folder), refs):
        progress.tick(count, 0)
    progress.close()
    click.echo(f"{folder}: {len(refs):,} tiles")


@phantom.command(short_help="Write a parquet bank of embedded tiles.")
@click.argument("file", type=PLACE)
@_tiles_of
@click.option(
    "--model", "model_name", default="phantom", show_default=True, help="Model whose encoder embeds the tiles."
)
def bank(file: str, refs: Any, model_name: str) -> None:
    """Write a parquet bank: one embedding per tile of the cohort, with label, patient and slide."""
    from synthfactory.run.embedding import check_target
    from synthfactory.run.phantom_bank import write_phantom_bank

    check_target(file)
    click.echo(write_phantom_bank(file, refs, model_name, say))
