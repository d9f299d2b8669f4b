"""doctor: can a build work here?"""

from __future__ import annotations

import sys

import click

from synthfactory.commands.common import EXIT_FAULT, PLACE


@click.command(short_help="Can a build work here?")
@click.argument("spec_file", metavar="[SPEC.yaml]", required=False, type=PLACE)
@click.option("--no-ray", is_flag=True, help="Leave Ray out, where builds run with --local or on another machine.")
def doctor(spec_file: str | None, no_ray: bool) -> None:
    """Check device, memory, Ray, places, the Hub's token and gates, and accepted licences. One line each; status 1 where one fails."""
    from synthfactory.run.doctor import examine
    from synthfactory.spec.load import load_spec

    failed = False
    for check in examine(load_spec(spec_file) if spec_file else None, ray=not no_ray):
        click.echo(check.line())
        failed = failed or check.level == "fail"
    if failed:
        sys.exit(EXIT_FAULT)
