"""What the commands share: messages that fit the terminal, how a program ends, a spec made ready, a set that stands."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click
from safetensors import SafetensorError

from synthfactory.spec.errors import InputError
from synthfactory.spec.text import printable

if TYPE_CHECKING:
    from synthfactory.run.prepare import Prepared

EXIT_FAULT, EXIT_INPUT, EXIT_INCOMPLETE, EXIT_TO_GO_ON, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

PLACE = click.Path(readable=False)  # shells complete it; nothing is checked: it may be a URL, or a folder to be made

spec_argument = click.argument("spec_file", metavar="SPEC.yaml", type=PLACE)
out_argument = click.argument("out", metavar="OUT", type=PLACE)


def fit(text: str, width: int = 80) -> str:
    """The text with every line wrapped between words; paths and other long words stay whole."""
    wrap = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(piece for line in text.split("\n") for piece in wrap.wrap(line) or [""])


def say(text: str) -> None:
    """To stderr: whole lines for log files, wrapped ones for a terminal; nothing that a terminal would obey."""
    text = printable(text)
    click.echo(fit(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text, err=True)


def end_with(start: Callable[[], object]) -> NoReturn:
    """Runs a program and exits with its status. What the user can mend is one message and status 2, never a traceback."""
    # Batch systems send it: it ends as Ctrl-C does, and leases are released.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is written as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        code = start()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes a file that ends early for the end of what is typed
            raise stop.__cause__ from None
        say("interrupted; the same command goes on where this one stopped")
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_INPUT)
    except InputError as error:
        say(f"Error: {error}")
        sys.exit(EXIT_INPUT)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("torch", "ray", "diffusers"):
            raise
        without = ", or use --local where the command has it" if package == "ray" else ""
        say(f"Error: {package} is not installed ({error}); this command needs it: pip install {package}{without}")
        sys.exit(EXIT_INPUT)
    except FloatingPointError as error:  # weights that draw no numbers
        say(f"Error: model: {error}")
        sys.exit(EXIT_INPUT)
    except BrokenPipeError:  # `synthfactory plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAULT)
    except (OSError, SafetensorError) as error:  # a disk, a network or a store that fails
        say(f"Error: {error}; once that is mended, the same command goes on")
        sys.exit(EXIT_FAULT)


def open_spec(spec_file: str) -> Prepared:
    """The spec with its model and source, checked."""
    from synthfactory.run.prepare import prepare
    from synthfactory.spec.load import load_spec

    return prepare(load_spec(spec_file))


def warn(prepared: Prepared) -> None:
    """Prints what is allowed, but should be known."""
    for text in prepared.conditions.warnings:
        say(f"warning: {text}")


def with_bank(prepared: Prepared) -> Prepared:
    """With a bank: a folder of tiles is embedded now, with the model's encoder, as far as the cache does not hold it."""
    tiles = prepared.conditions.tiles
    if prepared.bank is not None or tiles is None:
        return prepared
    from synthfactory.model.weights import load_encoder
    from synthfactory.run.progress import Progress
    from synthfactory.run.source import scratch_cache

    assert prepared.encoder is not None
    encoder = load_encoder(prepared.encoder)
    say(
        f"embedding {len(tiles.files):,} tiles with {prepared.facts.encoder['id']} (what is cached is not embedded again)"
    )
    progress = Progress(len(tiles.files), say=say, screened=False)
    try:
        return prepared.with_embedded(
            encoder.embed, scratch_cache(prepared.spec.lineage), lambda count: progress.tick(count, 0)
        )
    finally:
        progress.close()


def open_set(out: str) -> Any:
    """A set as it stands; InputError where there is none."""
    from synthfactory.run.prepare import read_standing

    standing = read_standing(out)
    if standing.lock is None:
        raise InputError(f"{out}: holds no set (no spec.lock.yaml); name the output.path of a build")
    return standing
