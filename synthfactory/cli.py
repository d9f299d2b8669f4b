"""The command line. Bad input ends with one message and status 2, never a traceback.

Exit codes: 0 done; 1 a fault was found, or something failed; 2 bad input; 3 built, but not complete, or a control of `audit` failed;
4 stopped before the end: the same command may get further; 130 interrupted.
"""

from __future__ import annotations

import json
import os
from typing import NoReturn
from urllib.parse import urlsplit

import click

from synthfactory.commands import build as making
from synthfactory.commands import sets
from synthfactory.commands.audit import audit
from synthfactory.commands.bags import bags
from synthfactory.commands.calibrate import calibrate
from synthfactory.commands.common import end_with
from synthfactory.commands.doctor import doctor
from synthfactory.commands.embed import embed
from synthfactory.commands.evaluate import evaluate
from synthfactory.commands.init import init
from synthfactory.commands.model import model
from synthfactory.commands.pack import pack
from synthfactory.commands.phantom import phantom
from synthfactory.commands.privacy import privacy
from synthfactory.commands.reader import reader_study
from synthfactory.commands.revoke import revoke
from synthfactory.spec.errors import InputError

# Read when torch is loaded: threads that wait by spinning slow everything where builds or other processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="synthfactory")
def cli() -> None:
    """Labelled synthetic H&E tile sets from one YAML spec.

    \b
    synthfactory init SRC SPEC.yaml  a first spec, from your tiles or embeddings
    synthfactory plan SPEC.yaml      what a build would make, and its cost
    synthfactory pilot SPEC.yaml     a few tiles of each class, to look at first
    synthfactory build SPEC.yaml     makes the set; the same command resumes
    synthfactory verify OUT          every byte checked
    """


@cli.command(short_help="The JSON Schema of a spec.")
def schema() -> None:
    """Print the JSON Schema of a spec, for editors that complete and check YAML."""
    from synthfactory.spec.jsonschema import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


for command in (
    init,
    making.plan,
    making.build,
    making.pilot,
    making.submit,
    calibrate,
    pack,
    sets.verify,
    sets.status,
    sets.gc,
    sets.preview,
    sets.ethics,
    audit,
    evaluate,
    reader_study,
    bags,
    embed,
    phantom,
    model,
    doctor,
    privacy,
    revoke,
):
    cli.add_command(command)


def _check_environment() -> None:
    """InputError where HF_ENDPOINT is no address: the Hub's own package would end in a traceback as it is loaded."""
    try:
        urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError as error:
        raise InputError(
            f"HF_ENDPOINT: is no address ({error}); correct it, or take it out of the environment"
        ) from None


def main() -> NoReturn:
    """Entry point."""

    def start() -> object:
        _check_environment()
        return cli.main(prog_name="synthfactory", standalone_mode=False)

    end_with(start)


if __name__ == "__main__":
    main()
