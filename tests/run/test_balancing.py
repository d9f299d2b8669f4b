"""`balance` from the spec to the set: what plan prints, what is drawn, what is refused."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from revoke_making import WHO, resting, without
from running import run
from tinymodel import make_bank_file

from synthfactory.shards.reader import iter_tiles
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]


@pytest.fixture
def make(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A bank of 24, 12 and 3 rows (8, 4 and 1 patients)."""
    bank = make_bank_file(tmp_path / "bank.parquet", tiny / "model", {"alpha": 8, "beta": 4, "gamma": 1})

    def made(**changes: Any) -> Path:
        given = {"total": 18, "classes": {"alpha": {}, "beta": {}, "gamma": {}}, **changes}
        return spec_file(
            embeddings={"bank": str(bank)}, output={"path": str(tmp_path / "out"), "shard_size": 9}, **given
        )

    return made


def counts(tmp_path: Path) -> dict[str, int]:
    return dict(Counter(record["label"] for _, _, record in iter_tiles(str(tmp_path / "out"))))


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("uniform", {"alpha": 6, "beta": 6, "gamma": 6}),
        ("proportional", {"alpha": 11, "beta": 6, "gamma": 1}),
        ({"kind": "temperature", "temperature": 2.0}, {"alpha": 9, "beta": 6, "gamma": 3}),
        ({"kind": "effective_number", "beta": 0.0}, {"alpha": 6, "beta": 6, "gamma": 6}),
        ({"kind": "proportional", "against": {"alpha": 1, "beta": 1, "gamma": 4}}, {"alpha": 3, "beta": 3, "gamma": 12}),
        ("top_up", {"alpha": 6, "beta": 6, "gamma": 6}),
    ],
)  # fmt: skip
def test_a_total_is_shared_out(
    make: Callable[..., Path], tmp_path: Path, balance: Any, expected: dict[str, int]
) -> None:
    planned = run("plan", make(balance=balance))
    assert planned.code == 0, planned.err
    for name, count in expected.items():
        assert f"\n{name} " in planned.out and f" {count} " in planned.out.split(f"\n{name} ")[1].splitlines()[0]
    assert all(len(line) <= 80 for line in planned.out.splitlines())
    if balance == "uniform":
        assert run("build", make(balance=balance), "--local").code == 0
        assert counts(tmp_path) == expected
        assert run("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"temperature": 2.0}, {"kind": "temperature", "temperature": 2.0}),
        ({"temperature": 2, "against": {"alpha": 9, "beta": 3, "gamma": 1}},
         {"kind": "temperature", "temperature": 2.0, "against": {"alpha": 9, "beta": 3, "gamma": 1}}),
        ({"effective_number": 0.999}, {"kind": "effective_number", "beta": 0.999}),
        ({"effective_number": 0}, {"kind": "effective_number", "beta": 0.0}),
    ],
)  # fmt: skip
def test_short_forms_are_the_long_ones(make: Callable[..., Path], tmp_path: Path, short: Any, long: Any) -> None:
    one, other = (load_spec(str(make(balance=form))) for form in (short, long))
    assert one.model_dump() == other.model_dump()
    planned = [run("plan", make(balance=form)).out for form in (short, long)]
    assert planned[0] == planned[1] and "18 synthetic beside" in " ".join(planned[0].split())
    if short == {"temperature": 2.0}:
        locks = []
        for form in (short, long):
            assert run("build", make(balance=form), "--local").code == 0
            locks.append((tmp_path / "out/spec.lock.yaml").read_bytes())
        assert locks[0] == locks[1]


def test_plan_says_real_synthetic_total_and_effective_patients_and_the_trap(make: Callable[..., Path]) -> None:
    text = " ".join(run("plan", make(balance="uniform")).out.split())
    assert "uniform against the bank's rows: 18 synthetic beside 39 real" in text
    assert "gamma: 3 real and 6 synthetic are 9 (67% synthetic, from 1 effective patient)" in text
    assert "a classifier may learn that synthetic means one class" in text
    assert "gamma rests on 1 patient only" in text
    even = " ".join(run("plan", make(balance="top_up")).out.split())
    assert "take at most 3 real tiles of each class beside them" in even and "may learn" not in even
    capped = {"alpha": {"cap": 1}, "beta": {}, "gamma": {}}
    uneven = " ".join(run("plan", make(balance="top_up", classes=capped)).out.split())
    assert (
        "take at most 3 real tiles of each class beside them warning: beta would be 75% synthetic and alpha 25%"
        in uneven
    )
    topped = run("plan", make(balance={"kind": "top_up", "even_fraction": False}, total=60)).out
    assert "alpha: 24 real and 9 synthetic are 33" in " ".join(topped.split())
    assert "gamma: 3 real and 30 synthetic are 33" in " ".join(topped.split())


