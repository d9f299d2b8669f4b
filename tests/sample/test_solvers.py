"""Solvers against distributions with a known answer, and the exact number of evaluations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from synthfactory.plan.cost import calls_per_tile
from synthfactory.sample.noise import CandidateNoise
from synthfactory.sample.solvers import guided, integrate, is_guided
from synthfactory.spec.sampler import Guidance, Sampler
from synthfactory.spec.solvers import SOLVERS

MEAN, STD = 2.0, 0.5


def exact_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[noise - x0 | x_t] where x0 ~ N(MEAN, STD^2) and noise ~ N(0, 1)."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    centred = x - (1 - t) * MEAN
    return t / variance * centred - MEAN - (1 - t) * STD**2 / variance * centred


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (Sampler(method="ode", solver="heun", steps=20), 0.02),
        (Sampler(method="ode", solver="euler", steps=200), 0.03),
        (Sampler(method="ode", solver="ab2", steps=25), 0.02),
        (Sampler(method="sde", solver="euler_maruyama", steps=200), 0.03),
        (Sampler(method="sde", solver="stochastic_heun", steps=25), 0.03),
    ],
    ids=lambda value: getattr(value, "solver", ""),
)
def test_a_known_gaussian_is_reached(sampler, tolerance):
    torch.manual_seed(0)
    start = torch.randn(40_000, dtype=torch.float64)
    end = integrate(sampler, exact_velocity, start, lambda: torch.randn_like(start))
    assert end.mean().item() == pytest.approx(MEAN, abs=tolerance)
    assert end.std().item() == pytest.approx(STD, abs=tolerance)


@pytest.mark.parametrize("guidance", [Guidance(scale=1.0), Guidance(scale=2.5, high=0.75)])
@pytest.mark.parametrize("steps", [2, 5, 40])
def test_euler_maruyama_is_repa_es_schedule_to_the_last_bit_but_rounding(steps, guidance):
    """Written out from the published description: linspace(1, 0.04, steps), then one noise-free step; w = 2t, s = (-(1-t) v - x) / t;
    guidance is on the drift there, and on the velocity here."""

    def network(x, t, conditional):
        return torch.sin(3 * x + t) + (0.3 if conditional else -0.1) * x

    def ours(x, t):
        if is_guided(guidance, t):
            return guided(network(x, t, True), network(x, t, False), guidance.scale)
        return network(x, t, True)

    start = torch.linspace(-2, 2, 41, dtype=torch.float64)
    draws = torch.randn(steps, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def drift(x, t, conditional):
        v = network(x, t, conditional)
        score = (-(1 - t) * v - x) / t
        return v - 0.5 * 2 * t * score

    x, times = start, torch.linspace(1.0, 0.04, steps, dtype=torch.float64).tolist()
    for number, now in enumerate(times):
        after = times[number + 1] if number + 1 < steps else 0.0
        d = drift(x, now, True)
        if guidance.scale > 1 and guidance.low <= now <= guidance.high:
            unconditional = drift(x, now, False)
            d = unconditional + guidance.scale * (d - unconditional)
        x = x + d * (after - now)
        if number + 1 < steps:
            x = x + (2 * now) ** 0.5 * draws[number] * (now - after) ** 0.5
    kicks = iter(draws)
    found = integrate(
        Sampler(method="sde", solver="euler_maruyama", steps=steps, guidance=guidance), ours, start, lambda: next(kicks)
    )
    assert torch.allclose(found, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["heun", "ab2"])
def test_second_order(solver):
    """Twice the steps give about a quarter of the error: 2.5 to 6 here, where first order gives 2."""
    start = torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = MEAN + STD * start
    errors = [
        (integrate(Sampler(solver=solver, steps=steps), exact_velocity, start, lambda: start) - exact)
        .abs()
        .max()
        .item()
        for steps in (20, 40, 80)
    ]
    assert all(2.5 < coarse / fine < 6 for coarse, fine in pairwise(errors)), errors


def test_stochastic_heun_is_nearer_than_euler_maruyama_at_the_same_calls():
    """Spread of the result at 16 evaluations: STD in theory."""
    start = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    off = {}
    for solver, steps in (("euler_maruyama", 16), ("stochastic_heun", 8)):
        noise = torch.Generator().manual_seed(2)
        sampler = Sampler(method="sde", solver=solver, steps=steps)
        end = integrate(
            sampler,
            exact_velocity,
            start,
            lambda noise=noise: torch.randn(len(start), dtype=torch.float64, generator=noise),
        )
        off[solver] = abs(end.std().item() - STD)
    assert off["stochastic_heun"] < 0.6 * off["euler_maruyama"], off


def test_a_multistep_solver_starts_anew_where_guidance_begins():
    """A velocity that jumps when guidance sets in must not be extrapolated over the jump."""
    guidance = Guidance(scale=2.0, high=0.5)
    sampler = Sampler(solver="ab2", steps=10, guidance=guidance)
    end = integrate(
        sampler,
        lambda x, t: torch.ones_like(x) * (1.0 if is_guided(guidance, t) else 0.0),
        torch.zeros(1, dtype=torch.float64),
        lambda: torch.zeros(1),
    )
    assert end.item() == pytest.approx(-0.5, abs=1e-12)  # guided over the last half of the way


def test_heun_beats_euler_at_the_same_steps():
    start = torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = MEAN + STD * start  # the probability flow of a Gaussian maps quantile to quantile
    errors = {}
    for solver in ("euler", "heun"):
        sampler = Sampler(method="ode", solver=solver, steps=12)
        errors[solver] = (integrate(sampler, exact_velocity, start, lambda: start) - exact).abs().max().item()
    assert errors["heun"] < errors["euler"] / 4


@pytest.mark.parametrize(
    ("method", "steps"), [("ode", 1), *((method, steps) for method in ("ode", "sde") for steps in (2, 7, 250))]
)
@pytest.mark.parametrize(
    "guidance", [Guidance(scale=1.0), Guidance(scale=2.5, high=0.75), Guidance(scale=2.0, low=0.2, high=0.6)]
)
def test_the_plan_counts_the_calls_that_the_solver_makes(method, steps, guidance):
    for solver in SOLVERS[method]:
        sampler = Sampler(method=method, solver=solver, steps=steps, guidance=guidance)
        calls = 0

        def velocity(x, t):
            nonlocal calls
            calls += 2 if is_guided(guidance, t) else 1
            return torch.zeros_like(x)

        integrate(sampler, velocity, torch.zeros(1), lambda: torch.zeros(1))
        assert calls == calls_per_tile(sampler)


def test_guidance_extrapolates_from_the_unconditional():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert guided(conditional, unconditional, 1.0).item() == 3.0
    assert guided(conditional, unconditional, 2.5).item() == 6.0


def test_noise_of_a_candidate_depends_on_its_key_alone():
    keys = [(1, 2), (3, 4), (5, 6)]
    together = CandidateNoise(keys, (4, 5))
    first, second = together.draw(), together.draw()
    alone = CandidateNoise([keys[2]], (4, 5))
    assert torch.equal(alone.draw()[0], first[2])
    assert torch.equal(alone.draw()[0], second[2])
    assert not torch.equal(first[0], first[1])
    many = CandidateNoise([(k, 0) for k in range(64)], (4, 28, 28)).draw().numpy()
    assert abs(float(many.mean())) < 0.01
    assert abs(float(np.std(many)) - 1) < 0.01
