"""bags: the bags of a set as files of features."""

from __future__ import annotations

import click

from synthfactory.commands.common import PLACE, fit, out_argument, say
from synthfactory.spec.text import counted


@click.command(short_help="A set's bags as HDF5 features (TRIDENT's layout).")
@out_argument
@click.argument("target", metavar="DIR", type=PLACE)
@click.option("--encoder", help="Encoder to embed with, as in embed (default: that of the set's model).")
@click.option("--encoder-id", help="Name under which the files state a folder or repository as their encoder.")
@click.option("--model", "model_name", help="The set's model, where it is a folder: its encoder is used.")
def bags(out: str, target: str, encoder: str | None, encoder_id: str | None, model_name: str | None) -> None:
    """Embed the tiles of the set OUT bag by bag into DIR: BAG_ID.h5 of each with features (n, E) and coords (n, 2), and labels.csv.

    What `embeddings: {hdf5: DIR, labels: DIR/labels.csv}`, TRIDENT's and CLAM's readers take. Coordinates are invented and mean nothing.
    The same command goes on where it stopped; bags that are there are not made again.
    """
    from synthfactory.run.bagging import exported

    found = exported(out, target, encoder, encoder_id, model_name, say)
    there = found.bags - found.made
    click.echo(
        fit(
            f"{target}: {counted(found.bags, 'bag')} with {counted(found.tiles, 'tile')}, of width {found.width} by {found.encoder}; "
            f"{found.made:,} made now, {there:,} there before"
        )
    )
    if found.short:
        click.echo(fit(f"{counted(found.short, 'bag')} of fewer than {found.size:,} tiles"))
