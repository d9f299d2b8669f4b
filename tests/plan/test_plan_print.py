"""The plan as a user sees it: what it adds, what it costs, whom it rests on, and never over 80 columns."""

from __future__ import annotations

from dataclasses import replace
from unicodedata import combining, east_asian_width

import pytest
from planning import MODEL, grow, spec_of, summaries

from synthfactory.plan.plan import ClassSummary, Plan, make_plan, render
from synthfactory.spec.errors import InputError

PLAIN = "sampler: {solver: euler, steps: 10, guidance: {scale: 1}}"
LONG = {"a" * 63 + str(number): 10**9 for number in range(3)}


def plan_of(classes: dict[str, object], *lines: str, patients: int = 40, unknown_rows: int = 0) -> Plan:
    spec = spec_of(classes, *lines)
    return make_plan(spec, model=MODEL, bank=summaries(spec, patients, unknown_rows=unknown_rows))


def columns(line: str) -> int:
    return sum(0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1 for character in line)


def test_a_first_plan() -> None:
    text = render(plan_of({"gland": 1200, "rare one": 60}, PLAIN, "output: {path: out, shard_size: 100}"))
    assert text.splitlines() == [
        "demo: model phantom revision 1, into out",
        "",
        "class    tiles calls/tile patients effective rows  labels of",
        "gland    1,200         10       40        40  400  tile",
        "rare one    60         10       40        36  400  tile",
        "total    1,260",
        "",
        "shards         13 (13 of them new), png, about 126 MB in all",
        "network calls  12,600 without rejects, at most 50,400",
        "time           unknown: no speed is stated; `synthfactory pilot` measures it",
        "",
        "note: no screen is on; every tile that is drawn is kept",
    ]


def test_a_plan_that_grows_a_set_counts_what_is_missing_only() -> None:
    spec = spec_of({"A": 30, "B": 10}, PLAIN, "output: {path: out, shard_size: 10}")
    rounds = grow([{"A": 10, "B": 10}], 10)
    plan = make_plan(spec, model=MODEL, bank=summaries(spec), rounds=rounds, committed={"A": 5, "B": 10}, shards_done=1)
    assert plan.cost.network_calls == 25 * 10
    assert plan.new_round is not None
    assert plan.new_round.ranges == {"A": (10, 30)}
    assert "4 (1 of them there, 2 of them new)" in render(plan)
    done = make_plan(
        spec, model=MODEL, bank=summaries(spec), rounds=plan.all_rounds, committed={"A": 30, "B": 10}, shards_done=4
    )
    assert (done.new_round, done.cost.network_calls, done.all_rounds) == (None, 0, plan.all_rounds)
    assert "4 (4 of them there)" in render(done)
    assert "network calls  none: nothing is left to draw" in render(done)
    assert "time  " not in render(done)


def test_what_found_no_candidate_is_not_drawn_again() -> None:
    spec = spec_of({"A": 30, "B": 10}, PLAIN)
    rounds = grow([{"A": 30, "B": 10}], 10)
    plan = make_plan(
        spec, model=MODEL, bank=summaries(spec), rounds=rounds, committed={"A": 25, "B": 10}, shortfall={"A": 5}
    )
    assert plan.cost.network_calls == 0
    assert "note: A: 5 tiles found no candidate and stay empty; ask for more of the class" in " ".join(
        render(plan).split()
    )


def test_a_class_that_the_spec_no_longer_names_stays_and_is_said_to() -> None:
    spec = spec_of({"A": 30}, PLAIN, "output: {path: out, shard_size: 10}")
    plan = make_plan(
        spec, model=MODEL, bank=summaries(spec), rounds=grow([{"A": 30, "B": 10}], 10), committed={"A": 30, "B": 10}
    )
    assert "note: out also holds 10 tiles of B, which the spec no longer names; they stay" in " ".join(
        render(plan).split()
    )


def test_what_the_model_draws_is_said_where_labels_do_not() -> None:
    spec = spec_of({"A": 30}, PLAIN)
    plan = make_plan(spec, model=replace(MODEL, domain="invented tissue"), bank=summaries(spec))
    assert "note: model phantom draws invented tissue" in render(plan)


