"""What a build costs: network calls to the call, and a budget that is refused by how much it falls short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import spec_of

from synthfactory.plan.cost import calls_per_tile, check_budget, estimate, evaluation_times
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Guidance, Sampler

PLAIN = Guidance(scale=1.0)


def test_the_published_setting_takes_435_calls() -> None:
    sampler = Sampler(
        method="sde", solver="euler_maruyama", steps=250, guidance=Guidance(scale=2.5, low=0.0, high=0.75)
    )
    assert calls_per_tile(sampler) == 435


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (Sampler(solver="euler", steps=10, guidance=PLAIN), 10),
        (Sampler(solver="euler", steps=1, guidance=PLAIN), 1),
        (Sampler(solver="heun", steps=10, guidance=PLAIN), 19),
        (Sampler(solver="heun", steps=1, guidance=PLAIN), 1),
        (Sampler(solver="euler", steps=10, guidance=Guidance(scale=1.5)), 20),
        (Sampler(solver="heun", steps=10, guidance=Guidance(scale=1.5)), 38),
        (Sampler(solver="euler", steps=4, guidance=Guidance(scale=2.0, low=0.5, high=0.75)), 6),  # of 1, .75, .5, .25
        (Sampler(solver="heun", steps=4, guidance=Guidance(scale=2.0, high=0.5)), 11),  # of 1, .75 x2, .5 x2, .25 x2
        (Sampler(solver="euler", steps=4, guidance=Guidance(scale=2.0, low=0.9, high=0.95)), 4),
        (Sampler(method="sde", solver="euler_maruyama", steps=250, guidance=PLAIN), 250),
        (Sampler(method="sde", solver="euler_maruyama", steps=2, guidance=Guidance(scale=2.0)), 4),
    ],
)
def test_calls_per_tile(sampler: Sampler, calls: int) -> None:
    assert calls_per_tile(sampler) == calls


@settings(deadline=None)
@given(st.integers(2, 400), st.sampled_from(["euler", "heun", "euler_maruyama"]), st.floats(0, 1), st.floats(0, 1))
def test_guidance_never_more_than_doubles_and_times_run_from_noise(
    steps: int, solver: str, one: float, other: float
) -> None:
    method = "sde" if solver == "euler_maruyama" else "ode"
    guidance = Guidance(scale=2.0, low=min(one, other), high=max(one, other))
    sampler = Sampler.model_validate({"method": method, "solver": solver, "steps": steps, "guidance": guidance})
    times = evaluation_times(sampler)
    assert len(times) == (2 * steps - 1 if solver == "heun" else steps)
    assert times[0] == 1.0
    assert (np.diff(times) <= 0).all()
    assert times[-1] > 0
    assert len(times) <= calls_per_tile(sampler) <= 2 * len(times)


def test_an_estimate_counts_what_is_missing_by_each_class_sampler() -> None:
    spec = spec_of(
        {"A": 10, "B": "{count: 5, sampler: {steps: 20}}"},
        "sampler: {solver: euler, steps: 10, guidance: {scale: 1}}",
        "budget: {max_attempts: 3}",
    )
    cost = estimate(spec, {"A": 10, "B": 5}, None)
    assert (cost.network_calls, cost.worst_network_calls, cost.seconds) == (200, 600, None)
    assert estimate(spec, {"A": 0, "B": 1}, None).network_calls == 20
    assert estimate(spec, {"A": 10, "B": 5}, 0.5).seconds == pytest.approx((50, 200))
    assert estimate(spec, {"A": 10, "B": 5}, 0.5, measured=True).seconds == pytest.approx((100 / 1.2, 120))


def test_a_class_with_attempts_of_its_own_has_its_own_worst_case() -> None:
    spec = spec_of(
        {"A": 10, "B": "{count: 5, sampler: {steps: 20}, budget: {max_attempts: 12}}", "C": "{count: 1, budget: {}}"},
        "sampler: {solver: euler, steps: 10, guidance: {scale: 1}}",
        "budget: {max_attempts: 3}",
    )
    assert [spec.max_attempts_for(name) for name in "ABC"] == [3, 12, 3]
    cost = estimate(spec, {"A": 10, "B": 5, "C": 1}, None)
    assert (cost.network_calls, cost.worst_network_calls) == (210, 100 * 3 + 100 * 12 + 10 * 3)


def test_a_budget_of_calls_that_cannot_do_is_refused_by_how_much() -> None:
    spec = spec_of(
        {"A": 100}, "sampler: {solver: euler, steps: 10, guidance: {scale: 1}}", "budget: {network_calls: 1_000}"
    )
    check_budget(spec, estimate(spec, {"A": 100}, None))
    check_budget(spec, estimate(spec, {"A": 50}, None), spent_calls=500)
    with pytest.raises(InputError) as caught:
        check_budget(spec, estimate(spec, {"A": 100}, None), spent_calls=234)
    assert str(caught.value).startswith("s.yaml:10:25: budget.network_calls: 1,000 is too little: ")
    assert "needs 1,000 calls beside the 234 already spent even without rejects, 234 too many" in str(caught.value)
    with pytest.raises(
        InputError, match="the plan needs 1,010 calls even without rejects, 10 too many; ask for fewer tiles"
    ):
        check_budget(spec, estimate(spec, {"A": 101}, None))


def test_a_budget_of_hours_that_cannot_do_is_refused_by_how_much() -> None:
    spec = spec_of(
        {"A": 3600}, "sampler: {solver: euler, steps: 10, guidance: {scale: 1}}", "budget: {device_hours: 8}"
    )
    check_budget(spec, estimate(spec, {"A": 3600}, None))  # no speed is known: nothing to refuse
    check_budget(spec, estimate(spec, {"A": 3600}, 0.7))
    with pytest.raises(InputError) as caught:
        check_budget(spec, estimate(spec, {"A": 3600}, 1.0))
    assert str(caught.value).startswith("s.yaml:10:24: budget.device_hours: 8 is too little: ")
    assert "needs about 10 device-hours even without rejects, 2 too many" in str(caught.value)


def test_no_budget_no_refusal() -> None:
    spec = spec_of({"A": 10**12})
    check_budget(spec, estimate(spec, {"A": 10**12}, 1.0))
