"""An evaluation's report as tables of at most 80 columns, with the reason wherever there is no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthfactory.spec.text import shown

Json = Mapping[str, Any]
NAME = 26
SHORT = {  # at most 11 letters
    "class weights": "weighted", "oversampled, stained anew": "oversampled", "real + synthetic": "with synth.",
    "synthetic only": "synth. only",
}  # fmt: skip


def render(found: Json) -> list[str]:
    """What was compared, then for each space fidelity, utility and shortcuts, then sites and codecs."""
    tiles = found["set"]
    lines = [f"evaluation of {tiles['name']}: {tiles['tiles']:,} tiles, lock {tiles['lock_sha256'][:12]}"]
    for option in ("real", "unseen"):
        side = found[option]
        if side is not None:
            lines.append(
                f"{option}: {side['tiles']:,} tiles of {side['patients']:,} patients, {', '.join(side['codecs'])}"
            )
    if found["contaminated"]:
        counts = ", ".join(f"{option} {each['patients']:,}" for option, each in found["contaminated"].items())
        lines.append(f"* contaminated: CytoSyn was trained on TCGA (patients: {counts})")
    for name, space in found["spaces"].items():
        lines += ["", f"in {shown(name, 40)}: {space['space']['note']}", *_fidelity(space["fidelity"])]
        lines += _utility(space["utility"])
        lines += _told_apart(space["told_apart"])
    if found["cnn"]:
        lines += ["", f"by a small CNN on pixels, from nothing{_mark(found['cnn'])}", *_utility(found["cnn"])]
    return [
        *lines,
        *_sites(found["sites"]),
        *_codecs(found["codecs"]),
        "",
        *(f"not measured: {text}" for text in found["not_measured"]),
    ]


def _mark(*sections: Json) -> str:
    """An asterisk where figures rest on tiles of the model's own training set."""
    return "*" if any(section.get("contaminated") for section in sections) else ""


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _cell(figure: Json | None) -> str:
    """value (low to high), or -."""
    if figure is None or figure.get("value") is None:
        return "-"
    interval, text = figure.get("interval_95"), _number(figure["value"])
    if "sd" in figure:
        return f"{text} (sd {_number(figure['sd'])})"
    return text if interval is None else f"{text} ({_number(interval[0])} to {_number(interval[1])})"


def _fidelity(found: Json) -> list[str]:
    if "why" in found:
        return [f"fidelity: {found['why']}"]
    mark = _mark(found)
    lines = [
        f"compared with {found['compared_with']}; {found['tiles_each']:,} tiles each, 95 % intervals",
        f"  {found['scale']}",
        f"{'figure' + mark:<{NAME}} {'drawn':<26} real",
    ]
    rows = [
        (f"{what} distance", *(found[f"{what}_{side}"] for side in ("drawn", "real"))) for what in ("kernel", "frechet")
    ]
    for what in ("precision", "recall", "density", "coverage"):
        sides = [found[f"manifold_{side}"] for side in ("drawn", "real")]
        rows.append((what, *(side.get(what, side) for side in sides)))
    for name, drawn, real in rows:
        lines.append(f"{name + mark:<{NAME}} {_cell(drawn):<26} {_cell(real)}".rstrip())
    lines.append(
        "  intervals: precision and density over the patients of the drawn side alone, recall and coverage over the other's; kernel "
        "distances: 0 within them shows nothing"
    )
    reasons = {row["why"] for _, *both in rows for row in both if row.get("value") is None and "why" in row}
    return [*lines, *(f"  -: {reason}" for reason in sorted(reasons))]


def _utility(found: Json) -> list[str]:
    if "arms" not in found:
        return [f"utility: {found['why']}"]
    rare, mark = found["rarest"], _mark(found)
    head = f"{'learned from' + mark:<{NAME}} {'balanced accuracy':<26} {'rarest' if rare else ''}".rstrip()
    lines = ["", head]
    for name, arm in found["arms"].items():
        lines.append(
            f"{name + mark:<{NAME}} {_cell(arm['balanced_accuracy']):<26} {_cell(arm.get('rarest')) if rare else ''}".rstrip()
        )
    gain, of_rare = found["gain"], found.get("gain_rarest")
    lines.append(
        f"{'gain over best free' + mark:<{NAME}} {_cell(gain['over_best_free']):<26} "
        f"{_cell(of_rare['over_best_free']) if of_rare else ''}".rstrip()
    )
    lines.append(f"{'synthetic / real only' + mark:<{NAME}} {_cell(found['synthetic_over_real'])}")
    if gain["best_free"] is not None:
        lines.append(
            f"  best free: {gain['best_free']}" + (f"; of the rarest: {of_rare['best_free']}" if of_rare else "")
        )
    lines.append(
        f"  rarest: {', '.join(shown(name) for name in rare)}" if rare else f"  rarest: none, {found['no_rarest']}"
    )
    lines += _means_over(found["too_few_in_the_test"], len(found["classes"]))
    figures = [gain["over_best_free"], found["synthetic_over_real"], *([of_rare["over_best_free"]] if of_rare else ())]
    figures += [arm[what] for arm in found["arms"].values() for what in ("balanced_accuracy", "rarest") if what in arm]
    lines += [f"  -: {reason}" for reason in sorted({each["why"] for each in figures if each["value"] is None})]
    lines += _recalls(found, mark)
    outside = found.get("leave_site_out")
    if outside and "gain" in outside:
        gain = outside["gain"]
        over = gain["over_best_free"]
        told = (
            f"gains {_cell(over)} over {gain['best_free']}" if over["value"] is not None else f"no gain, {over['why']}"
        )
        lines.append(f"leave-site-out{mark}, {outside['sites']} sites: {told}; {outside['note']}")
        lines += _means_over(outside["too_few_in_the_test"], len(found["classes"]))
        if outside["sites_not_judged"]:
            lines.append(
                f"  not judged: {outside['sites_not_judged']} more, of which every patient of --real has tiles"
            )
        without = outside["tiles_without_site"]
        if any(without.values()):
            lines.append(
                f"  left out, of no known site: {without['real']:,} tiles of --real, {without['test']:,} of --unseen"
            )
    elif outside:
        lines.append(f"leave-site-out: {outside['why']}")
    return lines


