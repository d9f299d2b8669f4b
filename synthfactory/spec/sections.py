"""The sections of a spec: screens, output, budget, execution. Checks that span sections are in schema.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from synthfactory.spec.sampler import FrozenModel, UnitFloat
from synthfactory.spec.source import Problems


class TissueScreen(FrozenModel):
    """Drops tiles with too little tissue."""

    min_fraction: UnitFloat = Field(
        0.1, description="Least share of tissue pixels, 0 to 1. Default 0.1.", examples=[0.1]
    )


class BlurScreen(FrozenModel):
    """Drops blurred tiles."""

    min_sharpness: float = Field(
        default=0.005,
        ge=0.0,
        description="Least sharpness, 0 and up: mean |Laplacian| of optical density. Default 0.005.",
        examples=[0.005],
    )


class AgreementScreen(FrozenModel):
    """Drops tiles whose embedding is too far from its condition, or so near that the tile may be a copy."""

    min: float = Field(
        0.3, ge=-1.0, le=1.0, description="Least cosine similarity to the condition. Default 0.3.", examples=[0.3]
    )
    max: float = Field(
        0.999, ge=-1.0, le=1.0, description="Greatest cosine similarity. Default 0.999.", examples=[0.999]
    )

    @model_validator(mode="after")
    def _interval(self) -> AgreementScreen:
        if self.min >= self.max:
            raise Problems([("min", f"{self.min:g} is not below max = {self.max:g}; min < max is needed")])
        return self


class NearestRealScreen(FrozenModel):
    """Drops tiles nearer to a real tile of the bank than real tiles of other patients are: fewer near copies, and no guarantee."""

    holdout: str = Field(
        description="Parquet bank of real tiles of other patients, which sets the threshold.",
        examples=["holdout.parquet"],
    )
    percentile: float = Field(
        default=99.5,
        ge=50,
        lt=100,
        description="Of the holdout's cosines to the bank's nearest tile; what is above is dropped. Default 99.5.",
        examples=[99.5],
    )


class Screen(FrozenModel):
    """Which tiles are kept; a screen that is left out or null is off. Dropped tiles are drawn again."""

    tissue: TissueScreen | None = Field(
        default=None, description="Tissue screen; null = off (default).", examples=[{"min_fraction": 0.1}]
    )
    blur: BlurScreen | None = Field(
        default=None, description="Blur screen; null = off (default).", examples=[{"min_sharpness": 0.005}]
    )
    agreement: AgreementScreen | None = Field(
        default=None,
        description="Screen of agreement with the condition; null = off (default).",
        examples=[{"min": 0.4}],
    )
    nearest_real: NearestRealScreen | None = Field(
        default=None,
        description="Screen of nearness to the bank's own tiles; null = off (default).",
        examples=[{"holdout": "holdout.parquet"}],
    )

    @property
    def embeds(self) -> bool:
        """Whether drawn tiles must be embedded."""
        return self.agreement is not None or self.nearest_real is not None


class Output(FrozenModel):
    """Where the tile set goes (may be published) and in which form."""

    path: str = Field(description="Folder or fsspec URL of the tile set.", examples=["out/demo"])
    shard_size: int = Field(
        1000, ge=1, le=100_000, description="Tiles per shard, a target. Default 1000.", examples=[1000]
    )
    format: Literal["png", "webp", "jpeg"] = Field(
        default="png",
        description="png or webp (both lossless); jpeg is lossy and warned about. Default png.",
        examples=["png"],
    )


class Budget(FrozenModel):
    """What the build may spend; a plan that cannot fit is refused before anything is drawn."""

    max_attempts: int = Field(
        4, ge=1, le=100, description="Draws per tile before it counts as a shortfall. Default 4.", examples=[4]
    )
    network_calls: int | None = Field(
        default=None,
        ge=1,
        description="Most calls of the network, over all runs; held to the call. null = no limit.",
        examples=[1_000_000],
    )
    device_hours: float | None = Field(
        default=None,
        gt=0.0,
        description="Most hours of devices, over all runs and added up; looked at before each shard. null = no limit.",
        examples=[8.0],
    )


class BudgetOverride(FrozenModel):
    """What one class may spend, where that differs from the spec's budget; limits of calls and hours are the whole build's."""

    max_attempts: int | None = Field(default=None, ge=1, le=100, description="As budget.max_attempts.", examples=[12])


class Execution(FrozenModel):
    """How the machine computes; fixed by the first build into an output, since it decides the last bits of pixels."""

    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Tiles per batch; null = chosen at the first build.", examples=[16]
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of the network. Default float32.", examples=["float32"]
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads per worker; null = chosen at the first build.",
        examples=[2],
    )
    compile: bool | None = Field(
        default=None,
        description="torch.compile for the network; null = on CUDA (with CUDA graphs) unless strict, not on CPUs.",
        examples=[True],
    )
    strict: bool = Field(
        False, description="true = refuse to mix kinds of hardware or software. Default false.", examples=[True]
    )
