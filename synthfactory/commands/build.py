"""plan, build, pilot, submit: from a spec to a set."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synthfactory.commands.common import (
    EXIT_INCOMPLETE,
    EXIT_TO_GO_ON,
    fit,
    open_spec,
    say,
    spec_argument,
    warn,
    with_bank,
)

if TYPE_CHECKING:
    from synthfactory.spec.schema import Spec


@click.command(short_help="What a build would make, and its cost.")
@spec_argument
def plan(spec_file: str) -> None:
    """Print classes, shards, network calls, time and the patients behind each class; draw nothing."""
    from synthfactory.plan.plan import render
    from synthfactory.run.belonging import check_agrees
    from synthfactory.run.driver import check_affordable
    from synthfactory.run.prepare import standing_of

    prepared = open_spec(spec_file)
    warn(prepared)
    standing = standing_of(prepared.spec)
    found = prepared.plan(standing)
    click.echo(render(found))
    check_affordable(prepared, found)
    check_agrees(prepared, standing)


@click.command(short_help="Make the set, or what is missing of it.")
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
    from synthfactory.run.belonging import check_agrees
    from synthfactory.run.check_model import check_model
    from synthfactory.run.prepare import check_writable, standing_of
    from synthfactory.run.reach import check_reachable
    from synthfactory.run.result import summary

    if local and (address or workers):
        raise click.UsageError("--local works in this one process; leave out --address and --workers")
    prepared = open_spec(spec_file)
    spec = prepared.spec
    warn(prepared)
    check_writable(spec)
    standing = standing_of(spec)
    found = prepared.plan(standing)
    say(render(found) + "\n")
    driver.check_affordable(prepared, found)
    check_agrees(prepared, standing)
    if address:
        check_reachable(address)
    check_model(spec, prepared.folder, prepared.encoder)
    prepared = with_bank(prepared)
    result = driver.build(
        prepared,
        pool_maker(local, workers, address),
        say=say,
        quick=quick,
        use_lease=not no_lease,
        probe=_prober(address),
    )
    for line in summary(result, spec.output.path):
        click.echo(fit(line))
    if not result.complete:
        sys.exit(EXIT_TO_GO_ON if result.to_go_on else EXIT_INCOMPLETE)
    click.echo(f"look at it: synthfactory preview {shlex.quote(spec.output.path)}")


def _prober(address: str | None) -> Any:
    if address is None:
        from synthfactory.run.probe import probe_batch

        return probe_batch
    from synthfactory.run.ray_pool import probe_on_ray

    return lambda spec: probe_on_ray(spec, address)


def pool_maker(local: bool, workers: int | None, address: str | None) -> Any:
    """Makes the pool that the options ask for."""

    def make(setup: Any, tick: Any) -> Any:
        if local:
            from synthfactory.run.local import LocalPool

            return LocalPool(setup, tick)
        from synthfactory.run.ray_pool import RayPool

        threads = int(setup.lock["execution"]["threads"])
        return RayPool(setup, tick, workers=workers, threads=threads, address=address, say=say)

    return make


@click.command(short_help="A few tiles of each class, to look at first.")
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

    prepared = open_spec(spec_file)
    warn(prepared)
    for line in run(with_bank(prepared), per_class=per_class, workers=workers, say=say):
        click.echo(fit(line))


@click.command(short_help="Send the build to a Ray cluster as a job.")
@spec_argument
@click.option("--address", required=True, help="The cluster's job server, such as http://HOST:8265.")
@click.option(
    "--workers", type=click.IntRange(1, 100_000), help="Number of workers (default: one per GPU, or per core)."
)
@click.option("--quick", is_flag=True, help="Trust the content of shards that are there; check sizes and names only.")
@click.option("--no-follow", is_flag=True, help="Return once the job is accepted.")
def submit(spec_file: str, address: str, workers: int | None, quick: bool, no_follow: bool) -> None:
    """Send the build to a Ray cluster as a job, follow its log, and pass on its exit code. Submitting again resumes."""
    from synthfactory.run.submit import submit as send
    from synthfactory.spec.load import load_spec

    spec: Spec = load_spec(spec_file)
    path = Path(spec_file)
    options = {"address": address, "workers": workers, "quick": quick}
    sys.exit(send(spec, path.read_bytes(), path.name, **options, follow=not no_follow, say=click.echo))  # type: ignore[arg-type]
