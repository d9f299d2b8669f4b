"""A bank of invented patients: draws a cohort's tiles and embeds them with a model's encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import write_bank
from synthfactory.model.encoder import encoder_of
from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_encoder
from synthfactory.phantom import TileRef
from synthfactory.run.progress import Progress

BATCH = 32


def write_phantom_bank(file: str, refs: Sequence[TileRef], model_name: str, say: Callable[[str], None]) -> str:
    """Writes the bank (path or fsspec URL) and returns a line that says what it holds."""
    folder = open_model(model_name)
    encoder = load_encoder(encoder_of(folder))
    progress = Progress(len(refs), say=say, screened=False)
    vectors = []
    for start in range(0, len(refs), BATCH):
        batch = refs[start : start + BATCH]
        vectors.append(encoder.embed(np.stack([ref.render()[0] for ref in batch])))
        progress.tick(len(batch), 0)
    progress.close()
    bank = make_bank(
        np.concatenate(vectors),
        [ref.patient.class_name for ref in refs],
        ["tile"] * len(refs),
        [ref.patient.patient_id for ref in refs],
        [ref.slide_id for ref in refs],
        folder.encoder,
        file,
        sites=[ref.patient.site for ref in refs],
    )
    write_bank(file, bank)
    return f"{file}: {len(refs):,} embeddings of width {bank.width} by {folder.encoder['id']}"