def test_shrinking_is_refused_at_its_place_in_the_spec() -> None:
    rounds = grow([{"A": 10, "A: b": 10}], 10)
    spec = spec_of({"A": 10, "A: b": 9})
    with pytest.raises(
        InputError, match=r"^s\.yaml:3:11: classes\.A: b: 9 tiles, but the output already holds 10; .*10 or more"
    ):
        make_plan(spec, model=MODEL, bank=summaries(spec), rounds=rounds)
    spec = spec_of({"A": "{fraction: 0.5}", "B": "{fraction: 0.5}"}, "total: 10")
    with pytest.raises(InputError, match=r"^s\.yaml:2:3: classes\.A: 5 tiles, .*a larger total will do"):
        make_plan(spec, model=MODEL, bank=summaries(spec), rounds=rounds)


def test_time_is_a_range_and_a_measured_speed_narrows_it() -> None:
    spec = spec_of({"A": 3600}, PLAIN)
    stated = make_plan(spec, model=replace(MODEL, seconds_per_call=0.1), bank=summaries(spec))
    assert "time           30 min to 2 h on one device; shards are shared by up to 4 workers" in render(stated)
    long = make_plan(spec, model=replace(MODEL, seconds_per_call=9e4), bank=summaries(spec))
    assert "18,750 days to 75,000 days" in render(long)
    measured = make_plan(spec, model=replace(MODEL, seconds_per_call=9.0), bank=summaries(spec), seconds_per_call=0.1)
    assert measured.cost.seconds == pytest.approx((3000, 4320))
    one, many = (
        make_plan(spec_of({"A": n}), model=replace(MODEL, seconds_per_call=1.0), bank=summaries(spec))
        for n in (3, 10**7)
    )
    assert "on one device; 1 shard keeps 1 worker busy" in render(one)
    assert "on one device, divided by the number of workers" in " ".join(render(many).split())


def test_what_a_class_rests_on_is_said() -> None:
    text = render(plan_of({"A": 10}, patients=1, unknown_rows=12))
    assert "1?" in text
    assert "note: A: 12 rows name no patient; they count as one patient" in text
    assert "note: A rests on 1 patient only; its tiles will resemble them" in text
    assert "A rests on 4 patients only; its" in render(plan_of({"A": 12}, patients=4))
    assert "4 patients only (3.85 effective)" in render(plan_of({"A": 10}, patients=4))
    assert "5 patients only (4.45 effective)" in render(plan_of({"A": 7}, patients=5))
    assert "3 patients only" in render(plan_of({"A": 3}, patients=40)), "three tiles follow three patients"
    assert "rests on" not in render(plan_of({"A": 10}, patients=5))
    assert "warning: output.format: jpeg" in render(plan_of({"A": 10}, "output: {path: out, format: jpeg}"))


def test_a_class_of_one_site_beside_classes_of_several_is_said() -> None:
    spec = spec_of({"A": 10, "B": 10})

    def told(*sites: int) -> str:
        both = zip(summaries(spec).items(), sites, strict=True)
        return render(make_plan(spec, model=MODEL, bank={name: replace(of, sites=count) for (name, of), count in both}))

    assert "note: A rests on one site, as far as sites are known, other classes on more;" in told(1, 3)
    assert "one site" not in told(1, 1) + told(0, 3) + told(2, 3)


@pytest.mark.parametrize("levels", [("tile",), ("region", "slide", "tile")])
@pytest.mark.parametrize(
    "classes",
    [
        LONG,
        {"腺" * 60 + "a": 10**9},
        {"e\u0301" * 32: 10**12},
        {f"Class {number} of many": number + 1 for number in range(100)},
    ],
    ids=["long", "wide", "combining", "many"],
)
def test_no_line_is_over_80_columns(classes: dict[str, object], levels: tuple[str, ...]) -> None:
    spec = spec_of(
        classes,
        "name: abcdefghij",
        f"output: {{path: 's3://bucket/{'deep/' * 40}set', format: jpeg, shard_size: 1}}",
        "sampler: {steps: 10_000}",
        "budget: {max_attempts: 100}",
    )
    model = replace(MODEL, id="m" * 90, revision="r" * 64, seconds_per_call=3.0)
    bank = {name: ClassSummary(10**9, 4, 2, 10**8, levels) for name in spec.classes}
    text = render(make_plan(spec, model=model, bank=bank))
    assert max(map(columns, text.splitlines())) <= 80
    assert "".join(text.split()).count("s3://bucket/" + "deep/" * 40) == 1, "the whole path can be read"
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\n\n\n" not in text


def test_long_names_can_still_be_told_apart() -> None:
    lines = render(plan_of(dict(LONG))).splitlines()
    shown = [line.split()[0] for line in lines if "…" in line and "1,000,000,000" in line]
    assert len(set(shown)) == len(LONG)
    assert all(name.startswith("aaaa") for name in shown)
    assert any("3,000,000,000" in line for line in lines)
