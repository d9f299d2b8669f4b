"""How far probabilities are from what comes true: the expected calibration error, classes alike."""

from __future__ import annotations

import numpy as np

from synthfactory.evaluate.probes import even

BINS = 15  # of the calibration error
CHANCES = 20  # draws by which a calibrated arm's error is reckoned


def calibration_error(probabilities_NC: np.ndarray, classes_N: np.ndarray) -> float:
    """Expected calibration error of the largest probability over 15 equal bins (arXiv 1706.04599), classes counting alike."""
    off, place = surprise(probabilities_NC, classes_N)
    weight = even(classes_N)
    return float(np.abs(np.bincount(place, weight * off, minlength=BINS)).sum() / weight.sum())


def surprise(
    probabilities_NC: np.ndarray, classes_N: np.ndarray, draw_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(how far the largest probability lies below what came true, 1 or 0; its bin), each (N,). With `draw_N`, uniform in 0 to 1, as if it
    came true as often as it says.
    """
    sure = probabilities_NC.max(axis=1)
    true = probabilities_NC.argmax(axis=1) == classes_N if draw_N is None else draw_N < sure
    hit = true.astype(float)
    return hit - sure, np.minimum((sure * BINS).astype(int), BINS - 1)
