"""The card of a model folder, README.md: what config.json and figures.json say, in words. What was not measured is said so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from synthfactory.model.folder import FIGURES, ModelFolder, open_model
from synthfactory.phantom import CLASSES
from synthfactory.plan.calibration import (
    DISTANCE_FLOOR,
    DISTANCE_MARGIN,
    MARGIN,
    Interval,
    Row,
    Table,
    read_calibration,
)

SHEET = "contact-sheet.webp"


def write_card(folder: Path) -> None:
    """Writes FOLDER/README.md anew."""
    model = open_model(str(folder))
    (folder / "README.md").write_text(
        "\n".join([*_head(model), *_training(model), *_figures(model), *_solvers(model), ""])
    )


def add_figures(folder: Path, figures: dict[str, Any]) -> None:
    """Merges `figures` into FOLDER/figures.json and renews the card."""
    known = open_model(str(folder)).figures
    (folder / FIGURES).write_text(json.dumps({**known, **figures}, indent=1) + "\n")
    write_card(folder)


def _head(model: ModelFolder) -> list[str]:
    sit, licence = model.config["sit"], model.licence
    megabytes = sum((model.path / name).stat().st_size for name in model.config["files"]) / 1e6
    return [
        f"# {model.id}, revision {model.revision}",
        "",
        f"A latent diffusion model of {model.tile_size_px} x {model.tile_size_px} px tiles at {model.resolution_mpp} um/px, conditioned on "
        f"embeddings of width {model.condition_width}. For research on data tools, never for diagnosis. {_taught(model)}",
        "",
        "| | |",
        "|---|---|",
        f"| sha256 of config.json (which names the weights' sha256) | `{model.sha256}` |",
        f"| SiT | {sit['depth']} blocks, width {sit['width']}, {sit['heads']} heads, patch {sit.get('patch_size', 2)} |",
        f"| weights | {megabytes:.1f} MB, {_formats(model)} safetensors, averaged (EMA) |",
        *([f"| draws | {model.domain} |"] if model.domain else []),
        f"| terms | {licence['name']}; sharing: {licence.get('sharing', 'local')} |",
        "",
    ]


def _taught(model: ModelFolder) -> str:
    """What its tiles may show of whom: flagged synthetic tiles, and those of invented tissue, are of nobody. Bases count as well."""
    kept = "it may have kept something of these patients, and what it draws may show it. Nothing was measured of that."
    training, of_base = model.config["training"], False
    while training and "tiles" in training:
        real = training["tiles"] - training.get("synthetic_tiles", 0)
        if real and not set(training["classes"]) <= set(CLASSES):
            unknown = training.get("unknown_patients", 0)
            whose = f" ({unknown:,} of them of unknown patients)" if unknown else ""
            return f"{real:,} tiles that taught {'its base' if of_base else 'it'} were not flagged synthetic{whose}: {kept}"
        if not training.get("base"):
            return "No tile shows a real patient or diagnosis where the tiles that taught it are invented, as the built-in model's are."
        training, of_base = training["base"].get("training"), True
    return f"What taught its base is not stated there; if real tiles did, {kept}"


def _formats(model: ModelFolder) -> str:
    """Of the weights: float16, or float32 of a model that went on from such a one, or both."""
    found: set[str] = set()
    for name in model.config["files"]:
        if name.endswith(".safetensors"):
            with safe_open(model.path / name, framework="np") as weights:
                found |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118 - not a mapping
    named = {"F16": "float16", "F32": "float32", "BF16": "bfloat16"}
    return " and ".join(sorted(named[kind] for kind in found if kind in named))


def _steps(run: Mapping[str, Any]) -> str:
    """Of a run that was not done when it was exported, how many it would have been as well."""
    return f"{run['steps']:,}" + (f" (of {run['of_steps']:,})" if "of_steps" in run else "")


def _training(model: ModelFolder) -> list[str]:
    training, hours = model.config["training"], model.figures.get("training_hours", {})
    lines = [
        "## Training",
        "",
        f"{training['tiles']:,} tiles of {len(training['classes'])} classes ({', '.join(training['classes'])}); data sha256 "
        f"`{training['data_sha256']}`; torch {training['torch']}. Hours are of wall clock on the machine that trained it.",
        "",
        "| part | steps | batch | precision | seed | hours |",
        "|---|---:|---:|---|---:|---:|",
    ]
    lines.extend(
        f"| {part} | {_steps(run)} | {run['batch']} | {run['precision']} | {run['seed']} | {hours.get(part, 'not recorded')} |"
        for part, run in training["runs"].items()
    )
    made = training.get("synthetic_tiles", 0)
    if made:
        lines += ["", f"{made:,} of the tiles were synthetic."]
    left_out = training.get("tars_left_out", 0)
    if left_out:
        lines += ["", f"{left_out:,} of the tars were damaged and left out."]
    learns, base = training.get("learns"), training.get("base")
    while base:
        before = base.get("training") or {}
        runs = ", ".join(
            f"{part} {_steps(run)} steps of {run['batch']}" for part, run in before.get("runs", {}).items()
        )
        lines += [
            "",
            f"Goes on from {base['id']}, revision {base['revision']} (`{base['sha256'][:12]}`{f'; {runs}' if runs else ''}); "
            f"learnt: {learns}.",
        ]
        learns, base = before.get("learns"), before.get("base")
    return [*lines, ""]


def _figures(model: ModelFolder) -> list[str]:
    found, timing = model.figures.get("agreement"), model.figures.get("timing")
    if not found or not timing:
        return ["## Figures", "", *_logged(model)]
    sampler, figures = found["sampler"], model.figures
    lines = [
        "## Figures",
        "",
        f"By `{found['command']}`. Judge, reals and conditions are of patients that neither model nor judge was trained on; the judge "
        "(a CNN on pixels) shares nothing with the conditioning encoder. "
        f"Sampler: {sampler['solver']}, {sampler['steps']} steps, guidance {sampler['guidance']['scale']:g}; "
        f"{found['tiles_per_class']} tiles of each class. "
        "Brackets hold 95 % intervals, over patients where there are several tiles of one.",
        "",
        "| | |",
        "|---|---:|",
        f"| judge's accuracy on reals | {_with(found, 'judge_accuracy_on_real', 'judge_accuracy_on_real_95')} |",
        f"| judge agrees with the class of the condition | {_with(found, 'agreement_of_generated', 'agreement_95')} |",
        f"| ratio | {_with(found, 'ratio', 'ratio_95')} |",
        *(
            f"| probe on the {name}'s features, trained on drawn tiles alone / on as many real tiles | {one['synthetic_only']:.3f} / "
            f"{one['real_only']:.3f} = {_with(one, 'ratio', 'ratio_95')} |"
            for name, one in figures.get("probes", {}).items()
        ),
        *_diversity(figures.get("diversity")),
        f"| autoencoder, PSNR on unseen tiles | {_with(found, 'vae_psnr_db', 'vae_psnr_db_95', 2)} dB |",
        f"| drawing and decoding, {timing['threads']} threads of {timing['machine']} | {timing['tiles_per_second']:.2f} tiles/s |",
        "",
        "| class | judge on reals | agreement |",
        "|---|---:|---:|",
    ]
    lines.extend(
        f"| {name} | {_with(pair, 'real', 'real_95')} | {_with(pair, 'generated', 'generated_95')} |"
        for name, pair in found["per_class"].items()
    )
    return [
        *lines,
        "",
        *_distances(figures.get("distances", {})),
        *_structure(figures.get("structure", []), figures.get("detectors", {})),
        "Agreement flatters: the judge accepts tiles whose fine structure is wrong. Look at the sheet. In each pair of rows the upper has "
        "the real (invented) tile whose embedding conditioned the tile below it.",
        "",
        f"![Real and drawn tiles side by side]({SHEET})",
        "",
        "Not measured: memorisation of training tiles, anything on a GPU.",
    ]


def _logged(model: ModelFolder) -> list[str]:
    """What a run's own log says, where nothing else was measured."""
    log = {name: value for name, value in model.figures.get("log", {}).items() if isinstance(value, int | float)}
    said = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in log.items() if name != "step")
    return [
        *([f"Last line of the run's log, at step {log['step']:,}: {said}."] if said and "step" in log else []),
        *(
            ["`validation` is of patients that were held out of that run, as far as patients are known."]
            if any("validation" in name for name in log)
            else []
        ),
        "What it remembers of single tiles that taught it has not been measured.",
        "Tiles that it draws have not been measured: of phantom tissue `synthfactory-train measure FOLDER` does, of any other "
        "`synthfactory evaluate` a set that was built with it.",
    ]


