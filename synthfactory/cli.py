"""The command line: parses, prints the plan, calls one function. Bad input ends with one message and status 2.

Exit codes: 0 done, 1 a fault was found or something failed, 2 bad input, 3 built but not complete, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from synthfactory.spec.errors import InputError

if TYPE_CHECKING:
    from synthfactory.run.prepare import Prepared
    from synthfactory.spec.schema import Spec

# Read when torch is loaded: threads that wait by spinning slow everything where builds or other processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

EXIT_FAULT, EXIT_INPUT, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 2, 3, 130

spec_argument = click.argument("spec_file", metavar="SPEC.yaml")
out_argument = click.argument("out", metavar="OUT")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="synthfactory")
def cli() -> None:
    """Labelled synthetic H&E tile sets from one YAML spec.

    \b
    synthfactory plan SPEC.yaml      what a build would make, and its cost
    synthfactory pilot SPEC.yaml     a few tiles of each class, to look at first
    synthfactory build SPEC.yaml     makes the set; the same command resumes
    synthfactory verify OUT          every byte checked
    """


def _fit(text: str, width: int = 80) -> str:
    """The text with every line wrapped between words; paths and other long words stay whole."""
    wrap = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(piece for line in text.split("\n") for piece in wrap.wrap(line) or [""])


def _say(text: str) -> None:
    """To stderr: whole lines for log files, wrapped ones for a terminal."""
    click.echo(_fit(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text, err=True)


def _prepared(spec_file: str) -> Prepared:
    from synthfactory.run.prepare import prepare
    from synthfactory.spec.load import load_spec

    return prepare(load_spec(spec_file))


def _warn(prepared: Prepared) -> None:
    for text in prepared.bank.warnings if prepared.bank else ():
        _say(f"warning: {text}")


def _embedded(prepared: Prepared) -> Prepared:
    """With a bank: a folder of tiles is embedded now, with the model's encoder, as far as the cache does not hold it."""
    if prepared.bank is not None:
        return prepared
    from synthfactory.model.weights import load_encoder
    from synthfactory.run.driver import scratch_cache
    from synthfactory.run.progress import Progress

    assert prepared.tiles is not None
    encoder = load_encoder(prepared.folder)
    _say(f"embedding {len(prepared.tiles.files):,} tiles with {prepared.facts.encoder['id']}")
    progress = Progress(len(prepared.tiles.files), say=_say, screened=False)
    try:
        return prepared.with_embedded(
            encoder.embed, scratch_cache(prepared.spec.lineage), lambda count: progress.tick(count, 0)
        )
    finally:
        progress.close()


@cli.command(short_help="What a build would make, and its cost.")
@spec_argument
def plan(spec_file: str) -> None:
    """Print classes, shards, network calls, time and the patients behind each class; draw nothing."""
    from synthfactory.plan.plan import render
    from synthfactory.run.driver import check_affordable
    from synthfactory.run.prepare import standing_of

    prepared = _prepared(spec_file)
    _warn(prepared)
    found = prepared.plan(standing_of(prepared.spec))
    click.echo(render(found))
    check_affordable(prepared, found)


@cli.command(short_help="Make the set, or what is missing of it.")
@spec_argument
@click.option(
    "--workers", type=click.IntRange(1, 100_000), help="Number of workers (default: one per GPU, or per core)."
)
@click.option("--address", help="Ray cluster to run on, such as auto or HOST:6379 (default: Ray on this machine).")
@click.option("--local", is_flag=True, help="Work in this process, without Ray; the bytes are the same.")
@click.option("--quick", is_flag=True, help="Trust the content of shards that are there; check sizes and names only.")
@click.option(
    "--no-lease", is_flag=True, help="Do not wait for another build of the same output (safe, but work is done twice)."
)
def build(spec_file: str, workers: int | None, address: str | None, local: bool, quick: bool, no_lease: bool) -> None:
    """Make the set, or what is missing of it. The same command resumes after any interruption."""
    from synthfactory.plan.plan import render
    from synthfactory.run import driver
    from synthfactory.run.check_model import check_model
    from synthfactory.run.prepare import check_writable, standing_of

    if local and (address or workers):
        raise click.UsageError("--local works in this one process; leave out --address and --workers")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the lease is released
    prepared = _prepared(spec_file)
    spec = prepared.spec
    _warn(prepared)
    check_writable(spec)
    found = prepared.plan(standing_of(spec))
    _say(render(found) + "\n")
    driver.check_affordable(prepared, found)
    check_model(spec, prepared.folder)
    prepared = _embedded(prepared)
    result = driver.build(prepared, _pool_maker(local, workers, address), say=_say, quick=quick, use_lease=not no_lease)
    for line in driver.summary(result, spec.output.path):
        click.echo(_fit(line))
    if not result.complete:
        sys.exit(EXIT_INCOMPLETE)
    click.echo(f"look at it: synthfactory preview {spec.output.path}")


