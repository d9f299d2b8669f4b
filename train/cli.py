"""synthfactory-train: run a training config, export the result as a model folder, measure it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import yaml

from synthfactory.commands.common import EXIT_FAULT, PLACE, end_with, say
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import cache_folder
from synthfactory.spec.solvers import SOLVERS, Method, Solver
from synthfactory.spec.text import shown

if TYPE_CHECKING:
    from synthfactory.spec.sampler import Sampler
    from train.config import TrainConfig

# Read when torch is loaded: threads that wait by spinning slow a step fourfold where another process shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

METHOD_OF: dict[str, Method] = {solver: method for method in ("ode", "sde") for solver in SOLVERS[method]}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="synthfactory")
def cli() -> None:
    """Train the models that synthfactory runs, from WebDataset shards."""


def _config(file: str, settings: tuple[str, ...]) -> TrainConfig:
    """The config with what the command line sets in it."""
    from train.config import load_config

    found, written = {}, {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as PATH=VALUE, for example optimiser.steps=200")
        try:
            found[path], written[path] = yaml.safe_load(value), shown(f"--set {setting}")
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting}: '{value}' is no YAML ({str(error).splitlines()[0]})") from None
    return load_config(file, found, written)


@cli.command(short_help="Train as CONFIG.yaml says, or go on.")
@click.argument("config", type=PLACE)
@click.option("--run", "run_folder", required=True, help="Run folder; the same command again resumes.")
@click.option("--cache", default=None, help="Folder for decoded tiles and latents (default: RUN/../cache).")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Override one field of the config.")
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    help="Workers of Ray Train that share every batch (default: this process).",
)
@click.option("--address", help="Ray cluster to run on, such as auto or HOST:6379 (default: Ray on this machine).")
def run(
    config: str,
    run_folder: str,
    cache: str | None,
    settings: tuple[str, ...],
    workers: int | None,
    address: str | None,
) -> None:
    """Train as CONFIG.yaml says, or go on where an interrupted run stopped."""
    from train.loop import train
    from train.metrics import check_board

    if address and not workers:
        raise click.UsageError("--address needs --workers: say how many share every batch")
    checked = _config(config, settings)
    if checked.tensorboard and not address:  # on a cluster another machine writes it
        check_board()
    folder = Path(run_folder)
    cache_folder = Path(cache) if cache else folder.parent / "cache"

    if workers:
        from train.distributed import train_with_ray

        done = train_with_ray(checked, folder, cache_folder, workers=workers, address=address, say=say)
    else:
        done = train(checked, folder, cache_folder, say)
    click.echo(f"{folder}: {checked.optimiser.steps} steps done ({done} of them now)")


@cli.command(short_help="What a run would do; nothing is trained.")
@click.argument("config", type=PLACE)
@click.option("--cache", default=None, help="Folder for the listing of tiles (default: this machine's cache).")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Override one field of the config.")
def plan(config: str, cache: str | None, settings: tuple[str, ...]) -> None:
    """Print what CONFIG.yaml would do: tiles, patients, passes, parameters, memory. Nothing is trained."""
    from train.plan import plan as lines

    folder = Path(cache) if cache else cache_folder() / "train"
    for line in lines(_config(config, settings), folder):
        click.echo(line)


@cli.command(short_help="The JSON Schema of a config.")
def schema() -> None:
    """Print the JSON Schema of a config, for editors that complete and check YAML."""
    from synthfactory.spec.jsonschema import json_schema
    from train.config import TrainConfig

    click.echo(json.dumps(json_schema(TrainConfig), indent=1))


@cli.command(short_help="Write a run as a model folder.")
@click.argument("run_folder", metavar="RUN", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--id", "model_id", required=True, help="Name of the model, as published sets will state it.")
@click.option("--revision", default="1", show_default=True, help="Version of the weights.")
@click.option(
    "--licence",
    help="Terms that travel with every artefact, such as CC-BY-4.0 (default: the base model's, else not stated). Sharing is allowed by "
    "Apache-2.0, MIT, BSD-3-Clause, CC0-1.0 and CC-BY-4.0, spelled so.",
)
@click.option(
    "--domain", help="What the model draws, where that is not what its labels say; plans and cards repeat it."
)
@click.option("--ema", type=click.FloatRange(0, 1), help="Decay of the average to write (default: the config's first).")
@click.option(
    "--repa-e",
    "repa_e",
    is_flag=True,
    help="Write OUT/repa-e.pt as well: REPA-E's names, tensors alone; of autoencoders of its form.",
)
@click.option(
    "--half",
    is_flag=True,
    help="Networks that went on from float16 ones as float16 again: half the size, but a gentle run's changes are rounded away.",
)
def export(
    run_folder: str,
    out: str,
    model_id: str,
    revision: str,
    licence: str | None,
    domain: str | None,
    ema: float | None,
    repa_e: bool,
    half: bool,
) -> None:
    """Write the averaged weights of RUN as the model folder OUT, with the networks that it builds on.

    RUN is of mode diffusion, finetune or repa-e, or of mode vae with a base.
    """
    from synthfactory.model.licence import licence_of
    from train.export import export as write

    terms = None if licence is None else licence_of("", licence)
    replaced = (Path(out) / "config.json").exists()
    folder = write(
        Path(run_folder),
        Path(out),
        model_id=model_id,
        revision=revision,
        licence=terms,
        domain=domain,
        decay=ema,
        repa_e=repa_e,
        half=half,
    )
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    written = read_json((folder / "config.json").read_text())
    stated = written["licence"]
    click.echo(
        f"{folder}: {total / 1e6:.1f} MB{', in place of the model that was there' if replaced else ''}; name it as `model:` in a spec"
    )
    click.echo(f"terms: {stated['name']}; sharing: {stated.get('sharing', 'local')}")
    for part, run in written["training"]["runs"].items():
        if "of_steps" in run:
            click.echo(f"{part}: after {run['steps']:,} of {run['of_steps']:,} steps")
    if "domain" not in written:
        click.echo("what it draws is not stated; --domain says it, and plans and cards repeat it")


def _measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what draws and judges."""
    options = (
        click.option("--cache", default="out/judge", show_default=True, help="Folder that keeps what was drawn."),
        click.option(
            # Beyond, those that are drawn from and those that are tested on would share patients (train/measure.py).
            "--per-class",
            type=click.IntRange(2, 400),
            default=100,
            show_default=True,
            help="Tiles of each class.",
        ),
        click.option(
            "--solver",
            type=click.Choice(tuple(METHOD_OF)),
            default="heun",
            show_default=True,
            help="Solver that draws.",
        ),
        click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Steps of the solver."),
        click.option("--scale", type=click.FloatRange(1), default=1.5, show_default=True, help="Guidance scale."),
        click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _sampler(solver: Solver, steps: int, scale: float) -> Sampler:
    from pydantic import ValidationError

    from synthfactory.spec.faults import faults_of
    from synthfactory.spec.sampler import Sampler

    try:
        return Sampler.model_validate(
            {"method": METHOD_OF[solver], "solver": solver, "steps": steps, "guidance": {"scale": scale}}
        )
    except ValidationError as error:
        place, what = faults_of(Sampler, error)[0]
        raise InputError(f"--{place.removeprefix('guidance.') or 'solver'}: {what}") from None


@cli.command(short_help="Measure a model against real tiles.")
@click.argument("folder", type=PLACE)
@_measuring
def measure(folder: str, cache: str, per_class: int, threads: int, **sampler: Any) -> None:
    """Measure a model of phantom tissue against real tiles; write figures, contact sheet and card into FOLDER.

    Class agreement, what a classifier learns from its tiles, distances, structures, diversity, speed. The same command resumes.
    """
    from train.measure import measure as judge

    found = judge(Path(folder), Path(cache), per_class=per_class, sampler=_sampler(**sampler), threads=threads)
    agreement, timing = found["agreement"], found["timing"]
    ratios = ", ".join(f"{probe['ratio']:.3f} ({name} space)" for name, probe in found["probes"].items())
    click.echo(
        f"agreement {agreement['agreement_of_generated']:.3f} against {agreement['judge_accuracy_on_real']:.3f} on reals: "
        f"ratio {agreement['ratio']:.3f}; {timing['tiles_per_second']:.2f} tiles/s"
    )
    click.echo(f"probe trained on drawn tiles over one trained on real tiles: {ratios}; see {folder}/README.md")


@cli.command(short_help="Measure models side by side.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=PLACE)
@_measuring
def compare(models: tuple[str, ...], cache: str, per_class: int, threads: int, **sampler: Any) -> None:
    """Measure models of phantom tissue on the same conditions and noise, and print their figures side by side.

    Models are written as a spec's `model:`. Nothing is written into them. The same command resumes.
    """
    from train.compare import table
    from train.measure import figures_of

    drawn = _sampler(**sampler)
    found = {
        name: figures_of(name, Path(cache), per_class=per_class, sampler=drawn, threads=threads)[0] for name in models
    }
    for line in table(found):
        click.echo(line)


def main() -> NoReturn:
    """Entry point."""

    def start() -> object:
        try:
            return cli.main(prog_name="synthfactory-train", standalone_mode=False)
        except RuntimeError as error:
            from train.watch import StoppedError

            if not isinstance(error, StoppedError):
                raise
            say(f"Error: {error}")
            return EXIT_FAULT

    end_with(start)


if __name__ == "__main__":
    main()
