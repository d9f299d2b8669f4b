"""How much noise gives (epsilon, delta), and what several releases of one cohort cost together.

The mechanism is Gaussian noise on a sum of L2 sensitivity about 1. Noise is found by the exact condition of Balle and Wang (arXiv
1805.06530) and then confirmed by dp-accounting's privacy loss distribution, which errs on the safe side. Gaussian releases compose
exactly: their mu = sensitivity / sigma add in squares (Dong, Roth and Su, arXiv 1905.02383).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from synthfactory.privacy.moments import SENSITIVITY
from synthfactory.spec.errors import InputError

MAX_EPSILON, MIN_EPSILON = 100.0, 1e-3
MIN_DELTA = 1e-18  # below about 2e-22 the accountant's own rounding would confirm no noise at all
STEP = 1.0005  # by which noise is raised until the accountant agrees


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta for which a Gaussian release of this mu is (epsilon, delta)-DP."""
    # e^epsilon alone would overflow where epsilon is large; its product with the tail is below 1
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-DP, before the accountant confirms it."""
    return float(brentq(lambda mu: delta_of(mu, epsilon) - delta, 1e-6, 100.0, xtol=1e-12))


@lru_cache(maxsize=64)
def sigma_for(epsilon: float, delta: float) -> float:
    """Standard deviation of the noise on every entry of the sum. ValueError outside the ranges that mean anything."""
    if not (MIN_EPSILON <= epsilon <= MAX_EPSILON and MIN_DELTA <= delta < 1):
        raise ValueError(
            f"epsilon must be {MIN_EPSILON:g} to {MAX_EPSILON:g} and delta {MIN_DELTA:g} or more, and below 1"
        )
    sigma = SENSITIVITY / mu_for(epsilon, delta)
    while not _confirmed(sigma, epsilon, delta):
        sigma *= STEP
    return sigma


def _confirmed(sigma: float, epsilon: float, delta: float) -> bool:
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as error:
        raise InputError(
            f"privacy: mechanism dp needs dp-accounting and OpenDP ({error}); pip install 'synthfactory[dp]'"
        ) from None
    found = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sensitivity=SENSITIVITY, value_discretization_interval=min(1e-4 * max(1.0, epsilon), epsilon / 100)
    )
    return float(found.get_delta_for_epsilon(epsilon)) <= delta


def mu_of(sigma: float) -> float:
    """Of one release."""
    return SENSITIVITY / sigma


def epsilon_together(sigmas: Iterable[float], delta: float) -> float:
    """The smallest epsilon for which several releases of one cohort together are (epsilon, delta)-DP; 0 where there is none."""
    mu = math.sqrt(sum(mu_of(sigma) ** 2 for sigma in sigmas))
    if mu == 0 or delta_of(mu, 0.0) <= delta:
        return 0.0
    return float(
        brentq(lambda epsilon: delta_of(mu, epsilon) - delta, 0.0, 10.0 * mu * mu + 50.0 * mu + 1.0, xtol=1e-12)
    )


def auc_bound(mu: float) -> float:
    """The largest area under the curve that any test of one patient's membership can have: Phi(mu / sqrt 2)."""
    return float(ndtr(mu / math.sqrt(2)))


def over(total: float, cap: float) -> bool:
    """Whether releases are over a cap; what rounding adds is none of it."""
    return total > cap * (1 + 1e-6)
