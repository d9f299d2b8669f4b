"""calibrate: quality against network calls for a model, and the table that `steps: auto` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synthfactory.commands.common import fit, say, spec_argument, with_bank
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError

if TYPE_CHECKING:
    from synthfactory.plan.calibration import Calibration, Table
    from synthfactory.run.prepare import Prepared
    from synthfactory.spec.sampler import Guidance

MIN_A_SEED = 16  # fewer, and a bootstrap may hold one tile alone
REFERENCE_STEPS = 250
SOLVERS = ("ab2", "heun", "euler", "euler_maruyama", "stochastic_heun")


@click.command(short_help="Quality against network calls, for `steps: auto`.")
@spec_argument
@click.option(
    "--tiles",
    type=click.IntRange(MIN_A_SEED),
    default=96,
    show_default=True,
    help="Tiles a setting and seed, over all classes.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=2, show_default=True, help="Sets of noises and conditions."
)
@click.option("--solver", "solvers", multiple=True, type=click.Choice(SOLVERS), help="Solver to try (default: all).")
@click.option("--steps", multiple=True, type=click.IntRange(1, 10_000), help="Steps to try (default: a few a solver).")
@click.option(
    "--reference-steps",
    type=click.IntRange(2, 10_000),
    default=REFERENCE_STEPS,
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
    """Measure quality against network calls for the spec's model and bank, at every guidance of the spec; write what `steps: auto` uses.

    The same command goes on where an interrupted one stopped.
    """
    from synthfactory.plan.calibration import Calibration, encoded, with_table
    from synthfactory.run.calibrate import calibrate as run
    from synthfactory.run.calibrate import settings
    from synthfactory.run.engines import make_engine
    from synthfactory.run.keys import guard
    from synthfactory.run.progress import Progress
    from synthfactory.shards.store import open_store

    prepared, guidances = _prepared(spec_file)
    spec = prepared.spec
    official = prepared.facts.backend == "official"
    place = _place(prepared, target)
    before = _standing(place, target, prepared.facts.sha256)
    per_class = -(-tiles // len(spec.classes))
    rounds = []
    for guidance in guidances:
        samplers = settings(["own"] if official else solvers or SOLVERS, steps, guidance)
        reference = settings(["own" if official else "euler_maruyama"], [reference_steps], guidance)[0]
        rounds.append((reference, [sampler for sampler in samplers if sampler != reference]))
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
    settings_in_all = sum(len(samplers) + 1 for _, samplers in rounds)
    total = per_class * len(spec.classes) * seeds * settings_in_all
    at = f"{len(rounds)} guidances, " if len(rounds) > 1 else ""
    say(
        f"{total:,} tiles: {at}{settings_in_all} settings with the reference, {per_class} tiles of each class, {seeds} seeds"
    )
    progress = Progress(total, say=say, screened=False)
    try:
        tables = [
            run(
                prepared,
                engine,
                samplers,
                reference,
                per_class=per_class,
                seeds=seeds,
                batch_size=batch,
                name=f"{prepared.facts.sha256} {prepared.facts.encoder['sha256']} {execution.dtype}",
                kept=kept,
                tick=lambda count: progress.tick(count, 0),
            )
            for reference, samplers in rounds
        ]
    finally:
        progress.close()
    found = Calibration(
        model_sha256=prepared.facts.sha256,
        encoder_sha256=prepared.facts.encoder["sha256"],
        command=" ".join(
            [
                f"synthfactory calibrate {Path(spec_file).name} --tiles {tiles} --seeds {seeds}",
                *(f"--solver {solver}" for solver in solvers),
                *(f"--steps {number}" for number in steps),
                *([] if reference_steps == REFERENCE_STEPS else [f"--reference-steps {reference_steps}"]),
            ]
        ),
        tables=tables,
    )
    whole = with_table(before, found)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with beside(place, shared=True) as new:
            new.write_bytes(encoded(whole))
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror or error}); name another file with -o") from None
    for table in tables:
        _print(table)
    click.echo(
        fit(f"{place}: written; `steps: auto` reads it where it lies beside the model or in this machine's cache")
    )


def _standing(place: Path, target: str | None, model_sha256: str) -> Calibration | None:
    """What the file to write holds already, whose tables at other guidances stay. InputError where that is something else, or another
    model's: nothing of the user's is written over.
    """
    from synthfactory.plan.calibration import calibration_at

    found = calibration_at(str(place)) if place.exists() else None
    if target is not None and place.exists() and found is None:
        raise InputError(f"-o {target}: is there already and is no calibration; name another file")
    if target is not None and found is not None and found.model_sha256 != model_sha256:
        raise InputError(f"-o {target}: is another model's calibration; name another file")
    return found


def _prepared(spec_file: str) -> tuple[Prepared, list[Guidance]]:
    """The spec made ready with the agreement screen on, so that the encoder is opened, and its guidances; `auto` steps do not matter."""
    from synthfactory.run.prepare import prepare
    from synthfactory.spec.load import load_spec
    from synthfactory.spec.sections import AgreementScreen, Screen

    spec = load_spec(spec_file)
    if spec.embeddings.unconditional:
        raise spec.error("embeddings", "calibrate compares tiles with their conditions; name a bank or tiles")
    if spec.privacy.mechanism == "dp":
        what = "calibrate looks at the bank itself, which epsilon does not cover, and steps are published; use public tiles"
        raise spec.error("privacy.mechanism", what)
    guidances = list(dict.fromkeys(spec.sampler_for(name).guidance for name in spec.classes))
    sampler = spec.sampler.model_copy(update={"steps": 1})
    classes = {name: item.model_copy(update={"sampler": None}) for name, item in spec.classes.items()}
    screen = Screen(agreement=AgreementScreen())
    made = spec.model_copy(update={"sampler": sampler, "classes": classes, "screen": screen})
    return with_bank(prepare(made)), guidances


def _place(prepared: Prepared, target: str | None) -> Path:
    """The file to write: beside the model, or in this machine's cache where the model has no folder that is the user's."""
    from synthfactory.model.folder import BUILT_IN, ModelFolder
    from synthfactory.plan.calibration import places_of

    own = isinstance(prepared.folder, ModelFolder) and prepared.folder.url is None
    folder = str(prepared.folder.path) if own and isinstance(prepared.folder, ModelFolder) else None
    places = places_of(prepared.facts.sha256, folder)
    built_in = folder is not None and Path(folder) in BUILT_IN.values()
    default = places[-1] if folder is None or built_in or not os.access(folder, os.W_OK) else places[0]
    if Path(places[-1]).exists():  # what is read first
        default = places[-1]
    return Path(target or default)


def _print(table: Table) -> None:
    from synthfactory.plan.calibration import DISTANCE_FLOOR, DISTANCE_MARGIN, MARGIN, MIN_TILES, UNSEEN, summary

    rows, guidance = summary(table), table.guidance
    click.echo(
        f"guidance {guidance.scale:g}, {guidance.low:g} to {guidance.high:g}; {table.reference.tiles:,} tiles a setting"
    )
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
            "class: share of tiles in whose embedding a probe finds the condition's class; no worse: class and cosine surely less than "
            f"{MARGIN} below the reference, kernel distance surely less than {DISTANCE_MARGIN:.0%} of the reference's, or "
            f"{DISTANCE_FLOOR} where that is more, above it "
            f"(95 % intervals, paired; at least {MIN_TILES} tiles; {UNSEEN} tiles more than were seen are taken to lose their class)"
        )
    )
    if not any(map(table.no_worse, table.rows)):
        click.echo("no setting was surely as good as the reference: `steps: auto` will say so")
