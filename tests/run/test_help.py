"""What -h says, and what shells complete."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from synthfactory.cli import cli
from train.cli import cli as train_cli


def commands(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below, with its names."""
    yield names, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *names, name)


EVERY = [*commands(cli, "synthfactory"), *commands(train_cli, "synthfactory-train")]


GROUPS = {" ".join(names): command for names, command in EVERY if isinstance(command, click.Group)}


@pytest.mark.parametrize("name", GROUPS)
def test_what_a_command_does_is_said_whole_in_80_columns(name: str) -> None:
    said = click.Context(GROUPS[name], info_name=name, terminal_width=80).get_help()
    listed = said.partition("Commands:")[2].splitlines()[1:]
    assert len(listed) >= len(GROUPS[name].commands)
    assert not [line for line in listed if line.endswith("...")]


def test_every_option_says_what_it_does() -> None:
    silent = [
        (*names, option.opts[0])
        for names, command in EVERY
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent


@pytest.mark.parametrize(
    ("program", "module", "typed"),
    [
        ("synthfactory", "synthfactory.cli", "build own"),
        ("synthfactory", "synthfactory.cli", "doctor own"),
        ("synthfactory", "synthfactory.cli", "verify own"),
        ("synthfactory", "synthfactory.cli", "phantom tiles own"),
        ("synthfactory-train", "train.cli", "run own"),
    ],
)
def test_shells_complete_files(program: str, module: str, typed: str) -> None:
    asked = {"COMP_WORDS": f"{program} {typed}", "COMP_CWORD": str(len(typed.split()))}
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    ended = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()"],
        env={**os.environ, **asked, variable: "bash_complete"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout.strip() == "file,own", ended.stderr  # then bash completes names of files
