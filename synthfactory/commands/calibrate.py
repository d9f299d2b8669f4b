"""calibrate: quality against network calls for a model, and the table that `steps: auto` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synthfactory.commands.common import fit, say, spec_argument, with_bank
from synthfactory.spec.errors import InputError

if TYPE_CHECKING:
    from synthfactory.plan.calibration import Table
    from synthfactory.run.prepare import Prepared

SOLVERS = ("ab2", "heun", "euler", "euler_maruyama", "stochastic_heun")


@click.command(short_help="Quality against network calls, for `steps: auto`.")
@spec_argument
@click.option(
    "--tiles", type=click.IntRange(2), default=96, show_default=True, help="Tiles a setting and seed, over all classes."
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=2, show_default=True, help="Sets of noises and conditions."
)
@click.option("--solver", "solvers", multiple=True, type=click.Choice(SOLVERS), help="Solver to try (default: all).")
@click.option("--steps", multiple=True, type=click.IntRange(1, 10_000), help="Steps to try (default: a few a solver).")
@click.option(
    "--reference-steps",
    type=click.IntRange(2),
    default=250,
    show_default=True,
    help="Euler-Maruyama steps to be measured by.",
)
@click.option("-o", "--output", "target", help="File to write (default: beside the model, or in this machine's cache).")
def calibrate(
    spec_file: str,
    tiles: int,
    seeds: int,
    solvers: tuple[str, ...],
    steps: tuple[int, ...],
    reference_steps: int,
    target: str | None,
) -> None:
    """Measure quality against network calls for the spec's model, bank and guidance; write what `steps: auto` uses.

    The same command goes on where an interrupted one stopped.
    """
    from synthfactory.plan.calibration import Calibration, encoded, read_calibration, with_table
    from synthfactory.run.calibrate import calibrate as run
    from synthfactory.run.calibrate import settings
    from synthfactory.run.engines import make_engine
    from synthfactory.run.keys import guard
    from synthfactory.run.progress import Progress
    from synthfactory.shards.store import open_store

    prepared = _prepared(spec_file)
    spec = prepared.spec
    official = prepared.facts.backend == "official"
    per_class = -(-tiles // len(spec.classes))
    guidance = spec.sampler.guidance
    samplers = settings(["own"] if official else solvers or SOLVERS, steps, guidance)
    reference = settings(["own" if official else "euler_maruyama"], [reference_steps], guidance)[0]
    samplers = [sampler for sampler in samplers if sampler != reference]
    execution = spec.execution
    batch = execution.batch_size or 16
    engine = make_engine(
        prepared.folder,
        prepared.encoder,
        {
            "dtype": execution.dtype,
            "threads": execution.threads,
            "compile": execution.compile,
            "strict": execution.strict,
            "batch_size": batch,
        },
    )
    kept = open_store(spec.lineage)
    guard(kept)
    total = per_class * len(spec.classes) * seeds * (len(samplers) + 1)
    say(f"{total:,} tiles: {len(samplers)} settings and the reference, {per_class} tiles of each class, {seeds} seeds")
    progress = Progress(total, say=say, screened=False)
    try:
        table = run(
            prepared,
            engine,
            samplers,
            reference,
            per_class=per_class,
            seeds=seeds,
            batch_size=batch,
            name=f"{prepared.facts.sha256} {execution.dtype}",
            kept=kept,
            tick=lambda count: progress.tick(count, 0),
        )
    finally:
        progress.close()
    folder, place = _places(prepared, target)
    found = Calibration(
        model_sha256=prepared.facts.sha256,
        encoder_sha256=prepared.facts.encoder["sha256"],
        command=f"synthfactory calibrate {Path(spec_file).name} --tiles {tiles} --seeds {seeds}",
        tables=[table],
    )
    whole = with_table(read_calibration(prepared.facts.sha256, folder), found)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(whole))
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror or error}); name another file with -o") from None
    _print(table)
    click.echo(
        fit(f"{place}: written; `steps: auto` reads it where it lies beside the model or in this machine's cache")
    )


def _prepared(spec_file: str) -> Prepared:
    """The spec made ready with the agreement screen on, so that the encoder is opened; its own `auto` steps do not matter here."""
    from synthfactory.run.prepare import prepare
    from synthfactory.spec.load import load_spec
    from synthfactory.spec.sections import AgreementScreen, Screen

    spec = load_spec(spec_file)
    if spec.embeddings.unconditional:
        raise spec.error("embeddings", "calibrate compares tiles with their conditions; name a bank or tiles")
    sampler = spec.sampler.model_copy(update={"steps": 1})
    classes = {name: item.model_copy(update={"sampler": None}) for name, item in spec.classes.items()}
    screen = Screen(agreement=AgreementScreen())
    return with_bank(prepare(spec.model_copy(update={"sampler": sampler, "classes": classes, "screen": screen})))


def _places(prepared: Prepared, target: str | None) -> tuple[str | None, Path]:
    """(the model's folder on this machine, if it has one; the file to write)."""
    from synthfactory.model.folder import BUILT_IN, ModelFolder
    from synthfactory.plan.calibration import places_of

    own = isinstance(prepared.folder, ModelFolder) and prepared.folder.url is None
    folder = str(prepared.folder.path) if own and isinstance(prepared.folder, ModelFolder) else None
    places = places_of(prepared.facts.sha256, folder)
    built_in = folder is not None and Path(folder) in BUILT_IN.values()
    default = places[-1] if folder is None or built_in or not os.access(folder, os.W_OK) else places[0]
    return folder, Path(target or default)


def _print(table: Table) -> None:
    from synthfactory.plan.calibration import MARGIN, summary

    rows = summary(table)
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    for line in (dict(zip(heads, heads, strict=True)), *rows):
        cells = [
            f"{line[head]:<{width}}" if head in ("solver", "no worse") else f"{line[head]:>{width}}"
            for head, width in zip(heads, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
    click.echo(
        fit(
            f"class: share of tiles in whose embedding a probe finds the condition's class; no worse: class and cosine surely less than "
            f"{MARGIN} below the reference, kernel distance not surely larger (95 % intervals, paired)"
        )
    )
    if not any(row.no_worse for row in table.rows):
        click.echo("no setting was as good as the reference: `steps: auto` will say so")
