"""init: a first spec, drafted from a source of embeddings."""

from __future__ import annotations

from pathlib import Path

import click

from synthfactory.commands.common import PLACE, fit, say
from synthfactory.spec.errors import InputError


@click.command(short_help="Draft a first spec from your tiles or embeddings.")
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("target", metavar="SPEC.yaml", type=PLACE)
@click.option(
    "--model", help="Model that draws: phantom, cytosyn, or a folder (default: what SRC's encoder goes with)."
)
@click.option("--labels", help="With features or arrays: CSV of label and patient_id of each slide, or of each row.")
@click.option(
    "--metadata", help="With class folders: CSV of tile, patient_id (default: SRC/tiles.csv, if it is there)."
)
@click.option("--encoder", help="Who made the embeddings, where SRC does not say it, such as h0-mini.")
@click.option(
    "--label-level",
    type=click.Choice(["slide", "region", "tile"]),
    help="What labels were given to, where SRC does not say it.",
)
@click.option("--token", type=click.Choice(["first_768"]), help="Features of 1536 values: the first 768 are taken.")
@click.option("--mpp", type=click.FloatRange(0, min_open=True), help="um per pixel, where SRC does not say it.")
@click.option(
    "--tiles", type=click.IntRange(1, 10**9), default=100, show_default=True, help="Tiles to draw of each class."
)
def init(
    source: str,
    target: str,
    model: str | None,
    labels: str | None,
    metadata: str | None,
    encoder: str | None,
    label_level: str | None,
    token: str | None,
    mpp: float | None,
    tiles: int,
) -> None:
    """Draft SPEC.yaml from SRC: a parquet bank, class folders, WebDataset tars, a packed set, HDF5 features, or an array.

    Every label becomes a class, with its tiles and patients beside it; the rest is commented. Nothing is written over.
    """
    from synthfactory.run.around import check_new
    from synthfactory.run.starting import Asked, draft

    path = Path(target)
    check_new(path, "SPEC.yaml", "a spec")
    if not path.parent.is_dir():
        raise click.UsageError(f"{path.parent}: no such folder; make it first")
    made = draft(source, target, Asked(labels, metadata, model, encoder, label_level, token, mpp, tiles))
    try:
        path.write_text(made.text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None
    click.echo(fit(f"{target}: {len(made.classes)} classes, {tiles * len(made.classes):,} tiles to draw"))
    if not made.checked:
        say("model and source were not opened: the model is of the Hub")
    click.echo(f"next: synthfactory {'plan' if made.checked else 'doctor'} {target}")