def _with(found: dict[str, Any], name: str, interval: str, digits: int = 3) -> str:
    """A value and its interval, where that was measured."""
    between = found.get(interval)
    return f"{found[name]:.{digits}f}" + (f" ({between[0]:.{digits}f} to {between[1]:.{digits}f})" if between else "")


def _diversity(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    return [
        f"| spread of {found['tiles_each']} tiles of one condition / of {found['tiles_each']} real tiles of one patient "
        f"({found['conditions']} conditions, {found.get('patients', found['conditions'])} patients) | {_with(found, 'ratio', 'ratio_95')} |"
    ]


def _distances(spaces: dict[str, dict[str, Any]]) -> list[str]:
    if not spaces:
        return []
    lines = [
        "Distances to the conditions' tiles, in spaces standardised by them; beside each that of as many real tiles of other patients.",
        "",
        "| space | tiles | kernel, drawn | kernel, real | Frechet, drawn | Frechet, real |",
        "|---|---:|---|---|---|---|",
    ]
    for name, found in spaces.items():
        kernels = [_with(found, f"kernel_{who}", f"kernel_{who}_95") for who in ("drawn", "real")]
        frechet = [
            _with(found, key, f"{key}_95", 2) if key in found else "too few tiles"
            for key in ("frechet_drawn", "frechet_real")
        ]
        lines.append(f"| {name} | {found['tiles']:,} | {' | '.join([*kernels, *frechet])} |")
    return [*lines, ""]


def _structure(rows: list[dict[str, Any]], detectors: dict[str, float]) -> list[str]:
    if not rows:
        return []
    seen = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in detectors.items())
    lines = [
        "Structures, counted by image analysis alone (train/structure.py), the same for both. Apart: Wasserstein distance in standard "
        "deviations of the real tiles, beside that of two sets of real tiles. Rank correlation of each detector with what the generator "
        f"drew, on real tiles of all classes: {seen}.",
        "",
        "| class | structure | real | drawn | drawn - real (95 %) | apart | real tiles apart |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    lines.extend(
        f"| {row['class']} | {row['measure'].replace('_', ' ')} | {row['real']:.2f} | {row['drawn']:.2f} "
        f"| {row['off_95'][0]:.2f} to {row['off_95'][1]:.2f} | {row['apart']:.2f} | {row['apart_real']:.2f} |"
        for row in rows
    )
    return [*lines, ""]


