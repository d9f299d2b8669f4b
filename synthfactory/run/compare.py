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
WIDTH = "conditions of width"


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
    """(float32 (count, E), a noise key each): the first rows of the bank, or standard normal numbers. InputError where sizes differ."""
    forms = [_form(engine) for engine in engines]
    for what, first in forms[0].items():
        if forms[-1][what] != first:
            raise InputError(f"A has {what} {first}, B {forms[-1][what]}; they are not the same model")
    width = forms[0][WIDTH]
    keys = keys_from_seed(SEED)
    if bank is None:
        conditions = np.random.default_rng(SEED).standard_normal((count, width)).astype(np.float32)
    else:
        rows = load_bank(bank, width=width, encoder=None, classes=None)
        conditions = rows.take(np.arange(min(count, len(rows))))
    return conditions, [noise_key(keys, "parity", number, 0) for number in range(len(conditions))]


def _form(engine: AnyEngine) -> dict[str, int]:
    """What must be equal for two networks to take the same conditions and noise, and to draw tiles that can be compared."""
    if isinstance(engine, Engine):
        sit, tile = engine.model.sit.config, engine.model.tile_size_px
        sizes = (sit.condition_width, sit.latent_channels, sit.latent_size, tile)
    else:
        form = engine.repo.form
        sizes = (form.condition_width, form.latent_channels, form.latent_size, form.tile_size_px)
    return dict(zip((WIDTH, "latent channels", "latent size", "tiles of px"), sizes, strict=True))