def _pool_maker(local: bool, workers: int | None, address: str | None) -> Any:
    def make(setup: Any, tick: Any) -> Any:
        if local:
            from synthfactory.run.local import LocalPool

            return LocalPool(setup, tick)
        from synthfactory.run.ray_pool import RayPool

        return RayPool(setup, tick, workers=workers, threads=int(setup.lock["execution"]["threads"]), address=address)

    return make


@cli.command(short_help="A few tiles of each class, to look at first.")
@spec_argument
@click.option(
    "--tiles", "per_class", type=click.IntRange(1, 64), default=4, show_default=True, help="Tiles of each class."
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Workers to estimate the time for."
)
def pilot(spec_file: str, per_class: int, workers: int) -> None:
    """Draw a few tiles of each class; print rejects, speed and the corrected estimate; keep a contact sheet in LINEAGE."""
    from synthfactory.run.pilot import pilot as run

    prepared = _prepared(spec_file)
    _warn(prepared)
    for line in run(_embedded(prepared), per_class=per_class, workers=workers, say=_say):
        click.echo(_fit(line))


@cli.command(short_help="Send the build to a Ray cluster as a job.")
@spec_argument
@click.option("--address", required=True, help="The cluster's job server, such as http://HOST:8265.")
@click.option(
    "--workers", type=click.IntRange(1, 100_000), help="Number of workers (default: one per GPU, or per core)."
)
@click.option("--no-follow", is_flag=True, help="Return once the job is accepted.")
def submit(spec_file: str, address: str, workers: int | None, no_follow: bool) -> None:
    """Send the build to a Ray cluster as a job, follow its log, and pass on its exit code. Submitting again resumes."""
    from synthfactory.run.submit import submit as send
    from synthfactory.spec.load import load_spec

    spec: Spec = load_spec(spec_file)
    path = Path(spec_file)
    sys.exit(
        send(spec, path.read_bytes(), path.name, address=address, workers=workers, follow=not no_follow, say=click.echo)
    )


def _standing(out: str) -> Any:
    from synthfactory.run.prepare import read_standing

    standing = read_standing(out)
    if standing.lock is None:
        raise InputError(f"{out}: holds no set (no spec.lock.yaml); name the output.path of a build")
    return standing


