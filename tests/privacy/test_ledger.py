"""The ledger: nothing is released without a charge, nothing is charged twice, and nobody goes over the cap."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthfactory.privacy.accountant import epsilon_together, sigma_for
from synthfactory.privacy.ledger import Ledger, Request, lines
from synthfactory.privacy.release import Release
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError

ASKED = Request("Hospital A, 2026", ("a", "b"), 1.0, 1e-6, "p" * 64, "b" * 64)
SIGMA = sigma_for(1.0, 1e-6)


class Maker:
    """Releases numbered vectors; counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Release:
        self.calls += 1
        vector = np.full(2 * 3 + 3, float(self.calls))
        return Release(ASKED.cohort, ("a", "b"), 1.0, 1e-6, SIGMA, "p" * 64, 2, vector)


def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(str(tmp_path / "ledger")), ASKED.cohort)


def test_the_same_request_is_answered_by_the_same_release(tmp_path: Path) -> None:
    make = Maker()
    first, new = ledger(tmp_path).charge(ASKED, SIGMA, 3.0, make)
    again, anew = ledger(tmp_path).charge(ASKED, SIGMA, 3.0, make)
    assert (new, anew, make.calls) == (True, False, 1)
    assert np.array_equal(first.release.vector, again.release.vector)
    assert ledger(tmp_path).spent(1e-6) == pytest.approx(1.0, rel=2e-3)
    assert lines(ledger(tmp_path), 1e-6)[-1].startswith("together: epsilon 1")


@pytest.mark.parametrize("change", [{"epsilon": 0.5}, {"classes": ("a",)}, {"projection_sha256": "q" * 64}])
def test_any_other_request_is_another_charge_until_the_cap(tmp_path: Path, change: dict) -> None:
    make = Maker()
    other = replace(ASKED, **change)
    ledger(tmp_path).charge(ASKED, SIGMA, 3.0, make)
    ledger(tmp_path).charge(other, SIGMA, 3.0, make)
    assert make.calls == 2
    together = epsilon_together([SIGMA] * 2, 1e-6)
    assert ledger(tmp_path).spent(1e-6) == pytest.approx(together)
    assert 1.0 < together < 2.0  # Gaussian releases compose better than by addition
    with pytest.raises(
        InputError,
        match=rf"2 releases have spent epsilon {together:.3g} at delta 1e-06; with this one it would be 1\.8",
    ):
        ledger(tmp_path).charge(replace(other, epsilon=0.7), SIGMA, 1.5, make)
    assert make.calls == 2, "nothing is released where the cap refuses it"


def test_which_release_is_taken_never_depends_on_rows(tmp_path: Path) -> None:
    """Else two published sets would tell, by equal or unequal releases, whether anybody had left the bank in between."""
    make, without = Maker(), replace(ASKED, bank_sha256="c" * 64)

    def taken(asked: Request, number: int | None = None) -> tuple[int, bool]:
        entry, new = ledger(tmp_path).charge(asked, SIGMA, 3.0, make, number)
        return entry.number, new

    assert taken(ASKED) == (1, True)
    assert taken(without) == (1, False)
    assert taken(without, 2) == (2, True)
    assert make.calls == 2
    assert taken(ASKED) == (2, False), "the latest, where none is named"
    assert taken(ASKED, 1) == (1, False)
    with pytest.raises(
        InputError, match=r"release 4 of this request is asked for, and cohort .* has 2 of it; the next is 3"
    ):
        ledger(tmp_path).charge(ASKED, SIGMA, 3.0, make, 4)
    with pytest.raises(InputError, match=r"over the cap"):
        ledger(tmp_path).charge(ASKED, SIGMA, 1.5, make, 3)
    assert make.calls == 2


def test_of_two_at_once_one_releases_and_the_other_takes_it(tmp_path: Path) -> None:
    barrier, found = threading.Barrier(4), []

    class Slow(Maker):
        def __call__(self) -> Release:
            barrier.wait(5)  # all four have seen an empty ledger
            made = super().__call__()
            return replace(made, vector=made.vector + threading.get_ident())  # noise, and so every release, is its own

    def ask() -> None:
        found.append(ledger(tmp_path).charge(ASKED, SIGMA, 3.0, Slow()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(new for _, new in found) == [False, False, False, True]
    assert len({entry.number for entry, _ in found}) == 1
    assert len(ledger(tmp_path).entries()) == 1


def test_a_crash_before_the_entry_has_spent_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ledger(tmp_path)
    monkeypatch.setattr(type(made._store), "create", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.charge(ASKED, SIGMA, 3.0, Maker())
    monkeypatch.undo()
    assert ledger(tmp_path).entries() == []
    assert ledger(tmp_path).spent(1e-6) == 0.0


def test_a_ledger_that_was_changed_or_lost_a_page_is_not_believed(tmp_path: Path) -> None:
    ledger(tmp_path).charge(ASKED, SIGMA, 9.0, Maker())
    ledger(tmp_path).charge(replace(ASKED, epsilon=2.0), SIGMA, 9.0, Maker())
    first, second = sorted((tmp_path / "ledger").rglob("*.json"))
    kept = first.read_text()
    values = json.loads(kept)
    values["request"]["epsilon"] = 0.01
    first.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"000001\.json was changed or is damaged"):
        ledger(tmp_path).charge(ASKED, SIGMA, 9.0, Maker())
    first.unlink()
    with pytest.raises(InputError, match=r"000001\.json is missing; the budget of 'Hospital A, 2026' is not known"):
        ledger(tmp_path).spent(1e-6)
    first.write_text(kept)
    second.rename(first.parent / "000003.json")
    with pytest.raises(InputError, match=r"000002\.json is missing"):
        ledger(tmp_path).entries()


def test_cohorts_do_not_share_a_budget(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger"))
    Ledger(store, "hospital a").charge(replace(ASKED, cohort="hospital a"), SIGMA, 1.1, Maker())
    assert Ledger(store, "Hospital A").entries() == []  # the same slug, another name


def test_a_larger_delta_buys_nothing_and_a_cap_is_not_raised_later(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    made.charge(ASKED, SIGMA, 1.2, Maker())
    cheap = sigma_for(1.0, 1e-2)
    with pytest.raises(InputError, match=r"at delta 1e-06; with this one it would be"):
        made.charge(replace(ASKED, delta=1e-2), cheap, 1.2, Maker())
    with pytest.raises(InputError, match=r"a cap is not raised later"):
        made.charge(replace(ASKED, epsilon=0.9), SIGMA, 5.0, Maker())
    assert len(made.entries()) == 1


@pytest.mark.parametrize("epsilon", [0.01, 0.2, 0.3, 0.7, 1.0, 2.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-6, 1e-5])
def test_a_first_release_of_the_caps_own_epsilon_fits(tmp_path: Path, epsilon: float, delta: float) -> None:
    asked = replace(ASKED, epsilon=epsilon, delta=delta)
    assert ledger(tmp_path).check(asked, sigma_for(epsilon, delta), epsilon) is None
