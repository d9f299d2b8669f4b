"""An audit's report as a table of at most 80 columns, with the reason wherever there is no figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthfactory.spec.text import shown

Json = Mapping[str, Any]
NAME = 30


def render(found: Json) -> list[str]:
    """What was attacked, the controls, every figure with its 99.9 % interval, what was not measured."""
    members, holdout, tiles = found["members"], found["holdout"], found["set"]
    lines = [
        f"audit of {tiles['name']}: {tiles['tiles']:,} tiles, lock {tiles['lock_sha256'][:12]}",
        f"members {members['tiles']:,} tiles of {members['patients']:,} patients, holdout {holdout['tiles']:,} of {holdout['patients']:,}",
        *_whom(members["of_the_set"]),
        f"encoder {found['encoder']['id']}: {found['encoder']['note']}",
        "",
        *render_controls(found["controls"]),
        "",
        f"{'figure':<{NAME}} {'value':>7}  {'99.9 % interval':<16} of",
        *_line("copies (false alarms: below)", found["copies"]["rate"]),
    ]
    if "threshold" in found["copies"]:
        lines += _line("  false alarms, real tiles", found["copies"]["threshold"]["false_alarms"])
    lines += _line("nearer to members than others", found["nearer_to_members"])
    ratio = found["ratio_to_second"]
    lines += _line("nearest / second, drawn", ratio["drawn"]) if "drawn" in ratio else _line("nearest / second", ratio)
    lines += _line("nearest / second, real", ratio["real"]) if "real" in ratio else []
    lines += _membership(found["membership"])
    lines += _by_class(found)
    lines += _epsilon(found["epsilon"])
    return [
        *lines,
        "",
        *(f"not measured: {text}" for text in found["not_measured"]),
        found["internal"].partition(". ")[2],
    ]


def _whom(found: Json | None) -> list[str]:
    if found is None:
        return []
    return [f"of the {found['patients']:,} patients behind the set {found['found']:,} were found: the members"]


def render_controls(controls: Json) -> list[str]:
    """A line each, and why one failed or was not run."""
    lines = []
    for name, each in controls.items():
        word = {True: "passed", False: "FAILED", None: "not run"}[each["passed"]]
        if "found" in each:
            low, high = each["found_999"]
            word += f", {each['found']:.1%} of {each['planted']:,} found ({low:.1%} to {high:.1%})"
        elif each.get("figures"):
            word += f", {len(each['figures'])} attacks on it"
        lines.append(f"control, {name + ':':<16} {word}")
    return lines


def _line(name: str, figure: Json, number: str = "{:.3f}") -> list[str]:
    label = shown(name, NAME)
    if figure["value"] is None:
        return [f"{label:<{NAME}} {'-':>7}  {str(figure['why']).partition('; ')[0]}"]
    low, high = (number.format(end) for end in figure["interval_999"])
    count = f"{figure['n']:,}" if "n" in figure else ""
    return [f"{label:<{NAME}} {number.format(figure['value']):>7}  {f'{low} to {high}':<16} {count}".rstrip()]


def _membership(found: Json) -> list[str]:
    if "value" in found:
        return _line("membership, AUC", found)
    lines = []
    for name, attack in found.items():
        area = attack["auc"]
        counts = {} if area["value"] is None else {"n": attack["members"] + attack["others"]}
        lines += _line(f"AUC, {name}", {**area, **counts})
        for hit in attack.get("tpr", ()):
            lines += _line(f"  members found at {hit['at_fpr']:.1%} FPR", hit)
        if "worst_decile" in attack:
            lines += _line("  members in the top tenth", attack["worst_decile"])
    return lines


def _by_class(found: Json) -> list[str]:
    """A line a class, the rarest first."""
    if "membership_by_class" not in found:
        return []
    lines = ["", f"{'class, rarest first':<{NAME}} {'patients':>8} {'copies':>7} {'nearer':>7}  AUC, whitened"]
    for label, attacks in found["membership_by_class"].items():
        attack = attacks["whitened"]
        area = attack["auc"]
        copies = found["copies"].get("by_class", {}).get(label, {"value": None})["value"]
        near = found["nearer_to_members"]["by_class"][label]["value"]
        words = ["-" if value is None else f"{value:.3f}" for value in (copies, near)]
        text = "- (n too small)"
        if area["value"] is not None:
            low, high = area["interval_999"]
            text = f"{area['value']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"{shown(label, NAME):<{NAME}} {attack['members']:>8,} {words[0]:>7} {words[1]:>7}  {text}")
    return lines


def _epsilon(found: Json) -> list[str]:
    if "at_least_999" not in found:
        return ["", f"epsilon: {found['why']}"]
    stated = found["stated_epsilon"]
    lines = [
        "",
        f"epsilon: these attacks show at least {found['at_least_999']:.3f} (99.9 %); stated is {stated:g}",
        f"  so many patients could show at most {found['most_999']:.3f}"
        + (": too few to test what is stated" if found["most_999"] < stated else ""),
    ]
    if found["contradicts_what_is_stated"]:
        lines.append("epsilon: MORE THAN IS STATED: the mechanism, or its use, does not hold what it promises")
    return lines
