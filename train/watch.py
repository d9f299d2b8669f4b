"""Stops a run that has gone wrong: a loss that is no number, or that jumps by ten standard deviations above what it was."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

SIGMAS = 10.0
MEMORY = 0.98  # of the running mean and variance, per step
AFTER_STEPS = 100  # before, a loss falls too fast to say what is usual


class StoppedError(RuntimeError):
    """A run that does not go on by itself; the message says why and what is kept."""


class DivergedError(StoppedError):
    """The loss shows that the weights are lost; the message says at which step."""


@dataclass
class Watch:
    """Running mean and variance of the loss; goes into checkpoints, so that a resumed run stops where an undisturbed one would."""

    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def look(self, step: int, loss: float, *, jumps: bool = False) -> None:
        """Notes the loss of a step; DivergedError where it is not finite, or jumps unless it may (`jumps`)."""
        if not math.isfinite(loss):
            raise DivergedError(f"step {step}: the loss is {loss}")
        limit = self.mean + SIGMAS * math.sqrt(self.variance)
        if not jumps and self.seen >= AFTER_STEPS and loss > limit:
            raise DivergedError(
                f"step {step}: the loss jumps to {loss:.4g}, from {self.mean:.4g} with a spread of {math.sqrt(self.variance):.2g}"
            )
        memory = min(MEMORY, self.seen / (self.seen + 1))
        off = loss - self.mean
        self.mean += (1 - memory) * off
        self.variance = memory * (self.variance + (1 - memory) * off * off)
        self.seen += 1

    def to_json(self) -> dict[str, float]:
        """For a checkpoint."""
        return asdict(self)
