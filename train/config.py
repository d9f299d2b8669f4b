"""What a training run does, from one YAML file: which network, on which shards, with which losses and for how many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from synthfactory.spec.errors import InputError
from synthfactory.spec.faults import checked
from synthfactory.spec.model import Model
from synthfactory.spec.plain_yaml import Kind, parse_text, read_text
from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems
from train.objectives import DiffusionLosses, EncoderLosses, RepaELosses, VAELosses
from train.sizes import faults_of_network

CONFIG = Kind(
    "config",
    "train/configs/phantom-sit.yaml",
    "train/configs holds some that work",
    "mode:, data:, network: and optimiser:",
)


class ShardSet(FrozenModel):
    """One set of shards among several."""

    shards: str = Field(min_length=1, description="folder or URL of a set, a tar, or a pattern", examples=["out/demo"])
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how often its tiles are seen, against one pass each; if balanced, against other sets' of the class",
    )
    lineage: str | None = Field(
        default=None, description="of a synthetic set: says on whose tiles it rests, so that a split can be checked"
    )


Sets = str | Annotated[list[ShardSet | str], Field(min_length=1)]  # as they may be written


def _as_sets(value: Any) -> Any:
    """A place stands for the set at that place, alone or in a list."""
    if isinstance(value, str):
        return [{"shards": value}]
    return [{"shards": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


class Validation(FrozenModel):
    """Tiles that are never trained on: a share of the patients, or sets of their own."""

    share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the patients of each class: whole patients, at least one of two",
    )
    shards: list[ShardSet] | None = Field(
        default=None,
        min_length=1,
        description="sets of other patients, as data.shards names them",
        examples=["heldout"],
    )
    every: int = Field(default=500, ge=1, description="steps between two looks")
    tiles: int = Field(default=256, ge=1, description="tiles looked at, always the same")

    @field_validator("shards", mode="before", json_schema_input_type=Sets | None)
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _as_sets(value)

    @model_validator(mode="after")
    def _one(self) -> Validation:
        if (self.share is None) == (self.shards is None):
            raise Problems([("", "needs share or shards, one of both; for example share: 0.1")])
        return self


class Data(FrozenModel):
    """The tiles to learn from."""

    shards: list[ShardSet] = Field(
        min_length=1,
        description="folder, URL, tar or pattern of WebDataset tars; or a list of sets with weights",
        examples=["out/demo"],
    )
    classes: list[str] | None = Field(
        default=None,
        min_length=1,
        description="the labels there may be, in the order of their numbers; default: all, sorted",
    )
    sampling: Literal["natural", "balanced"] = Field(
        default="natural", description="natural: every tile once a pass; balanced: every class equally often"
    )
    validation: Validation | None = None
    unknown_patients: Literal["refuse", "train"] = Field(
        default="refuse", description="where patients are split: what becomes of tiles of nobody knows whom"
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop",
        description="a tar that is missing, cut off, differs from its checksum or is damaged where it is listed; a picture that does "
        "not decode stops the run either way, and its tar is named",
    )
    symmetries: bool = Field(default=True, description="augment with the eight symmetries of the square")
    stain_jitter: float = Field(
        default=0.0, ge=0, le=0.5, description="spread of a random gain of optical density per channel"
    )

    @field_validator("shards", mode="before", json_schema_input_type=Sets)
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _as_sets(value)


Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(FrozenModel):
    """Warm-up, then a cosine or constant rate; by steps, never by the clock, so that runs repeat."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for the matrices inside blocks, and AdamW for the rest; a step costs more, and fewer are needed",
    )
    steps: int = Field(ge=1, description="updates of the whole run", examples=[1000])
    batch: int = Field(ge=1, description="tiles of one step over all workers")
    accumulate: int = Field(default=1, ge=1, description="parts that a batch is cut into, where memory is short")
    rate: float = Field(gt=0, description="learning rate after the warm-up", examples=[1e-4])
    warmup: int = Field(default=100, ge=0, description="steps in which the rate rises to its full height")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="after the warm-up; cosine: to 2 % of the rate"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, per unit of the rate")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.99)
    clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    ema: list[Decay] = Field(
        default=[0.999],
        min_length=1,
        description="decay of the averaged weights per step, or several; an export takes the first, or as it is told",
    )

    @field_validator("ema", mode="before", json_schema_input_type=Decay | Annotated[list[Decay], Field(min_length=1)])
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _parts(self) -> Optimiser:
        if len(set(self.ema)) < len(self.ema):
            raise Problems([("ema", "holds a decay twice; write each once")])
        if len({f"{decay:g}" for decay in self.ema}) < len(self.ema):  # files of averages are named so
            raise Problems([("ema", "holds decays that differ behind six digits; choose others")])
        if self.batch % self.accumulate:
            raise Problems([("accumulate", f"must divide batch ({self.batch})")])
        return self