def test_a_larger_total_adds_and_takes_nothing_away(make: Callable[..., Path], tmp_path: Path) -> None:
    balance = {"kind": "temperature", "temperature": 3.0}
    assert run("build", make(balance=balance, total=10), "--local").code == 0
    before = {key: image.tobytes() for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    assert run("build", make(balance=balance, total=17), "--local").code == 0
    after = {key: image.tobytes() for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    assert len(after) == 17 and before.items() <= after.items()


def test_floors_and_caps_are_kept(make: Callable[..., Path]) -> None:
    classes = {"alpha": {"cap": 4}, "beta": {}, "gamma": {"floor": 7}}
    out = run("plan", make(balance="proportional", classes=classes)).out
    table = [line.split() for line in out.splitlines() if line.startswith(("alpha ", "beta ", "gamma "))]
    assert [row[1] for row in table] == ["4", "7", "7"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balance": "fair"}, "balance.kind: 'fair' is not 'uniform', 'proportional', 'temperature', 'effective_number' or 'top_up'"),
        ({"balance": {"alpha": 6, "beta": 2}},
         "balance: says counts, and needs none then: leave balance and total out, and write classes: {alpha: 6, beta: 2}"),
        ({"balance": {"temperature": 2.0, "effective_number": 0.9}}, "balance: says temperature and effective_number; keep one of them"),
        ({"balance": {"effective_number": 0.9, "beta": 0.9}}, "balance: says effective_number and beta; keep one of them"),
        ({"balance": {"effective_number": 1.5}}, "balance.effective_number: 1.5 is no number from 0 to below 1"),
        ({"balance": {"temperature": "hot"}}, "balance.temperature: 'hot' is no number"),
        ({"balance": {"against": "bank"}}, "balance.kind: is missing"),
        ({"balance": "temperature"}, "balance.temperature: is missing; kind temperature needs it"),
        ({"balance": {"kind": "uniform", "beta": 0.9}}, "balance.beta: goes with kind: effective_number"),
        ({"balance": {"kind": "uniform", "even_fraction": False}}, "balance.even_fraction: goes with kind: top_up"),
        ({"balance": "uniform", "total": None}, "total: is missing; balance shares it out"),
        ({"balance": "uniform", "classes": {"alpha": 4, "beta": {}}}, "classes.alpha: has a size of its own, which balance is to find"),
        ({"balance": {"kind": "proportional", "against": {"alpha": 1}}}, "balance.against: does not say how many real tiles beta has"),
        (
            {"balance": "uniform", "classes": {"alpha": {"cap": 2}, "beta": {"cap": 2}}},
            "total: 18 is too many: the caps allow 4; raise a cap",
        ),
        ({"balance": {"kind": "proportional", "against": {"alpha": 999, "beta": 999, "gamma": 1}}}, "gamma: comes to no tile of 18"),
        ({"balance": {"kind": "top_up", "even_fraction": False}}, "classes.alpha: has more real tiles than the others would have"),
        ({"classes": {"alpha": {}}, "total": None}, "classes.alpha: has neither count nor fraction"),
        ({"classes": {"alpha": {"count": 4, "floor": 2}}, "total": None}, "classes.alpha.floor: goes with balance"),
        (
            {"balance": "uniform", "privacy": {"mechanism": "dp", "epsilon": 1, "population": {"alpha": 9, "beta": 9, "gamma": 9},
             "cohort": "c", "label_level": "tile", "ledger": "/nowhere"}},
            "balance.against: bank: real counts are not covered by epsilon",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_balanced_is_refused(make: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in changes.items() if value is not None}
    spec = make(**given)
    if changes.get("total", 0) is None:
        spec.write_text("\n".join(line for line in spec.read_text().splitlines() if not line.startswith("total:")))
    refused = run("plan", spec)
    assert refused.code == 2, refused.out
    assert message in refused.err and "spec.yaml:" in refused.err and "Traceback" not in refused.err


COHORT = (
    "label,patient_id\n" + "alpha,a\n" * 30 + "alpha,b\n" * 10 + "beta,c\nbeta,d\n" + "gamma,\n" * 4 + "gut,e\nskin,f\n"
)


@pytest.mark.parametrize("form", ["classes.csv", "classes.parquet", "tiles.csv", "tiles.parquet"])
def test_real_counts_come_from_a_file(make: Callable[..., Path], tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    text = "label,count,patients\nalpha,40,2\nbeta,2,2\ngamma,4,\ngut,1,1\nskin,1,\n" if "classes" in form else COHORT
    if form.endswith(".csv"):
        path.write_text(text)
    else:
        pq.write_table(
            csv.read_csv(io.BytesIO(text.encode()), convert_options=csv.ConvertOptions(strings_can_be_null=True)), path
        )
    planned = run("plan", make(balance={"kind": "temperature", "temperature": 2.0, "against": str(path)}))
    assert planned.code == 0, planned.err
    table = [line.split() for line in planned.out.splitlines() if line.startswith(("alpha ", "beta ", "gamma "))]
    assert [row[1] for row in table] == ["11", "3", "4"]
    said = "".join(planned.out.split())
    assert f"temperature(2)against{path}:18syntheticbeside46real" in said
    assert f"{path}alsocountsgut,skin,ofwhichnotileisaskedfor" in said
    effective = "(1.6effective)" if "tiles" in form else ""
    assert f"alpha:40realof2patients{effective}and11syntheticare51(22%synthetic,from7.12effectivepatients)" in said
    assert "gamma:4realand4syntheticare8(" in said
    assert all(len(line) <= 80 for line in planned.out.splitlines())


def test_tiles_of_no_named_patient_are_said(make: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("label,patient_id\nalpha,a\nalpha,\nalpha,\nbeta,b\ngamma,c\n")
    out = " ".join(run("plan", make(balance={"kind": "uniform", "against": str(path)})).out.split())
    assert "alpha: 3 real of 2 patients (1.8 effective, 2 of no named patient taken as one's) and 6" in out


def test_a_file_without_a_class_is_refused_at_its_place(make: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("label,count\nalpha,4\nbeta,2\ngama,1\n")
    refused = run("plan", make(balance={"kind": "uniform", "against": str(path)}))
    assert refused.code == 2 and not (tmp_path / "out").exists()
    expected = f"balance.against: {path}: does not say how many real ones gamma has; is 'gama' (line 4) meant?"
    assert expected in refused.err and "spec.yaml:2:" in refused.err


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("bnak", "balance.against: 'bnak' is neither bank nor tcga, no .csv or .parquet file"),
        (7, "balance.against: says no counts"),
        ({"alpha": 0, "beta": 1, "gamma": 1}, "balance.against.alpha: 0 is no whole number from 1"),
        ({"alpha": 1.5, "beta": 1, "gamma": 1}, "balance.against.alpha: 1.5 is no whole number from 1"),
        ("s3://a/../cohort.csv", "has '..' inside a URL"),
    ],
)
def test_what_says_no_counts_is_refused_once(make: Callable[..., Path], against: Any, message: str) -> None:
    refused = run("plan", make(balance={"kind": "uniform", "against": against}))
    assert refused.code == 2 and message in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_a_file_of_real_counts_goes_neither_into_the_set_nor_under_an_epsilon(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    inside = run("plan", make(balance={"kind": "uniform", "against": str(tmp_path / "out" / "cohort.csv")}))
    assert inside.code == 2 and "balance.against: lies inside output.path" in inside.err
    dp = {"mechanism": "dp", "epsilon": 1, "population": {"alpha": 9, "beta": 9, "gamma": 9},
          "cohort": "c", "label_level": "tile", "ledger": "/nowhere"}  # fmt: skip
    refused = run("plan", make(balance={"kind": "uniform", "against": "cohort.csv"}, privacy=dp))
    assert refused.code == 2
    assert (
        "balance.against: cohort.csv: real counts are not covered by epsilon, and the set's would tell them"
        in refused.err
    )
    declared = run(
        "plan", make(balance={"kind": "uniform", "against": {"alpha": 9, "beta": 9, "gamma": 9}}, privacy=dp)
    )
    assert "balance.against" not in declared.err


@pytest.fixture
def studies(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Classes named after studies of TCGA: BRCA has 1,098 cases, CHOL 51."""

    def made(one: str = "TCGA-BRCA", other: str = "chol", **changes: Any) -> Path:
        bank = make_bank_file(tmp_path / "tcga.parquet", tiny / "model", {one: 4, other: 4})
        return spec_file(embeddings={"bank": str(bank)}, total=100, classes={one: {}, other: {}}, **changes)

    return made


def test_tcga_counts_cases_and_says_whose_numbers_these_are(studies: Callable[..., Path]) -> None:
    planned = run("plan", studies(balance={"kind": "proportional", "against": "tcga"}))
    assert planned.code == 0, planned.err
    table = [line.split() for line in planned.out.splitlines() if line.startswith(("TCGA-BRCA ", "chol "))]
    assert [row[1] for row in table] == ["96", "4"]  # of 1,098 and 51
    said = " ".join(planned.out.split())
    assert (
        "proportional against cases of TCGA's studies (GDC API User's Guide, Data Analysis, https://docs.gdc." in said
    )
    assert "100 synthetic beside 1,149 real cases" in said
    assert "chol: 51 cases of TCGA, 4 synthetic from 4 effective patients" in said
    even = run("plan", studies(balance={"kind": "uniform", "against": "tcga"})).out
    assert "% synthetic" not in said + even, "cases and tiles make no share"
    assert all(len(line) <= 80 for line in planned.out.splitlines())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("TCGA-BRCA", "CHOLL"), "classes.CHOLL: is no study of TCGA; is 'CHOL' (Cholangiocarcinoma) meant?"),
        (("BRCA", "zzz-9"), "classes.zzz-9: is no study of TCGA; codes are such as BRCA or TCGA-BRCA"),
        (("BRCA", "TCGA-BRCA"), "classes.TCGA-BRCA: is the same study of TCGA as BRCA"),
    ],
)
def test_what_is_no_study_is_refused(studies: Callable[..., Path], names: tuple[str, str], message: str) -> None:
    refused = run("plan", studies(*names, balance={"kind": "uniform", "against": "tcga"}))
    assert refused.code == 2 and message in refused.err and "spec.yaml:" in refused.err


def test_cases_are_not_topped_up_with_tiles(studies: Callable[..., Path]) -> None:
    refused = run("plan", studies(balance={"kind": "top_up", "against": "tcga"}))
    assert refused.code == 2 and "balance.against: tcga counts cases, and top_up adds tiles to tiles" in refused.err


def test_a_patient_can_be_withdrawn_although_the_balance_would_shift(make: Callable[..., Path], tmp_path: Path) -> None:
    spec = make(balance="proportional")
    assert run("build", spec, "--local").code == 0
    before = counts(tmp_path)
    without(tmp_path / "bank.parquet")
    ended = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert resting(tmp_path) == set()
    assert counts(tmp_path) == before == {"alpha": 11, "beta": 6, "gamma": 1}
    assert run("build", make(balance="proportional", total=20), "--local").code == 0
    assert all(counts(tmp_path)[name] >= count for name, count in before.items())
    less = run("plan", make(balance="proportional", total=17))
    assert less.code == 2
    assert "total: 17 is too few: at least 20 are needed (output.path already holds 20" in " ".join(less.err.split())


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"alpha": {"floor": 9, "cap": 4}, "beta": {}, "gamma": {}}, "classes.alpha.cap: 4 is too few: its floor is 9"),
        ({"alpha": {"floor": 17}, "beta": {"floor": 9}, "gamma": {}}, "total: 18 is too few: at least 26 are needed"),
        ({"alpha": {"cap": 4}, "beta": {"cap": 3}, "gamma": {"cap": 1}}, "total: 18 is too many: the caps allow 8"),
    ],
)
def test_bounds_that_do_not_fit_are_named_with_their_numbers(
    make: Callable[..., Path], classes: dict[str, Any], words: str
) -> None:
    ended = run("plan", make(balance="uniform", classes=classes))
    assert ended.code == 2
    assert words in " ".join(ended.err.split())
