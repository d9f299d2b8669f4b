"""audit: does a set tell who its conditions came from?"""

from __future__ import annotations

import math
import sys

import click

from synthfactory.commands.common import EXIT_INCOMPLETE, fit, out_argument, say
from synthfactory.spec.errors import InputError


@click.command(short_help="Does a set tell who it was made from? (internal)")
@out_argument
@click.option(
    "--members", required=True, help="Real tiles that the set was made from: a .parquet bank, or a source with pixels."
)
@click.option("--holdout", required=True, help="Real tiles of other patients of the same kind, at best as many.")
@click.option(
    "--encoder", help="Encoder to look with (as in embed), at best not the one that the set is conditioned on."
)
@click.option("--encoder-id", help="Name under which banks state a folder or repository as their encoder.")
@click.option(
    "--model", "model_name", help="The set's model, where it is a folder: its encoder is used without --encoder."
)
@click.option(
    "--mechanism",
    type=click.Choice(["none", "mix", "dp"]),
    help="What the conditions went through (default: as the lock says).",
)
@click.option("--epsilon", type=click.FloatRange(0, min_open=True), help="With --mechanism dp: what it promises.")
@click.option("--delta", type=click.FloatRange(0, 1, max_open=True), help="With --mechanism dp: its delta.")
@click.option(
    "--lineage", help="The set's lineage folder: members are then those that its tiles rest on, not all of --members."
)
@click.option(
    "--report",
    default="audit.json",
    show_default=True,
    help="The internal report: names tiles of patients, never published.",
)
def audit(
    out: str,
    members: str,
    holdout: str,
    encoder: str | None,
    encoder_id: str | None,
    model_name: str | None,
    mechanism: str | None,
    epsilon: float | None,
    delta: float | None,
    lineage: str | None,
    report: str,
) -> None:
    """Look in the set OUT for copies of its MEMBERS, and try to tell from it who they were, beside a HOLDOUT of other patients.

    Sources with pixels: class folders with a tiles.csv, a CSV, tars, a packed set. Two controls come first: planted copies must be
    found, and a set drawn from the holdout must look innocent. Where one fails there is no report, and the status is 3. An audit that
    finds nothing proves nothing.
    """
    from synthfactory.report.audit import render, render_controls
    from synthfactory.run.audit_setup import Asked, audited
    from synthfactory.run.auditing import UnfitError

    for option, value in (("--epsilon", epsilon), ("--delta", delta)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{option} {value}: is no finite number; write what the mechanism promises")
    asked = Asked(out, members, holdout, encoder, encoder_id, model_name, mechanism, epsilon, delta, report, lineage)
    try:
        found = audited(asked, say)
    except UnfitError as error:
        click.echo("\n".join(render_controls(error.controls)))
        say(f"no report: {error}")
        sys.exit(EXIT_INCOMPLETE)
    click.echo("\n".join(fit(line) for line in render(found)))
    click.echo(fit(f"{report}: the whole report; internal, it names tiles of real patients"))