class Samples(FrozenModel):
    """Sheets of drawn tiles while a model that draws is trained: RUN/samples/STEP.png."""

    every: int = Field(default=1000, ge=1, description="steps between two sheets")
    tiles: int = Field(default=4, ge=1, le=32, description="tiles of each class")
    steps: int = Field(default=10, ge=1, le=1000, description="Heun steps")
    scale: float = Field(default=1.5, ge=1, le=100, description="guidance")


class LoRA(FrozenModel):
    """Low-rank adapters instead of the weights themselves (arXiv 2106.09685); merged at export."""

    rank: int = Field(default=8, ge=1, le=1024)
    scale: float = Field(default=8.0, gt=0, description="the adapter counts scale / rank")
    targets: list[str] = Field(
        default=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], min_length=1, description="ends of layer names"
    )


class Guided(FrozenModel):
    """The base as if guided away from a weaker model: what a SiT is to draw by itself (arXiv 2406.02507, 2210.03142)."""

    by: Model = Field(
        description="the weaker model, written as a spec's `model:`; of the same encoder, latents and terms, for example an earlier one"
    )
    scale: float = Field(default=1.5, gt=1, le=10, description="how far: 1 is the base itself")

    @field_validator("by")
    @classmethod
    def _bare(cls, value: Model) -> Model:
        if value.encoder is not None:
            raise ValueError("names an encoder, which a guide does not use; leave it out")
        return value


class Finetune(FrozenModel):
    """What of the base model learns: the weights whose names fit, or adapters."""

    parts: list[str] = Field(
        default=["*"],
        min_length=1,
        description="names of weights with * and ?",
        examples=[["blocks.*.attn.*", "y_embedder.*"]],
    )
    lora: LoRA | None = None
    depth: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="blocks of the SiT, more than the base has: some are doubled, and draw the same until the copies have learnt; `parts` "
        "counts all of them",
    )
    guided: Guided | None = Field(
        default=None,
        description="learn what the base draws when a weaker model guides it, in place of the tiles' own velocity",
    )
    statistics: Literal["keep", "measure"] = Field(
        default="keep",
        description="measure: mean and variance of latents anew, on these tiles; after the base's autoencoder learnt to encode differently",
    )


