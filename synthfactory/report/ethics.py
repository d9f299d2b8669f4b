"""One page for an ethics board: threat model, mechanism and exact guarantee, what remains, what was attacked and how it went."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthfactory.plan.lock import lock_yaml
from synthfactory.report.card import SHARING, cell, environment
from synthfactory.report.facts import (
    bags,
    cohort,
    gather,
    is_unconditional,
    other_terms,
    overlapping,
    privacy,
    rests_on_patients,
    terms,
    tiles_sha256,
)
from synthfactory.shards.commit import Commit
from synthfactory.spec.errors import InputError

TITLE = ": privacy, on one page"  # ends the first line
AUDIT_FORMAT = "synthfactory-audit/1"


def ethics_page(
    lock: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    commits: Mapping[int, Commit],
    audit: Mapping[str, Any] | None = None,
    people: Mapping[str, tuple[int, int, int, int]] | None = None,
    people_all: tuple[int, int] | None = None,
) -> str:
    """The page, Markdown; a pure function of its arguments. `people`: class -> (tiles, patients they rest on, most tiles of one,
    tiles of which not all patients are known); `people_all`: (patients, most tiles of one) over all classes.

    InputError where the audit is of another set, or is none.
    """
    says, name, facts = lock["recipe"]["privacy"], terms(lock)[0], gather(lock, rounds, commits)
    text: str = (
        environment()
        .get_template("ethics.md.j2")
        .render(
            lock=lock,
            facts=facts,
            people=people,
            people_all=people_all,
            overlapping=overlapping(lock),
            tiles_sha256=tiles_sha256(commits),
            other_terms=other_terms(lock),
            mechanism=says["mechanism"],
            says=says,
            privacy=privacy(lock, cell),
            bags=bags(lock),
            cohort=cohort(lock),
            unconditional=is_unconditional(lock),
            factor=_up(math.exp(says.get("epsilon", 0.0)), 4),
            bound=_up(_bound(says), 3),
            audit=None if audit is None else list(_audited(audit, lock, commits)),
            attacked=audit is not None and _attacked(audit),
            terms_name=name,
            sharing_words=SHARING[lock["terms"]["sharing"]],
        )
    )
    return text


def _up(value: float, digits: int) -> str:
    """At least the value, with that many digits behind the point: a bound that is rounded down is none."""
    return "not finite" if not math.isfinite(value) else f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _bound(says: Mapping[str, Any]) -> float:
    if says["mechanism"] != "dp":
        return math.nan
    from synthfactory.privacy.accountant import auc_bound, mu_for

    return auc_bound(mu_for(says["epsilon"], says["delta"]))  # no release of this epsilon and delta has a larger mu


def _audited(audit: Mapping[str, Any], lock: Mapping[str, Any], commits: Mapping[int, Commit]) -> Iterator[str]:
    """What an audit found, a line each."""
    if audit.get("format") != AUDIT_FORMAT:
        raise InputError("--audit: is no report of `synthfactory audit`")
    of = audit.get("set")
    if not isinstance(of, Mapping) or of.get("lock_sha256") != hashlib.sha256(lock_yaml(lock)).hexdigest():
        raise InputError("--audit: is of another set, or of this one before it changed; run `synthfactory audit` again")
    made = sum(commit.tiles for commit in commits.values())
    if of.get("tiles") != made:  # growth leaves the lock as it is
        raise InputError(
            f"--audit: is of this set with {of.get('tiles')} tiles, and it has {made:,} now; run `synthfactory audit` again"
        )
    if of.get("tiles_sha256") != tiles_sha256(commits):  # and so does a revocation after another
        raise InputError("--audit: is of other tiles than the set has now; run `synthfactory audit` again")
    try:
        yield _compared(audit["members"], audit["holdout"], rests=rests_on_patients(lock))
        yield f"looked at with {audit['encoder']['id']}, {audit['encoder']['note']}"
        for name, control in audit["controls"].items():
            held = {True: "held", False: "FAILED", None: "could not be run"}[control["passed"]]
            yield f"control, {name}: {held}" + (f" ({control['why']})" if control.get("why") else "")
        share = " tiles" if audit["copies"]["rate"].get("value") is not None else ""
        yield f"near copies of members, by {audit['copies']['by']}: {_figure(audit['copies']['rate'])}{share}"
        yield f"tiles nearer to members than to as many others (0.5 is chance): {_figure(audit['nearer_to_members'])}"
        membership = audit["membership"]
        for name, attack in membership.items() if "why" not in membership else ():
            people = {"n": attack["members"] + attack["others"]} if "members" in attack else {}
            yield f"membership by {name}, area under the curve (0.5 is chance): {_figure({**attack['auc'], **people})} patients"
        if "why" not in membership and "whitened" not in membership:
            yield "not measured: membership by whitened, the strongest of today's attacks on blends; the audit is of an earlier version"
        epsilon = audit["epsilon"]
        if "at_least_999" in epsilon:
            against = ", which CONTRADICTS what is stated" if epsilon["contradicts_what_is_stated"] else ""
            shown, most, stated = (epsilon[name] for name in ("at_least_999", "most_999", "stated_epsilon"))
            yield (
                f"epsilon that the attacks show at least (99.9 %): {shown:.2f}, of at most {most:.2f} that so many patients could show; "
                f"stated is {stated:g}{against}"
            )
            if most < stated:
                yield "so this audit cannot test the epsilon that is stated, whatever the set gives away"
        for text in audit["not_measured"]:
            yield f"not measured: {text}"
    except (KeyError, TypeError, AttributeError):
        raise InputError("--audit: is a damaged report; run `synthfactory audit` again") from None


def _compared(members: Mapping[str, Any], holdout: Mapping[str, Any], *, rests: bool) -> str:
    sides = [f"{side['tiles']:,} tiles of {side['patients']:,} patients" for side in (members, holdout)]
    of = members["of_the_set"]
    if not rests:
        return f"compared: members, {sides[0]}, and others, {sides[1]}"
    who = (
        "whether the members are whom the set rests on was not looked at"
        if of is None
        else f"of the {of['patients']:,} patients behind the set {of['found']:,} were found, who are the members here"
    )
    return f"compared: members, {sides[0]}, and others, {sides[1]}; {who}"


def _attacked(audit: Mapping[str, Any]) -> bool:
    """Whether any attack of a report that `_audited` took has come to a figure."""
    membership = audit["membership"]
    attacks = [] if "why" in membership else [attack["auc"] for attack in membership.values()]
    return any(
        each.get("value") is not None for each in (audit["copies"]["rate"], audit["nearer_to_members"], *attacks)
    )


def _figure(found: Mapping[str, Any]) -> str:
    if found.get("value") is None:
        return str(found["why"])
    interval = found.get("interval_999")
    shown = f" (99.9 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    count = f", of {found['n']:,}" if "n" in found else ""
    return f"{found['value']:.3f}{shown}{count}"
