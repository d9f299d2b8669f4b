"""The spec's `embeddings`: where the conditions come from, in exactly one of several forms, and which of them are used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from synthfactory.spec.places import place_problem
from synthfactory.spec.sampler import FrozenModel, UnitFloat
from synthfactory.spec.source import Problems

# What goes with which source; `unconditional` takes nothing beside it.
SOURCES = ("bank", "tiles", "hdf5", "arrays", "shards", "unconditional")
GOES_WITH = {
    "label_level": ("tiles", "hdf5", "arrays", "shards"),
    "metadata": ("tiles",),
    "labels": ("hdf5", "arrays"),
    "encoder": ("bank", "hdf5", "arrays"),
    "token": ("hdf5", "arrays"),
    "mpp": ("bank", "tiles", "hdf5", "arrays", "shards"),
    "screen": ("bank", "tiles", "hdf5", "arrays", "shards"),
}
PLACES = ("bank", "tiles", "hdf5", "arrays", "shards", "metadata", "labels")

Places = str | Annotated[list[str], Field(min_length=1)]


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"'{text[:70]}' is no sha256; 64 digits of 0-9 and a-f are needed")
    return text


class EncoderName(FrozenModel):
    """Who made the embeddings, where their files cannot say it."""

    id: str = Field(
        min_length=1,
        description="Name of the encoder, as the model states it; short and Hub names of H0-mini are one.",
        examples=["h0-mini"],
    )
    sha256: Annotated[str, AfterValidator(_sha256)] | None = Field(
        default=None,
        description="sha256 of the encoder's weights; null (default) = the model's own, where the ids agree.",
        examples=["5" * 64],
    )
    token: Literal["class"] = Field(
        "class", description="Which of the encoder's tokens these are. Default class.", examples=["class"]
    )


class ConditionScreen(FrozenModel):
    """Which rows may condition a tile; a screen that is left out or null is off. Applied before anything is drawn."""

    blank: UnitFloat | None = Field(
        default=None, description="Least share of tissue pixels, 0 to 1; null = off (default).", examples=[0.1]
    )
    pen: UnitFloat | None = Field(
        default=None, description="Greatest share of pixels of pen ink, 0 to 1; null = off (default).", examples=[0.05]
    )
    fold: UnitFloat | None = Field(
        default=None, description="Greatest share of pixels in folds, 0 to 1; null = off (default).", examples=[0.3]
    )
    blur: float | None = Field(
        default=None,
        ge=0.0,
        description="Least sharpness, 0 and up: mean |Laplacian| of optical density; null = off (default).",
        examples=[0.005],
    )
    min_tumour_fraction: UnitFloat | None = Field(
        default=None,
        description="Least tumour_fraction (a column of bank or CSV), 0 to 1; null = off (default).",
        examples=[0.5],
    )


class Embeddings(FrozenModel):
    """Where the conditioning embeddings come from: one of bank, tiles, hdf5, arrays, shards, unconditional."""

    bank: Places | None = Field(
        default=None,
        description="Parquet bank of embeddings: path, URL, pattern with *, or a list of these.",
        examples=["specs/phantom-bank.parquet"],
    )
    tiles: str | None = Field(
        default=None, description="Folder with one sub-folder of tiles per class.", examples=["./tiles"]
    )
    hdf5: Places | None = Field(
        default=None,
        description="HDF5 features of TRIDENT or CLAM, one file a slide: folder, URL, pattern, or a list; needs labels.",
        examples=["features_h0_mini/"],
    )
    arrays: str | None = Field(
        default=None,
        description="One array of embeddings (.npy, .npz or .safetensors), or a pattern that matches one; a row a tile; needs labels.",
        examples=["features.npy"],
    )
    shards: Places | None = Field(
        default=None,
        description="WebDataset tars of real tiles with KEY.json beside each image: path, URL, pattern, or a list.",
        examples=["shards/*.tar"],
    )
    unconditional: Literal[True] | None = Field(
        default=None,
        description="true = the model's null condition; then there is one class, and guidance is 1.0.",
        examples=[True],
    )
    label_level: Literal["slide", "region", "tile"] | None = Field(
        default=None,
        description="What the labels were given to (a slide, a region or each tile), where the source does not say it.",
        examples=["tile"],
    )
    metadata: str | None = Field(
        default=None,
        description="With tiles: CSV with patient, slide and site of each tile; without it patients are unknown.",
        examples=["tiles.csv"],
    )
    labels: str | None = Field(
        default=None,
        description="With hdf5: CSV slide_id, label, patient_id, site (a line a slide). With arrays: CSV of a line a row, in order.",
        examples=["labels.csv"],
    )
    encoder: EncoderName | None = Field(
        default=None,
        description="Who made the embeddings, where their files do not say it; null = they do (default).",
        examples=[{"id": "h0-mini"}],
    )
    token: Literal["class", "first_768"] = Field(
        "class",
        description="first_768 = files of 1536 values, of which the first 768 are the class token. Default class.",
        examples=["first_768"],
    )
    mpp: float | None = Field(
        default=None,
        gt=0.0,
        description="Micrometres per pixel of the tiles, where the source does not say it; null = it does (default).",
        examples=[0.5],
    )
    screen: ConditionScreen = Field(
        default=ConditionScreen(), description="Which rows may be conditions. Default: all.", examples=[{"pen": 0.05}]
    )

    @property
    def source(self) -> str:
        """The key of the one source."""
        return next(key for key in SOURCES if getattr(self, key) is not None)

    def places(self) -> Iterator[tuple[str, str]]:
        """(key, or key.number in a list; path or URL) of everything that is read."""
        for key in PLACES:
            value = getattr(self, key)
            if isinstance(value, str):
                yield key, value
            elif value is not None:
                yield from ((f"{key}.{number}", place) for number, place in enumerate(value))

    @model_validator(mode="after")
    def _one_source(self) -> Embeddings:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"; it has {' and '.join(given)}" if given else ""
            raise ValueError(f"needs exactly one of {', '.join(SOURCES)}{found}")
        source, problems = given[0], list[tuple[str, str]]()
        for key, sources in GOES_WITH.items():
            if key in self.model_fields_set and getattr(self, key) is not None and source not in sources:
                problems.append((key, f"goes with {' or '.join(sources)} only, not with {source}; leave the key out"))
        if source in ("hdf5", "arrays") and self.labels is None:
            line = "slide" if source == "hdf5" else "row"
            problems.append(("labels", f"is missing; name a CSV with label and patient_id of each {line}"))
        pixels = [key for key in ("blank", "pen", "fold", "blur") if getattr(self.screen, key) is not None]
        if pixels and source in ("hdf5", "arrays"):
            problems.append(
                (
                    f"screen.{pixels[0]}",
                    f"looks at pixels, and {source} has none; use tiles, shards, or a bank that `synthfactory embed` wrote",
                )
            )
        if source == "tiles" and self.label_level is None:
            problems.append(("label_level", "is missing; say what the labels were given to: slide, region or tile"))
        problems += [(key, problem) for key, place in self.places() if (problem := place_problem(place))]
        if problems:
            raise Problems(problems)
        return self