class TrainConfig(FrozenModel):
    """One run. `network` is the ViTConfig, VAEConfig or SiTConfig of the mode; `base`, `encoder_run`, `vae_run` name what it builds on."""

    mode: Literal["encoder", "vae", "diffusion", "finetune", "repa-e"] = Field(
        description="what learns: see train/README.md", examples=["diffusion"]
    )
    data: Data
    network: dict[str, Any] = Field(default={}, description="sizes; of a base model they are its own")
    optimiser: Optimiser
    encoder: EncoderLosses = EncoderLosses()
    vae: VAELosses = VAELosses()
    diffusion: DiffusionLosses = DiffusionLosses()
    repa_e: RepaELosses = RepaELosses()
    samples: Samples | None = Field(default=Samples(), description="null: none")
    finetune: Finetune = Finetune()
    base: Model | None = Field(
        default=None,
        description="finetune, repa-e, vae: the model to go on from, written as a spec's `model:`",
        examples=["phantom"],
    )
    encoder_run: str | None = Field(
        default=None,
        description="run whose averaged encoder conditions (finetune: in place of the base's); vae: whose features are compared",
    )
    vae_run: str | None = Field(default=None, description="diffusion: run whose averaged VAE gives the latents")
    seed: int = Field(default=0, ge=0, description="of the order of tiles, noise and new weights")
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32",
        description="bfloat16: matrix products under autocast, weights and optimiser stay float32; float64: for checks",
    )
    lean: bool = Field(
        default=False,
        description="with precision bfloat16: also what flows between the SiT's blocks; with compile, AdamW, whole batches and one worker, "
        "in modes diffusion and finetune, copies of its weights that products read, and their gradients: less memory is moved, more is "
        "rounded",
    )
    recompute: bool = Field(
        default=False,
        description="the SiT's activations are computed again in the backward pass: less memory, more time",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the networks that learn, in modes diffusion and finetune of AdamW's update too; the first step takes "
        "minutes",
    )
    graphs: bool = Field(
        default=True,
        description="on one GPU, where latents and tokens are kept and lie on it: a step's loss and gradients as one CUDA graph, of "
        "compiled runs with AdamW the update too",
    )
    tensorboard: bool = Field(
        default=False, description="metrics into RUN/tensorboard as well; needs the extra of that name"
    )
    threads: int = Field(default=2, ge=1, description="CPU threads of a worker; other numbers round otherwise")
    checkpoint_every: int = Field(
        default=100, ge=1, description="steps; what was done since the last is done again after a stop"
    )
    keep_last: int = Field(default=2, ge=1, description="checkpoints that stay")
    keep_every: int | None = Field(default=None, ge=1, description="steps whose checkpoints stay for good: multiples")
    log_every: int = Field(default=20, ge=1, description="steps between two lines of metrics.jsonl")

    @model_validator(mode="before")
    @classmethod
    def _finetuned(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("mode") == "finetune"):
            return values
        losses = values.get("diffusion", {})
        return {**values, "diffusion": {"alignment": 0.0, **losses}} if isinstance(losses, dict) else values

    @model_validator(mode="after")
    def _needs(self) -> TrainConfig:
        if self.mode in ("diffusion", "finetune") and self.data.stain_jitter:
            what = "goes with modes encoder, vae and repa-e; here latents are made once, of the tiles as they are"
            raise Problems([("data.stain_jitter", what)])
        if self.diffusion.time_mean and self.diffusion.time == "uniform":
            raise Problems(
                [("diffusion.time_mean", "goes with time: logit_normal; uniform times have no mean to move")]
            )
        based = self.mode == "finetune" or (self.mode in ("repa-e", "vae") and self.base is not None)
        if based and self.base is None:
            raise Problems([("base", "is missing; name the model to go on from, for example base: phantom")])
        if based and self.network:
            raise Problems([("network", "is the base model's own; leave it out")])
        if not based and not self.network:
            raise Problems([("network", "is missing; see train/configs for each mode's sizes")])
        if self.base is not None and not based:
            what = f"goes with modes finetune, repa-e and vae; mode {self.mode} builds a network of its own"
            raise Problems([("base", what)])
        if self.mode == "vae" and self.finetune.statistics == "measure":
            raise Problems(
                [("finetune.statistics", "are of modes finetune and repa-e; mode vae has no latents to take")]
            )
        if self.recompute and self.mode in ("encoder", "vae"):
            raise Problems([("recompute", "goes with modes that train a SiT: diffusion, finetune, repa-e")])
        if self.lean and (self.precision != "bfloat16" or self.mode in ("encoder", "vae")):
            raise Problems(
                [("lean", "goes with precision: bfloat16, and modes that train a SiT: diffusion, finetune, repa-e")]
            )
        if self.finetune.depth is not None and (self.mode == "vae" or not based or self.finetune.lora is not None):
            what = "adds blocks to a base, which must learn: it goes with modes finetune and repa-e, and without lora"
            raise Problems([("finetune.depth", what)])
        if self.finetune.guided is not None and self.mode != "finetune":
            raise Problems([("finetune.guided", f"is for mode finetune; leave it out with mode {self.mode}")])
        if self.finetune.guided is not None and self.encoder_run is not None:
            what = "would condition in another way than base and guide were trained for; leave it out, or leave finetune.guided out"
            raise Problems([("encoder_run", what)])
        if self.finetune.guided is not None and self.finetune.statistics == "measure":
            what = "measure would change what the base and its guide were made for; write keep, or leave guided out"
            raise Problems([("finetune.statistics", what)])
        if self.mode == "vae" and self.finetune.lora is not None:
            raise Problems([("finetune.lora", "is for networks that draw; mode vae takes finetune.parts")])
        if (
            self.mode == "vae"
            and self.vae.perceptual
            and self.vae.features == "encoder"
            and not (based or self.encoder_run)
        ):
            what = "compares features of an encoder; name one by encoder_run or base, or write features: lpips"
            raise Problems([("vae.perceptual", what)])
        if self.vae.redrawn is not None and not (self.mode == "vae" and based):
            what = "is for mode vae with a base, whose SiT draws; leave it out, or name a base"
            raise Problems([("vae.redrawn", what)])
        runs = ("encoder_run", "vae_run") if self.mode in ("diffusion", "repa-e") and not based else ()
        missing = [name for name in runs if getattr(self, name) is None]
        if missing:
            raise Problems([(name, f"is missing; mode {self.mode} builds on a run of that mode") for name in missing])
        if self.network:
            aligned = self.mode == "repa-e" or (self.mode == "diffusion" and self.diffusion.alignment > 0)
            faults = faults_of_network(self.mode, self.network, aligned=aligned)
            if faults:
                raise Problems(faults)
        return self


def load_config(path: str, overrides: Mapping[str, Any] = {}, options: Mapping[str, str] = {}) -> TrainConfig:
    """Reads and checks a config; `overrides` maps dotted paths to values, `options` to what was written to give them.

    InputError lists every fault, one line each: file:line:column: path: what, what instead.
    """
    values, source = parse_text(*read_text(path, CONFIG), CONFIG)
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {dotted}: '{parent}' is a value, not a group of fields")
        place[last] = value
    return checked(TrainConfig, values, source.overridden(options), CONFIG.name)


def config_text(config: TrainConfig) -> str:
    """As RUN/config.yaml holds it; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=True)
