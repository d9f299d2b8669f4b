"""model show, import, parity: what a model holds, weights of others in our form, and whether two ways of running one agree."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from synthfactory.commands.common import EXIT_FAULT, PLACE, say

if TYPE_CHECKING:
    from synthfactory.spec.model import Model


@click.group(short_help="Look at, import and compare models.")
def model() -> None:
    """Look at, import and compare models."""


@model.command(short_help="Parts, parameters, hash, licence.")
@click.argument("name", type=PLACE)
def show(name: str) -> None:
    """Print what a model (phantom, a folder, a URL, hf://OWNER/REPO, cytosyn) or an encoder (h0-mini) holds. Runs no code of it."""
    from synthfactory.model.describe import describe

    for line in describe(name):
        click.echo(line)


def _renames(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    wrong = next((entry for entry, (old, mark, _) in zip(given, pairs, strict=True) if not (old and mark)), None)
    if wrong is not None:
        raise click.UsageError(f"--rename {wrong}: write OLD=NEW, such as --rename net.=")
    return {old: new for old, _, new in pairs}


@model.command("import", short_help="Weights of others -> a model folder.")
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("target", metavar="DST", type=PLACE)
@click.option(
    "--weights", type=click.Choice(["ema", "model"]), default="ema", show_default=True, help="Which of a checkpoint's."
)
@click.option("--id", "model_id", help="The model's name (default: the repository's, or DST's).")
@click.option("--revision", help="Its version (default: the commit, or 1).")
@click.option("--licence", help="Name of its licence, where SRC does not say it.")
@click.option(
    "--encoder-id",
    default="bioptimus/H0-mini",
    show_default=True,
    help="Who makes the embeddings it is conditioned on.",
)
@click.option("--mpp", type=float, default=0.5, show_default=True, help="Micrometres per pixel of its tiles.")
@click.option(
    "--condition-key", help="Layer that takes the embedding (default: y_embedder.proj, .linear, .embedding_table)."
)
@click.option(
    "--null-key", help="Tensor of the null condition (default: y_embedder.null, .null_embedding; else zeros)."
)
@click.option("--heads", type=click.IntRange(1), help="Heads of attention (default: what config.json says, else 16).")
@click.option(
    "--norm-groups", type=click.IntRange(1), default=32, show_default=True, help="Of the autoencoder, where unstated."
)
@click.option(
    "--projection-depth", type=click.IntRange(1), default=8, show_default=True, help="Block that alignment reads."
)
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", help="Change the beginning of the network's names; may be repeated."
)
def import_(
    source: str,
    target: str,
    weights: str,
    model_id: str | None,
    revision: str | None,
    licence: str | None,
    encoder_id: str,
    mpp: float,
    condition_key: str | None,
    null_key: str | None,
    heads: int | None,
    norm_groups: int,
    projection_depth: int,
    rename: tuple[str, ...],
) -> None:
    """Convert SRC (a REPA-E checkpoint .pt, a diffusers folder, hf://OWNER/REPO) into the model folder DST.

    Prints every tensor and what became of it. Where one is missing, left over or of another shape, nothing is written.
    """
    from synthfactory.model.convert import Options
    from synthfactory.model.importing import import_model

    options = Options(condition_key, null_key, heads, norm_groups, projection_depth, _renames(rename))
    for line in import_model(
        source,
        target,
        options,
        weights=weights,
        model_id=model_id,
        revision=revision,
        encoder_id=encoder_id,
        resolution_mpp=mpp,
        licence=licence,
    ):
        click.echo(line)


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """nan lies in every range."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number.", context, parameter)
    return value


def _format(side: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option of the number format that a side runs in."""
    return click.option(
        f"--dtype-{side}",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help=f"Number format that {side.upper()} runs in.",
    )


@model.command(short_help="Do two ways of running a model agree?")
@click.argument("first", metavar="A", type=PLACE)
@click.argument("second", metavar="B", type=PLACE)
@click.option("--bank", help="Parquet bank: its first rows are the conditions (default: standard normal numbers).")
@click.option("--tiles", "count", type=click.IntRange(1, 64), default=4, show_default=True, help="Tiles to compare.")
@click.option("--steps", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Steps of each solver.")
@click.option(
    "--solver",
    default="euler",
    show_default=True,
    help="Ours, where ours runs: as the other model's, for pixels to agree.",
)
@click.option(
    "--scale",
    type=click.FloatRange(1.0, 100.0),
    callback=_number,
    default=1.0,
    show_default=True,
    help="Guidance of the pixels.",
)
@_format("a")
@_format("b")
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0),
    callback=_number,
    default=1e-3,
    show_default=True,
    help="Largest relative error of a step that still agrees.",
)
def parity(
    first: str, second: str, bank: str | None, count: int, steps: int, solver: str, scale: float, dtype_a: str, dtype_b: str,
    tolerance: float,
) -> None:  # fmt: skip
    """Run A and B on the same conditions and noise; print the error of each step and of the pixels. Status 1 where they differ.

    A and B are models by name, or specs (SPEC.yaml), whose model is meant: a repository's own pipeline needs a spec, since the spec
    is where its code is trusted.
    """
    from synthfactory.run.compare import conditions_for, engine_of
    from synthfactory.sample.parity import compare
    from synthfactory.spec.sampler import Guidance
    from synthfactory.spec.solvers import SOLVERS

    if solver not in (*SOLVERS["ode"], *SOLVERS["sde"]):
        raise click.UsageError(f"--solver {solver}: choose from {', '.join((*SOLVERS['ode'], *SOLVERS['sde']))}")
    a, b = engine_of(_meant(first), dtype_a), engine_of(_meant(second), dtype_b)
    conditions, keys = conditions_for((a, b), bank, count)
    found = compare(a, b, conditions, keys, steps=steps, solver=solver, guidance=Guidance(scale=scale))
    for line in found.lines():
        click.echo(line)
    if not found.worst <= tolerance:
        say(f"they differ: a step is off by {found.worst:.3g}, more than {tolerance:g}")
        sys.exit(EXIT_FAULT)
    click.echo(f"they agree: no step is off by more than {found.worst:.3g}")


def _meant(name: str) -> Model:
    from synthfactory.spec.load import load_spec
    from synthfactory.spec.model import model_named

    return load_spec(name).model if name.endswith((".yaml", ".yml")) else model_named(name)
