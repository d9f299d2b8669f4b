"""evaluate: how near a set is to real tiles, and what it is worth."""

from __future__ import annotations

import click

from synthfactory.commands.common import fit, out_argument, say


@click.command(short_help="How near a set is to real tiles, and what it is worth (internal).")
@out_argument
@click.option("--real", required=True, help="Real tiles of the cohort: a .parquet bank, or a source with pixels.")
@click.option("--unseen", help="Real tiles of patients that neither the set nor --real has; needed for utility.")
@click.option("--lineage", help="The set's LINEAGE: which drawn tiles rest on one patient, for intervals that hold.")
@click.option(
    "--encoder", "encoders", multiple=True, help="A further encoder to look with (as in embed); may be repeated."
)
@click.option("--model", "model_name", help="The set's model, where it is a folder: its encoder is used.")
@click.option("--seeds", type=click.IntRange(1, 50), default=3, show_default=True, help="Repeats of each probe.")
@click.option("--cnn", is_flag=True, help="Train a small CNN on pixels as well (minutes a seed).")
@click.option("--codecs", help="Study what saving anew does, such as png,jpeg95,jpeg75.")
@click.option("--mixed-codecs", is_flag=True, help="Compare lossless with lossy tiles although the codec shows.")
@click.option("--public", help="A second JSON with nothing but figures, to be published if you decide so.")
@click.option("--report", default="evaluation.json", show_default=True, help="The internal report.")
def evaluate(
    out: str,
    real: str,
    unseen: str | None,
    lineage: str | None,
    encoders: tuple[str, ...],
    model_name: str | None,
    seeds: int,
    cnn: bool,
    codecs: str | None,
    mixed_codecs: bool,
    public: str | None,
    report: str,
) -> None:
    """Compare the set OUT with REAL tiles: distances, precision and recall, and a classifier's gain on UNSEEN patients.

    Everything is looked at in the space of the encoder that conditions the set, and in one of stain and texture that nobody trained.
    Drawn tiles are compared beside other real tiles, at the same numbers. REPORT.parts keeps what was embedded and computed: the same
    command goes on where one was stopped.
    """
    from synthfactory.report.evaluation import render
    from synthfactory.run.evaluate_setup import Asked, evaluated

    named = tuple(part.strip() for part in (codecs or "").split(",") if part.strip())
    asked = Asked(out, real, unseen, encoders, model_name, lineage, seeds, cnn, named, mixed_codecs, public, report)
    found = evaluated(asked, say)
    click.echo("\n".join(fit(line) for line in render(found)))
    click.echo(fit(f"{report}: the whole report; internal, it rests on real data"))
    if public:
        click.echo(fit(f"{public}: figures alone; they are functions of real data too, so publish them by decision"))
