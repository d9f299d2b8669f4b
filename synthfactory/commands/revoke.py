"""revoke: what of a set rests on a patient, and a set without it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import click

from synthfactory.commands.common import EXIT_INCOMPLETE, EXIT_TO_GO_ON, PLACE, fit, open_set, open_spec, say, with_bank
from synthfactory.embeddings.places import local as local_path
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.text import shown


@click.command(short_help="Take a patient out of a set.")
@click.argument("target", metavar="SPEC.yaml | OUT", type=PLACE)
@click.option("--patient", required=True, help="The patient's id, as the bank spells it.")
@click.option("--lineage", help="With OUT: the lineage folder of its build.")
@click.option(
    "--yes", is_flag=True, help="Take back the tiles and draw others (needs the spec); without it, only list."
)
@click.option(
    "--no-tile",
    is_flag=True,
    help="With --yes, where nothing rests on the patient: the id is spelt right; go on with the bank as it is now.",
)
@click.option(
    "--models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to look through for models that were trained on the set, and for runs that learnt from the patient; may be given "
    "several times.",
)
@click.option("--local", is_flag=True, help="Draw in this process, without Ray.")
def revoke(
    target: str, patient: str, lineage: str | None, yes: bool, no_tile: bool, models: tuple[Path, ...], local: bool
) -> None:
    """List what of a set rests on a patient who withdraws consent; with --yes, take it back and draw it anew.

    First take the patient's rows out of the bank. Copies that were handed on are not reached.
    """
    from synthfactory.run.revoking import UNDER_DP, models_on, nearest, resting_on, runs_on
    from synthfactory.shards.store import open_store

    if not patient.strip():
        raise InputError("--patient: is empty; give the id as the bank spells it")
    out, beside, is_spec = _places(target, lineage)
    standing = open_set(out)
    for folder, how in models_on(standing.lock, models):
        click.echo(fit(f"model {folder}: {how}; what it learnt stays in it: retrain it, or withdraw it"))
    for folder in runs_on(patient, models):
        click.echo(
            fit(
                f"run {folder}: learnt from the patient, and so did what was exported of it: retrain it without, or withdraw it"
            )
        )
    says = standing.lock["recipe"]["privacy"]
    if says["mechanism"] == "dp":
        click.echo(fit(UNDER_DP.format(factor=math.exp(says["epsilon"]), **says)))
        return
    found = resting_on(patient, standing, open_store(beside))
    for name, keys in sorted(found.tiles.items()):
        for key in keys:
            click.echo(f"{name}  {key}")
    tiles = f"{found.count} tile{'s' * (found.count != 1)} of {len(found.shards)} shard{'s' * (len(found.shards) != 1)}"
    click.echo(fit(f"{tiles} rest on the patient, and {found.dropped} candidates that were dropped"))
    if not (found.names or found.stale):
        click.echo(fit(f"nothing that was drawn names a patient of this id{nearest(patient, found)}"))
    if found.names - {patient}:
        spellings = ", ".join(shown(json.dumps(name, ensure_ascii=False)) for name in sorted(found.names))
        click.echo(fit(f"names that were taken for the patient's, for case, spaces or form of letters: {spellings}"))
    if found.nameless:
        click.echo(
            fit(
                f"of {found.nameless} tiles the bank did not name a patient: whether they rest on this one, nobody can tell"
            )
        )
    if not yes:
        click.echo("nothing was changed; --yes, with the spec, takes them back and draws others")
        return
    if not is_spec:
        raise InputError(f"{target}: is a set; tiles are drawn anew by its spec, so name that: revoke SPEC.yaml --yes")
    _withdrawn(target, patient, local, no_tile)


def _places(target: str, lineage: str | None) -> tuple[str, str, bool]:
    """(OUT, LINEAGE, whether `target` is a spec)."""
    if not is_url(target) and not local_path(target).is_dir():
        from synthfactory.spec.load import load_spec

        spec = load_spec(target)
        return spec.output.path, spec.lineage, True
    if lineage is None:
        raise InputError(f"{target}: a set does not say what it rests on; add --lineage, or name its spec instead")
    return target, lineage, False


def _withdrawn(spec_file: str, patient: str, local: bool, no_tile: bool) -> None:
    from synthfactory.commands.build import pool_maker
    from synthfactory.run import driver
    from synthfactory.run.result import summary
    from synthfactory.run.revoking import check_gone, withdraw

    prepared = open_spec(spec_file)
    check_gone(patient, prepared)
    for line in withdraw(patient, with_bank(prepared), no_tile=no_tile):
        say(line)
    prepared = with_bank(open_spec(spec_file))  # opened anew: what was mapped of the bank went with the cache
    result = driver.build(prepared, pool_maker(local, None, None), say=say)
    for line in summary(result, prepared.spec.output.path):
        click.echo(fit(line))
    click.echo(
        fit(
            "not reached: copies that were handed on, and what was made from the set before: previews, features of bags, audits and "
            "evaluations (with their .parts folders), reader studies, pages for boards, trained models; delete them or make them anew"
        )
    )
    if not result.complete:
        sys.exit(EXIT_TO_GO_ON if result.to_go_on else EXIT_INCOMPLETE)
