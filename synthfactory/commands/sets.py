"""verify, status, gc, preview: what stands in an OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from synthfactory.commands.common import EXIT_FAULT, EXIT_INCOMPLETE, open_set, out_argument, say
from synthfactory.embeddings.places import local
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import is_url

PNG = b"\x89PNG\r\n\x1a\n"


@click.command(short_help="Check every byte of a set.")
@out_argument
@click.option("--quick", is_flag=True, help="Sizes, names and counts only; read no shard.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(out: str, quick: bool, as_json: bool) -> None:
    """Check checksums, counts, schema, keys, images and that nothing lies there unreferenced. Status 1 where a fault is found."""
    from synthfactory.run.driver import check_output
    from synthfactory.run.progress import counting
    from synthfactory.shards.verify import render

    standing = open_set(out)
    report = check_output(standing, quick=quick, tick=counting(len(standing.commits), "shards checked", say))
    if as_json:
        faults = [vars(finding) for finding in report.findings]
        found = {"tiles": report.tiles, "shards": report.shards, "executions": report.executions, "findings": faults}
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(render(report))
    if report.findings:
        sys.exit(EXIT_FAULT)


@click.command(short_help="How far a set has come.")
@out_argument
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for scripts and dashboards.")
def status(out: str, as_json: bool) -> None:
    """Print how far a set has come, class by class. Status 3 while something is missing."""
    from synthfactory.report.status import progress, render_status

    standing = open_set(out)
    found = progress(standing.lock, standing.rounds, standing.commits)
    click.echo(json.dumps(found, indent=1) if as_json else f"{out}: {render_status(found)}")
    if not found["complete"]:
        sys.exit(EXIT_INCOMPLETE)


def _begins(path: Path, title: str) -> bool:
    """Whether a file's first line ends so."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.readline(1000).rstrip("\n").endswith(title)
    except (OSError, ValueError):
        return False


@click.command(short_help="One page on privacy, for an ethics board.")
@out_argument
@click.option(
    "--audit",
    "audit_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Report of `synthfactory audit`.",
)
@click.option("--lineage", help="The set's lineage folder: of how many patients the tiles of each class are.")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write (default: print it).",
)
def ethics(out: str, audit_file: Path | None, lineage: str | None, target: Path | None) -> None:
    """Print one page: who might attack, the mechanism and its exact guarantee, what remains, what was attacked and how it went."""
    from synthfactory.report.ethics import TITLE, ethics_page
    from synthfactory.run.around import check_outside

    if target is not None:
        check_outside(target, "-o")
        if target.exists() and not _begins(target, TITLE):
            raise InputError(f"-o {target}: is there already and is no such page; name another file")
    standing = open_set(out)
    report = None
    if audit_file is not None:
        try:
            report = read_json(audit_file.read_text())
        except (OSError, ValueError):
            report = {}
        report = report if isinstance(report, dict) else {}
    people = people_all = None
    if lineage is not None:
        from synthfactory.run.people import check_rests, people_behind
        from synthfactory.shards.store import open_store

        check_rests(standing)
        people, people_all = people_behind(standing, open_store(lineage, reading=True))
    rounds = [step.to_json() for step in standing.rounds]
    page = ethics_page(standing.lock, rounds, standing.commits, report, people, people_all)
    if target is None:
        click.echo(page)
        return
    try:
        target.write_text(page)
    except OSError as error:
        raise InputError(f"-o {target}: cannot be written ({error.strerror or error}); name another file") from None
    click.echo(f"{target}: {len(page.splitlines())} lines of Markdown")


@click.command(short_help="Remove what no commit names.")
@out_argument
@click.option("--lineage", help="The build's lineage folder: makes sure that no build is at work.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
def gc(out: str, lineage: str | None, dry_run: bool) -> None:
    """Remove what no commit names: objects of builds that lost a race, temporary files, unfinished uploads."""
    from synthfactory.shards.gc import check_lineage
    from synthfactory.shards.gc import gc as clean
    from synthfactory.shards.lease import Lease
    from synthfactory.shards.store import open_store

    standing = open_set(out)
    lease = None
    if lineage:
        check_lineage(standing.store, open_store(lineage))
        lease = Lease(open_store(lineage))
        say("making sure that no build is at work (half a minute, where one was cut off)")
    lines = clean(standing.store, lease=lease, dry_run=dry_run)
    for line in lines or ["nothing to remove"]:
        click.echo(line)


@click.command(short_help="A contact sheet of a set.")
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

    standing = open_set(out)
    names = [str(entry["name"]) for entry in standing.lock["classes"]]
    try:
        tiles_of = first_tiles(standing.store, names, columns)
    except DamagedShardError as error:
        say(f"Error: {error}; `synthfactory verify {out}` names every fault, and the next build mends them")
        sys.exit(EXIT_FAULT)
    path = _preview_path(out, target, str(standing.lock["name"]))
    sheet = contact_sheet(tiles_of, columns=columns, tile_px=tile_px, title=f"{standing.lock['name']} (synthetic)")
    try:
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file with -o") from None
    click.echo(f"{path}: {sheet.width} x {sheet.height} px")


def _preview_path(out: str, target: str | None, name: str) -> Path:
    """Where the sheet goes: never into the set itself, which holds nothing that a commit does not name."""
    root = None if is_url(out) else local(out).resolve()
    if target is None:
        stem = (root.name if root else out.rstrip("/").rpartition("/")[2]) or name
        here = Path.cwd()
        inside = root is not None and (here == root or root in here.parents)
        return (root.parent if inside and root else Path()) / f"{stem}-preview.png"
    from synthfactory.run.around import check_outside

    path = Path(target)
    if path.suffix.lower() != ".png":
        raise InputError(f"-o {target}: a contact sheet is a PNG; name a file that ends in .png")
    if root is not None and root in path.expanduser().resolve().parents:
        raise InputError(f"-o {target}: lies in the set itself, where it would be foreign; name a file outside {out}")
    check_outside(target, "-o")
    if path.is_file():
        with open(path, "rb") as handle:
            if handle.read(len(PNG)) not in (b"", PNG):
                raise InputError(f"-o {target}: is there already and is no PNG; name another file")
    return path
