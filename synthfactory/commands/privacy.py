"""privacy: what differential privacy needs beside a spec: a public projection, and the ledger of what was given away."""

from __future__ import annotations

from pathlib import Path

import click

from synthfactory.commands.common import PLACE
from synthfactory.spec.errors import InputError


@click.group(short_help="Projection and ledger of mechanism dp.")
def privacy() -> None:
    """What `privacy: {mechanism: dp}` needs beside a spec."""


@privacy.command(short_help="Make a projection from public embeddings.")
@click.argument("bank", type=PLACE)
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Safetensors file to write.",
)
@click.option("--provenance", required=True, help="Whose data this is, in words; plans, locks and cards repeat it.")
@click.option(
    "--model", "model_name", default="phantom", show_default=True, help="The model whose embeddings they are."
)
@click.option(
    "--dimension", type=click.IntRange(1, 32), default=16, show_default=True, help="Directions that are kept."
)
def fit(bank: str, target: Path, provenance: str, model_name: str, dimension: int) -> None:
    """Make a projection from BANK, a parquet bank of PUBLIC embeddings: no noise covers what is read here."""
    import numpy as np
    from safetensors import SafetensorError

    from synthfactory.embeddings.parquet import load_bank
    from synthfactory.model.find import find_model
    from synthfactory.privacy.projection import fit_projection
    from synthfactory.run.around import check_new
    from synthfactory.spec.model import model_named

    check_new(target, "-o", "a projection")
    if not provenance.strip() or not provenance.isprintable():
        raise InputError(
            "--provenance: is empty or cannot be printed; say in one line whose public data this is, for example 'TCGA, open access'"
        )
    model = find_model(model_named(model_name))
    rows = load_bank(bank, width=model.condition_width, encoder=dict(model.encoder), classes=None)
    try:
        made = fit_projection(
            np.asarray(rows.embeddings), np.asarray(rows.labels), dict(rows.encoder), provenance, dimension
        )
    except ValueError as error:
        raise InputError(f"{bank}: {error}") from None
    try:
        made.save(target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"-o {target}: cannot be written ({error}); name another file") from None
    click.echo(
        f"{target}:\n{made.dimension} directions of {made.width}, from {len(rows):,} embeddings of {len(set(rows.labels))} classes\n"
        f"classes lie {made.between:.2f} clips apart; sha256 {made.sha256[:12]}"
    )


@privacy.command(short_help="What each cohort has given away.")
@click.argument("ledger", type=PLACE)
@click.option("--cohort", help="Only this one.")
@click.option("--delta", type=float, default=1e-6, show_default=True, help="At which releases are added up.")
def ledger(ledger: str, cohort: str | None, delta: float) -> None:
    """Print the releases in LEDGER, cohort by cohort, and what they come to together."""
    from synthfactory.privacy.ledger import Ledger, cohorts, lines
    from synthfactory.shards.store import open_store

    if not 0 < delta < 1:
        raise InputError(f"--delta {delta:g}: lies between 0 and 1, for example 1e-6")
    store = open_store(ledger, reading=True)
    try:
        names = cohorts(store)
    except OSError as error:
        raise InputError(
            f"{ledger}: cannot be read ({error.strerror or error}); name the folder or URL of a ledger"
        ) from None
    if cohort is not None and cohort not in names:
        raise InputError(f"{ledger}: holds no release of cohort '{cohort}'; it has {', '.join(names) or 'none at all'}")
    if not names:
        click.echo(f"{ledger}: no release yet")
    for name in names if cohort is None else [cohort]:
        click.echo(name)
        for line in lines(Ledger(store, name), delta):
            click.echo(f"  {line}")
