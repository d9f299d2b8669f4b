"""What a plan costs: network calls exactly, time as a range, and whether that fits the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from synthfactory.spec.sampler import Sampler
from synthfactory.spec.schema import Spec

LAST_SDE_TIME = 0.04


def evaluation_times(sampler: Sampler) -> np.ndarray:
    """Times t at which the network is evaluated for one tile (t = 1 is noise), in order."""
    if sampler.solver in ("euler_maruyama", "own"):  # own: not ours to know; CytoSyn's documented use is counted
        return np.linspace(1.0, LAST_SDE_TIME, sampler.num_steps)
    if (
        sampler.solver == "stochastic_heun"
    ):  # it evaluates at the end of every step, and there once more as the start of the next
        times = np.linspace(1.0, LAST_SDE_TIME, sampler.num_steps)
        return np.concatenate([times[:1], np.repeat(times[1:], 2)])
    times = np.linspace(1.0, 0.0, sampler.num_steps + 1)
    if sampler.solver == "heun":
        return np.concatenate([times[:1], np.repeat(times[1:-1], 2)])  # it looks ahead, but not to t = 0
    return times[:-1]


def calls_per_tile(sampler: Sampler) -> int:
    """Network calls of one tile; guidance doubles those with low <= t <= high (250 SDE steps, high 0.75: 435)."""
    times, guidance = evaluation_times(sampler), sampler.guidance
    if guidance.scale == 1.0:
        return len(times)
    return int(len(times) + ((times >= guidance.low) & (times <= guidance.high)).sum())


@dataclass(frozen=True)
class Estimate:
    """Cost of a number of tiles without rejects, on one device. Seconds are a range, or None where no speed is known."""

    network_calls: int
    seconds: tuple[float, float] | None
    worst_network_calls: int


def estimate(
    spec: Spec, missing: Mapping[str, int], seconds_per_call: float | None, *, measured: bool = False
) -> Estimate:
    """Cost of drawing `missing` tiles per class. A measured speed gives +-20 %, a stated one a factor of 2 both ways."""
    per_class = {name: count * calls_per_tile(spec.sampler_for(name)) for name, count in missing.items()}
    calls = sum(per_class.values())
    spread = 1.2 if measured else 2.0
    seconds = (
        None if seconds_per_call is None else (calls * seconds_per_call / spread, calls * seconds_per_call * spread)
    )
    return Estimate(calls, seconds, sum(own * spec.max_attempts_for(name) for name, own in per_class.items()))


def check_budget(spec: Spec, cost: Estimate, spent_calls: int = 0, spent_sec: float = 0.0) -> None:
    """InputError where even a build without a single reject would exceed the budget; says by how much."""
    limit = spec.budget.network_calls
    if limit is not None and cost.network_calls and spent_calls + cost.network_calls > limit:
        over = spent_calls + cost.network_calls - limit
        before = f" beside the {spent_calls:,} already spent" if spent_calls else ""
        raise spec.error(
            "budget.network_calls",
            f"{limit:,} is too little: the plan needs {cost.network_calls:,} calls{before} even without rejects, {over:,} too many; "
            "ask for fewer tiles, fewer steps, or a larger budget",
        )
    hours = spec.budget.device_hours
    if hours is not None and cost.seconds is not None:
        middle = (cost.seconds[0] * cost.seconds[1]) ** 0.5 / 3600
        over_hours = middle + spent_sec / 3600 - hours
        if cost.network_calls and over_hours > 0:
            before = f" beside the {spent_sec / 3600:.3g} already spent" if spent_sec else ""
            raise spec.error(
                "budget.device_hours",
                f"{hours:g} is too little: the plan needs about {middle:.3g} device-hours{before} even without rejects, "
                f"{over_hours:.3g} too many; ask for fewer tiles, fewer steps, or a larger budget",
            )
