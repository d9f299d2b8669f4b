"""What `synthfactory model parity` needs: engines of two models, and conditions and noise keys that fit both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthfactory.embeddings.parquet import load_bank
from synthfactory.model.find import find_model
from synthfactory.plan.seeds import keys_from_seed, noise_key
from synthfactory.run.engines import make_engine
from synthfactory.sample.engine import Engine
from synthfactory.sample.official import AnyEngine
from synthfactory.spec.errors import InputError
from synthfactory.spec.model import Model

SEED = 0


def engine_of(model: Model, dtype: str) -> AnyEngine:
    """The model, loaded; a repository's own code runs only where `model` trusts it."""
    found = find_model(model)
    found.check_files()
    return make_engine(
        found, None, {"dtype": dtype, "threads": None, "compile": False, "strict": True, "batch_size": 4}
    )


def conditions_for(
    engines: Sequence[AnyEngine], bank: str | None, count: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(float32 (count, E), a noise key each): the first rows of the bank, or standard normal numbers. InputError where widths differ."""
    widths = [_width(engine) for engine in engines]
    if len(set(widths)) > 1:
        raise InputError(f"A is conditioned on width {widths[0]}, B on width {widths[1]}; they are not the same model")
    keys = keys_from_seed(SEED)
    if bank is None:
        conditions = np.random.default_rng(SEED).standard_normal((count, widths[0])).astype(np.float32)
    else:
        rows = load_bank(bank, width=widths[0], encoder=None, classes=None)
        conditions = rows.take(np.arange(min(count, len(rows))))
    return conditions, [noise_key(keys, "parity", number, 0) for number in range(len(conditions))]


def _width(engine: AnyEngine) -> int:
    return engine.model.sit.config.condition_width if isinstance(engine, Engine) else engine.repo.condition_width
