"""pack: real tiles into shards to train from."""

from __future__ import annotations

import click

from synthfactory.commands.common import PLACE, fit, say


@click.command(short_help="Real tiles into shards to train from.")
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("out", metavar="OUT", type=PLACE)
@click.option(
    "--metadata", help="With class folders: CSV of column tile (CLASS/FILE), patient_id, slide_id, site, mpp."
)
@click.option(
    "--label-level",
    type=click.Choice(["slide", "region", "tile"]),
    help="What labels were given to, where SRC does not say it.",
)
@click.option("--mpp", type=click.FloatRange(0, min_open=True), help="um per pixel, where SRC does not say it.")
@click.option("--shard-size", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Tiles per shard.")
def pack(
    source: str, out: str, metadata: str | None, label_level: str | None, mpp: float | None, shard_size: int
) -> None:
    """Pack SRC (class folders, a CSV of tiles, or WebDataset tars) into the folder or URL OUT, byte for byte.

    OUT/shards holds labels and images, OUT/patients who they are of: keep both as safe as the tiles. The same command resumes.
    """
    from synthfactory.embeddings.checks import check_mpp
    from synthfactory.run.embedding import open_tiles
    from synthfactory.run.pack import pack as pack_tiles
    from synthfactory.run.pack_report import render
    from synthfactory.run.progress import Progress

    if mpp is not None:
        check_mpp(mpp, "--mpp")
    tiles = open_tiles(source, metadata, label_level, mpp)
    for text in tiles.warnings:
        say(f"warning: {text}")
    progress = Progress(len(tiles.files), say=say, screened=False)
    try:
        report = pack_tiles(
            tiles, out, mpp=mpp, shard_size=shard_size, say=progress.say, tick=lambda count: progress.tick(count, 0)
        )
    finally:
        progress.close()
    for line in render(report, out):
        click.echo(fit(line))
