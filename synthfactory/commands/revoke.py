"""revoke: what of a set rests on a patient, and a set without it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from synthfactory.commands.common import EXIT_INCOMPLETE, fit, open_spec, say, spec_argument, with_bank


@click.command(short_help="Take a patient out of a set.")
@spec_argument
@click.option("--patient", required=True, help="The patient's id, as the bank spells it.")
@click.option("--yes", is_flag=True, help="Take back the tiles and draw others; without it, only list.")
@click.option(
    "--models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to look through for models that were trained on the set; may be given several times.",
)
@click.option("--local", is_flag=True, help="Draw in this process, without Ray.")
def revoke(spec_file: str, patient: str, yes: bool, models: tuple[Path, ...], local: bool) -> None:  # fmt: skip
    """List what of the spec's set rests on a patient who withdraws consent; with --yes, take it back and draw it anew.

    First take the patient's rows out of the bank. Copies that were handed on are not reached.
    """
    from synthfactory.commands.build import pool_maker
    from synthfactory.run import driver
    from synthfactory.run.prepare import standing_of
    from synthfactory.run.revoking import UNDER_DP, check_gone, models_on, resting_on, withdraw
    from synthfactory.shards.store import open_store
    from synthfactory.spec.load import load_spec

    spec = load_spec(spec_file)
    standing = standing_of(spec)
    if standing.lock is None:
        raise spec.error("output.path", "holds no set yet, so nothing rests on anybody")
    for folder, how in models_on(standing.lock, models):
        click.echo(fit(f"model {folder}: {how}; what it learnt stays in it: retrain it, or withdraw it"))
    says = standing.lock["recipe"]["privacy"]
    if says["mechanism"] == "dp":
        click.echo(fit(UNDER_DP.format_map(says)))
        return
    found = resting_on(patient, standing, open_store(spec.lineage))
    for name, keys in sorted(found.tiles.items()):
        for key in keys:
            click.echo(f"{name}  {key}")
    tiles = f"{found.count} tile{'s' * (found.count != 1)} of {len(found.shards)} shard{'s' * (len(found.shards) != 1)}"
    click.echo(fit(f"{tiles} rest on the patient, and {found.dropped} candidates that were dropped"))
    if not yes:
        click.echo("nothing was changed; --yes takes them back and draws others")
        return
    prepared = open_spec(spec_file)
    check_gone(patient, prepared)
    prepared = with_bank(prepared)
    check_gone(patient, prepared)
    for line in withdraw(patient, prepared, standing):
        say(line)
    result = driver.build(with_bank(open_spec(spec_file)), pool_maker(local, None, None), say=say)
    for line in driver.summary(result, spec.output.path):
        click.echo(fit(line))
    if not result.complete:
        sys.exit(EXIT_INCOMPLETE)