def _solvers(model: ModelFolder) -> list[str]:
    """Quality against network calls, where `synthfactory calibrate` has written a table beside the model."""
    found = read_calibration(model.sha256, str(model.path))
    if found is None:
        return []
    lines = ["", "## Solvers", "", f"By `{found.command}`.", ""]
    for table in found.tables:
        lines += _solver_table(table)
    return [
        *lines,
        "Class agreement: share of tiles in whose embedding a linear probe, trained on the conditions' bank, finds the condition's class. "
        "Cosine: of the tile's embedding to its condition. Kernel distance: of the tiles' embeddings to the conditions (KID's kernel, "
        f"standardised). No worse: by the bad end of the paired 95 % interval, class and cosine less than {MARGIN} below the reference, "
        f"and the distance less than {DISTANCE_MARGIN:.0%} of the reference's, or {DISTANCE_FLOOR} where that is more, above it. "
        "The encoder is the one that conditions the model.",
    ]


def _solver_table(table: Table) -> list[str]:
    guidance = table.guidance
    ranked = sorted(table.rows, key=lambda row: (row.kernel_distance, row.calls_per_tile))
    return [
        f"Guidance {guidance.scale:g} from t = {guidance.low:g} to {guidance.high:g}, its calls counted; {table.reference.tiles:,} tiles "
        "a setting, the same conditions and noises in all. Ranked by kernel distance; brackets hold 95 % intervals.",
        "",
        "| solver | steps | calls | kernel distance | class agreement | cosine | no worse |",
        "|---|---:|---:|---|---|---|---|",
        _solver_row(table.reference, "reference"),
        *(_solver_row(row, "yes" if table.no_worse(row) else "no") for row in ranked),
        "",
    ]


def _solver_row(row: Row, verdict: str) -> str:
    def shown(value: float, interval: Interval) -> str:
        return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"

    return (
        f"| {row.sampler.solver} | {row.sampler.steps} | {row.calls_per_tile:,} "
        f"| {shown(row.kernel_distance, row.kernel_distance_95)} "
        f"| {shown(row.class_agreement, row.class_agreement_95)} | {row.cosine:.3f} | {verdict} |"
    )
