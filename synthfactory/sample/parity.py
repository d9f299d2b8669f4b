"""Do two ways of running a model agree? On the same conditions and noise: the network's velocity at every step, and the pixels.

Only where B is compared with the states that A went through do errors not add up, so B's network is asked at each (x, t) of A's way.
Steps are unguided; pixels are drawn by each with its own solver. Relative error = |v_A - v_B| / |v_A| over the batch (Euclidean).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthfactory.sample.engine import PAD_TO, Engine, padded
from synthfactory.sample.noise import CandidateNoise
from synthfactory.sample.official import AnyEngine, OfficialEngine
from synthfactory.sample.solvers import integrate
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Guidance, Sampler

UNGUIDED = Guidance(scale=1.0)


@dataclass(frozen=True)
class Step:
    """One evaluation of A's network, and how far B's is from it at the same state."""

    t: float
    relative_error: float


@dataclass(frozen=True)
class Parity:
    """What was measured. Pixel differences are in levels of 0 to 255; `equal_pixels` is a share, 0 to 1."""

    steps: tuple[Step, ...]
    mean_difference: float
    max_difference: int
    equal_pixels: float

    @property
    def worst(self) -> float:
        """The largest relative error of a step; nan where one is."""
        errors = [step.relative_error for step in self.steps]
        return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)

    def lines(self) -> Iterator[str]:
        """The figures in words, one step a line."""
        yield "step       t  relative error of the velocity"
        for number, step in enumerate(self.steps, start=1):
            yield f"{number:>4} {step.t:>7.4f}  {step.relative_error:.3g}"
        yield (
            f"pixels: mean difference {self.mean_difference:.4g} of 255, largest {self.max_difference}, "
            f"{100 * self.equal_pixels:.2f} % equal"
        )


@dataclass(frozen=True)
class _Seen:
    x: Tensor
    t: float
    velocity: Tensor


def sampler_for(engine: AnyEngine, steps: int, solver: str, guidance: Guidance) -> Sampler:
    """The pipeline's own, or ours of that name. InputError where an SDE has one step."""
    if isinstance(engine, OfficialEngine):
        return Sampler(method="pipeline", solver="own", steps=steps, guidance=guidance)
    method = "sde" if solver in ("euler_maruyama", "stochastic_heun") else "ode"
    if method == "sde" and steps < 2:
        raise InputError(f"--steps {steps}: {solver} needs 2 or more")
    return Sampler.model_validate({"method": method, "solver": solver, "steps": steps, "guidance": guidance})


def compare(
    first: AnyEngine,
    second: AnyEngine,
    conditions_NE: np.ndarray,
    keys: Sequence[tuple[int, int]],
    *,
    steps: int,
    solver: str,
    guidance: Guidance,
) -> Parity:
    """Runs both on float32 conditions (N, E) and one noise key each. At least one of them must be native (ours), to be asked step by step.

    InputError where neither is, or a pipeline's network is not one that can be watched.
    """
    ours, other = (second, first) if isinstance(second, Engine) else (first, second)
    if not isinstance(ours, Engine):
        raise InputError(
            "both are run by a repository's own code; name one that ours runs (see synthfactory model import)"
        )
    conditions, padded_keys = padded(conditions_NE, keys, conditions_NE.shape[1], PAD_TO)
    assert conditions is not None
    seen = _watched(other, conditions.numpy(), padded_keys, sampler_for(other, steps, solver, UNGUIDED))
    with torch.inference_mode():
        velocity = ours.network.velocity(conditions.to(ours.device), UNGUIDED)
        found = tuple(Step(one.t, _error(one.velocity, velocity(one.x.to(ours.device), one.t))) for one in seen)
    tiles = [
        engine.draw(conditions_NE, keys, sampler_for(engine, steps, solver, guidance)) for engine in (first, second)
    ]
    off = np.abs(tiles[0].astype(np.int16) - tiles[1].astype(np.int16))
    return Parity(found, float(off.mean()), int(off.max()), float((off == 0).mean()))


def _error(expected: Tensor, found: Tensor) -> float:
    expected = expected.to(found.device).double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def _watched(
    engine: AnyEngine, conditions: np.ndarray, keys: Sequence[tuple[int, int]], sampler: Sampler
) -> list[_Seen]:
    """Every evaluation of the engine's network on the way to these tiles."""
    seen: list[_Seen] = []
    if isinstance(engine, Engine):
        with torch.inference_mode():
            velocity = engine.network.velocity(torch.from_numpy(conditions).to(engine.device), UNGUIDED)

            def watched(x: Tensor, t: float) -> Tensor:
                out = velocity(x, t)
                seen.append(_Seen(x.clone(), t, out.clone()))
                return out

            form = engine.model.sit.config
            noise = CandidateNoise(keys, (form.latent_channels, form.latent_size, form.latent_size))
            integrate(sampler, watched, noise.draw().to(engine.device), lambda: noise.draw().to(engine.device))
        return seen
    hook = engine.network.register_forward_hook(_recorder(seen), with_kwargs=True)
    try:
        engine.draw(conditions, keys, sampler)
    finally:
        hook.remove()
    if not seen:
        raise InputError(
            f"{engine.repo.id}: its network was never called as a module with (latents, times), so it cannot be watched"
        )
    return seen


def _recorder(seen: list[_Seen]) -> Callable[..., None]:
    def record(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]
        states = [value for value in tensors if value.ndim == 4]
        times = [value for value in tensors if value.ndim <= 1 and value.is_floating_point()]
        result = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        if states and times and isinstance(result, Tensor) and result.shape == states[0].shape:
            seen.append(_Seen(states[0].float().clone(), float(times[0].reshape(-1)[0]), result.float().clone()))

    return record