def _means_over(left_out: Sequence[str], classes: int) -> list[str]:
    """Which classes stand in no mean; nothing where all count."""
    if not left_out:
        return []
    names = ", ".join(shown(name) for name in left_out)
    return [f"  means are over {classes - len(left_out)} of {classes} classes; too few patients in the test: {names}"]


def _recalls(found: Json, mark: str) -> list[str]:
    """A line a class, those with fewest real tiles first."""
    order = sorted(found["classes"], key=lambda name: (found["classes"][name]["real"], name))
    arms = [
        arm
        for arm in ("real only", found["gain"]["best_free"], "real + synthetic", "synthetic only")
        if arm is not None and arm in found["arms"]
    ]
    arms = list(dict.fromkeys(arms))
    heads = " ".join(f"{SHORT.get(arm, arm):>11}" for arm in arms)
    lines = ["", f"{'recall of' + mark:<18} {'real':>6} {'drawn':>6} {heads}"]
    for name in order:
        values = [found["arms"][arm]["recall"][name]["value"] for arm in arms]
        cells = " ".join(f"{'-' if value is None else f'{value:.3f}':>11}" for value in values)
        counts = found["classes"][name]
        lines.append(f"{shown(name, 18):<18} {counts['real']:>6,} {counts['drawn']:>6,} {cells}")
    taken = [f"{name} {counts['real_taken']:,}" for name, counts in found["classes"].items() if "real_taken" in counts]
    if taken:
        lines.append(f"  real tiles that were learnt from, where not all: {', '.join(taken)}")
    lines += ["", f"{f'calibration error{mark} of':<{NAME}} {'':<26} a calibrated one by chance"]
    for arm in arms:
        error = found["arms"][arm]["calibration_error"]
        chance = f"{error['by_chance']:.3f}" if error.get("value") is not None else ""
        lines.append(f"{arm:<{NAME}} {_cell(error):<26} {chance}".rstrip())
    return lines


def _told_apart(found: Json) -> list[str]:
    if isinstance(found.get("why"), str):  # a class may be called so
        return ["", f"synthetic told from real: {found['why']}"]
    mark = _mark(*found.values())
    lines = ["", f"{'synthetic told from real' + mark:<{NAME}} area under the curve (0.5: not at all)"]
    for name, figure in found.items():
        text = _cell(figure) if figure["value"] is not None else f"- {figure['why']}"
        lines.append(f"{shown(name, NAME):<{NAME}} {text}")
    return lines


def _sites(found: Json) -> list[str]:
    if found.get("value") is None:
        return ["", f"site against class: {found['why']}"]
    without = f"; {found['tiles_without_site']:,} tiles state no site" if found["tiles_without_site"] else ""
    return [
        "",
        f"site against class{_mark(found)}: Cramer's V {_cell(found)} over {found['patients']:,} patients "
        f"(0: a site tells nothing of the class){without}",
    ]


def _codecs(found: Json) -> list[str]:
    if not found:
        return []
    if "why" in found:
        return ["", f"codecs: {found['why']}"]
    lines = []
    for space, codecs in found.items():
        mark = _mark(*codecs.values())
        lines += [
            "",
            f"saved anew, in {shown(space, 40)}: kernel distance to real tiles as they are",
            f"{'codec' + mark:<10} {'drawn':<28} other real tiles",
        ]
        for codec, each in codecs.items():
            cells = [
                _cell({"value": each[side]["kernel"], "interval_95": each[side]["kernel_95"]})
                for side in ("drawn", "real")
            ]
            lines.append(f"{codec:<10} {cells[0]:<28} {cells[1]}")
        reasons = {each[side]["why"] for each in codecs.values() for side in ("drawn", "real") if "why" in each[side]}
        lines += [f"  -: {reason}" for reason in sorted(reasons)]
    return lines