@cli.command(short_help="Check every byte of a set.")
@out_argument
@click.option("--quick", is_flag=True, help="Sizes, names and counts only; read no shard.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(out: str, quick: bool, as_json: bool) -> None:
    """Check checksums, counts, schema, keys, images and that nothing lies there unreferenced. Status 1 where a fault is found."""
    from synthfactory.run.driver import check_output
    from synthfactory.shards.verify import render

    report = check_output(_standing(out), quick=quick)
    if as_json:
        faults = [vars(finding) for finding in report.findings]
        click.echo(json.dumps({"tiles": report.tiles, "shards": report.shards, "findings": faults}, indent=1))
    else:
        click.echo(render(report))
    if report.findings:
        sys.exit(EXIT_FAULT)


@cli.command(short_help="How far a set has come.")
@out_argument
def status(out: str) -> None:
    """Print how far a set has come, class by class. Status 3 while something is missing."""
    from synthfactory.report.status import render_status

    standing = _standing(out)
    text, complete = render_status(standing.lock, standing.rounds, standing.commits)
    click.echo(f"{out}: {text}")
    if not complete:
        sys.exit(EXIT_INCOMPLETE)


@cli.command(short_help="Remove what no commit names.")
@out_argument
@click.option("--lineage", help="The build's lineage folder: makes sure that no build is at work.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
def gc(out: str, lineage: str | None, dry_run: bool) -> None:
    """Remove what no commit names: objects of builds that lost a race, temporary files, unfinished uploads."""
    from synthfactory.shards.gc import gc as clean
    from synthfactory.shards.lease import Lease
    from synthfactory.shards.store import open_store

    standing = _standing(out)
    lease = Lease(open_store(lineage)) if lineage else None
    lines = clean(standing.store, lease=lease, dry_run=dry_run)
    for line in lines or ["nothing to remove"]:
        click.echo(line)


@cli.command(short_help="A contact sheet of a set.")
@out_argument
@click.option("-o", "--output", "target", help="PNG file to write (default: OUT's name with -preview.png, here).")
@click.option("--columns", type=click.IntRange(1, 64), default=8, show_default=True, help="Tiles of each class.")
@click.option(
    "--tile-px", type=click.IntRange(32, 512), default=112, show_default=True, help="Width of a tile on the sheet."
)
def preview(out: str, target: str | None, columns: int, tile_px: int) -> None:
    """Write a contact sheet of the set: classes as rows, the first tiles of each."""
    from synthfactory.report.contact import contact_sheet
    from synthfactory.report.status import first_tiles
    from synthfactory.shards.tarfmt import DamagedShardError

    standing = _standing(out)
    names = [str(entry["name"]) for entry in standing.lock["classes"]]
    try:
        tiles_of = first_tiles(standing.store, names, columns)
    except DamagedShardError as error:
        _say(f"Error: {error}; `synthfactory verify {out}` names every fault, and the next build mends them")
        sys.exit(EXIT_FAULT)
    sheet = contact_sheet(tiles_of, columns=columns, tile_px=tile_px, title=str(standing.lock["name"]))
    path = Path(target or f"{out.rstrip('/').rpartition('/')[2].strip('.') or standing.lock['name']}-preview.png")
    try:
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file with -o") from None
    click.echo(f"{path}: {sheet.width} x {sheet.height} px")


@cli.command(short_help="The JSON Schema of a spec.")
def schema() -> None:
    """Print the JSON Schema of a spec, for editors that complete and check YAML."""
    from synthfactory.spec.jsonschema import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


@cli.group(short_help="Make invented tissue: shards, tiles, banks.")
def phantom() -> None:
    """Make invented H&E-like tissue: training shards, folders of tiles, banks."""


cohort_option = click.option(
    "--cohort",
    type=click.Choice(["train", "bank", "heldout"]),
    required=True,
    help="Disjoint sets of invented patients.",
)
count_option = click.option(
    "--per-class", type=click.IntRange(1), help="Tiles of each class (default: imbalanced, 400 200 100 50 25 12)."
)


def _refs(cohort: str, per_class: int | None) -> Any:
    from synthfactory.phantom import CLASSES, SHIPPED_COUNTS, cohort_tiles

    return cohort_tiles(cohort, dict.fromkeys(CLASSES, per_class) if per_class else SHIPPED_COUNTS)


@phantom.command()
@click.argument("folder")
@cohort_option
@count_option
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, show_default="cores", help="Processes.")
def shards(folder: str, cohort: str, per_class: int | None, workers: int) -> None:
    """Write WebDataset shards with labels, patients and structure maps, for synthfactory-train."""
    from synthfactory.phantom import write_shards

    _drawn(folder, _refs(cohort, per_class), lambda out, refs: write_shards(out, refs, workers=workers))


@phantom.command()
@click.argument("folder")
@cohort_option
@count_option
def tiles(folder: str, cohort: str, per_class: int | None) -> None:
    """Write CLASS/KEY.png and tiles.csv, as embeddings.tiles and embeddings.metadata take them."""
    from synthfactory.phantom import write_folder

    _drawn(folder, _refs(cohort, per_class), write_folder)


def _drawn(folder: str, refs: Any, write: Any) -> None:
    from synthfactory.run.progress import Progress

    progress = Progress(len(refs), say=_say, screened=False)
    for count in write(Path(folder), refs):
        progress.tick(count, 0)
    progress.close()
    click.echo(f"{folder}: {len(refs):,} tiles")


@phantom.command()
@click.argument("file")
@cohort_option
@count_option
@click.option(
    "--model", "model_name", default="phantom", show_default=True, help="Model whose encoder embeds the tiles."
)
def bank(file: str, cohort: str, per_class: int | None, model_name: str) -> None:
    """Write a parquet bank: one embedding per tile of the cohort, with label, patient and slide."""
    from synthfactory.run.phantom_bank import write_phantom_bank

    click.echo(write_phantom_bank(file, _refs(cohort, per_class), model_name, _say))


def main() -> NoReturn:
    """Entry point. What the user can mend is one message and status 2, never a traceback."""
    try:
        code = cli.main(prog_name="synthfactory", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted; the same command goes on where this one stopped")
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_INPUT)
    except InputError as error:
        _say(f"Error: {error}")
        sys.exit(EXIT_INPUT)
    except BrokenPipeError:  # `synthfactory plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAULT)
    except OSError as error:  # a disk, a network or a store that fails
        _say(f"Error: {error}; once that is mended, the same command goes on")
        sys.exit(EXIT_FAULT)


if __name__ == "__main__":
    main()
