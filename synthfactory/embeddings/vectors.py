"""Embeddings as directions: what cosines and blends are about."""

from __future__ import annotations

import numpy as np


def unit(embeddings_NE: np.ndarray) -> np.ndarray:
    """float32 (N, E), each of length 1; rows of zeros stay zeros."""
    found = np.asarray(embeddings_NE, np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
