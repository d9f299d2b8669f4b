"""embed: real tiles once into a bank of embeddings."""

from __future__ import annotations

from typing import Any

import click

from synthfactory.commands.common import PLACE, fit, say


@click.command(short_help="Embed real tiles once, into a bank.")
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("target", metavar="OUT.parquet", type=PLACE)
@click.option(
    "--encoder", help="Encoder: h0-mini, hf://OWNER/REPO@REV, a folder, or a model that has one (default: phantom)."
)
@click.option(
    "--encoder-id",
    help="Name under which the bank states a folder or repository as its encoder (default: h0-mini where it is one).",
)
@click.option("--metadata", help="With class folders: CSV of column tile (CLASS/FILE), patient_id, slide_id, mpp.")
@click.option(
    "--label-level",
    type=click.Choice(["slide", "region", "tile"]),
    help="What labels were given to, where SRC does not say it.",
)
@click.option("--mpp", type=click.FloatRange(0, min_open=True), help="um per pixel, where SRC does not say it.")
@click.option("--workers", type=click.IntRange(1, 100_000), help="Number of workers (default: one per GPU, or core).")
@click.option("--address", help="Ray cluster to run on, such as auto or HOST:6379 (default: Ray on this machine).")
@click.option("--local", is_flag=True, help="Work in this process, without Ray; the bytes are the same.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads per worker.")
def embed(
    source: str,
    target: str,
    encoder: str | None,
    encoder_id: str | None,
    metadata: str | None,
    label_level: str | None,
    mpp: float | None,
    workers: int | None,
    address: str | None,
    local: bool,
    threads: int,
) -> None:
    """Embed SRC (class folders, a CSV of tiles, or WebDataset tars) into a parquet bank. The same command resumes.

    The bank names encoder, sha256, token and preprocessing, and holds what embeddings.screen looks at.
    """
    from synthfactory.run import embedding
    from synthfactory.run.progress import Progress

    if local and (address or workers):
        raise click.UsageError("--local works in this one process; leave out --address and --workers")
    embedding.check_target(target)
    tiles = embedding.open_tiles(source, metadata, label_level, mpp)
    for text in tiles.warnings:
        say(f"warning: {text}")
    progress = Progress(len(tiles.files), say=say, screened=False)

    def make_pool(setup: Any) -> Any:
        if local:
            return embedding.LocalEmbedPool(setup)
        from synthfactory.run.ray_embed import RayEmbedPool

        return RayEmbedPool(setup, workers=workers, address=address)

    try:
        made = embedding.embed(
            tiles,
            target,
            encoder or "phantom",
            encoder_id=encoder_id,
            threads=threads,
            make_pool=make_pool,
            say=progress.say,
            tick=lambda count: progress.tick(count, 0),
        )
    finally:
        progress.close()
    click.echo(fit(f"{target}: {len(tiles.files):,} embeddings of width {made.width} by {made.id}"))
