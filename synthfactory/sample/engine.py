"""Conditions and noise keys in, uint8 tiles out: one batch at a time on one device.

The same batch (conditions, keys, sampler, padding), threads and software give the same bytes. Batches are padded to a multiple
of four rows, because convolutions of one to three rows take other kernels and round differently; a compiled network gets full
batches only, because every new shape would be compiled anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from synthfactory.model.vae import pixels_to_uint8
from synthfactory.model.weights import LoadedModel
from synthfactory.plan.cost import calls_per_tile
from synthfactory.sample.network import DTYPES, Network
from synthfactory.sample.noise import CandidateNoise
from synthfactory.sample.solvers import integrate
from synthfactory.spec.sampler import Sampler

PAD_TO = 4
DECODE_ROWS = 16  # decoded at a time: the decoder's memory per tile is many times the network's


@dataclass
class Spent:
    """What drawing has cost so far: network calls of one tile each (padding not counted), and seconds per stage."""

    network_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"sample": 0.0, "decode": 0.0, "screen": 0.0})


class Drawn:
    """A batch that is on its way: on a GPU the call that began it returns before the tiles are there."""

    def __init__(self, tiles: Tensor, embeddings: Tensor | None, finite: Tensor, count: int, marks: Marks) -> None:
        self._parts = [_to_host(part) for part in (tiles, embeddings, finite)]
        self._count, self._marks = count, marks
        marks.set("screen")  # the copies to the host are in the stream before it

    def wait(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(tiles uint8 (N, H, W, 3), embeddings of the tiles float32 (N, E) where they were asked for).

        FloatingPointError where the network gave NaN or infinity.
        """
        self._marks.wait()
        tiles, embeddings, finite = self._parts
        assert tiles is not None
        assert finite is not None
        if not bool(finite):
            raise FloatingPointError("the network gave NaN or infinity; try execution.dtype: float32")
        found = None if embeddings is None else embeddings.numpy()[: self._count]
        return tiles.numpy()[: self._count], found


def _to_host(part: Tensor | None) -> Tensor | None:
    if part is None or part.device.type == "cpu":
        return part
    there = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return there.copy_(part, non_blocking=True)


class Marks:
    """Times between stages: by the clock on a CPU, by events in the stream on a GPU. Adds them up in `spent` when waited for."""

    def __init__(self, device: torch.device, spent: Spent) -> None:
        self._cuda, self._spent = device.type == "cuda", spent
        self._at: list[tuple[str, float | torch.cuda.Event]] = []
        self.set("start")

    def set(self, stage: str) -> None:
        """The end of a stage."""
        if not self._cuda:
            self._at.append((stage, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._at.append((stage, event))

    def wait(self) -> None:
        """Until all that was begun before the last mark is done."""
        for (_, begun), (stage, ended) in pairwise(self._at):
            if isinstance(begun, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                ended.synchronize()
                self._spent.seconds[stage] += begun.elapsed_time(ended) / 1000
            elif isinstance(begun, float) and isinstance(ended, float):
                self._spent.seconds[stage] += ended - begun


def padded(
    conditions_NE: np.ndarray | None, keys: Sequence[tuple[int, int]], width: int, pad_to: int
) -> tuple[Tensor | None, list[tuple[int, int]]]:
    """(conditions float32 (M, E) on the host, M keys): the last row repeated up to a multiple of `pad_to`.

    Raises ValueError where there is no tile to draw, or conditions are not (N, `width`).
    """
    count = len(keys)
    if count == 0 or (conditions_NE is not None and conditions_NE.shape != (count, width)):
        found = None if conditions_NE is None else conditions_NE.shape
        raise ValueError(f"conditions are {found}; ({count}, {width}) is needed")
    more = -count % pad_to
    all_keys = [*keys, *[keys[-1]] * more]
    if conditions_NE is None:
        return None, all_keys
    rows = np.concatenate([conditions_NE, np.repeat(conditions_NE[-1:], more, axis=0)])
    return torch.from_numpy(rows.astype(np.float32, copy=False)), all_keys


class Engine:
    """A model on a device, with a number format. It keeps nothing between batches but `spent` and what is the same for all."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        compiled: bool = False,
        full_rows: int = PAD_TO,
    ) -> None:
        """`full_rows` is the batch that a compiled network is always given. Converts the model's network in place."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model
        self.device = model.device
        self.dtype = DTYPES[dtype]
        self.compiled = compiled
        self.spent = Spent()
        self.software: dict[str, str] = {}  # beyond torch: what decides pixels as well
        self.network = Network(model.sit, self.dtype, compiled=compiled)
        self._pad_to = full_rows if compiled else PAD_TO
        model.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def shrink(self, full_rows: int) -> None:
        """After memory ran out: smaller full batches from now on, and what the allocator holds is given back."""
        if self.compiled:
            self._pad_to = full_rows
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def draw(self, conditions_NE: np.ndarray, keys: Sequence[tuple[int, int]], sampler: Sampler) -> np.ndarray:
        """Tiles uint8 (N, H, W, 3) for conditions float32 (N, E) and one noise key each, all in one batch.

        Raises ValueError where widths or lengths do not fit, FloatingPointError where the network gives NaN or infinity.
        """
        if not len(keys):
            size = self.model.tile_size_px
            return np.zeros((0, size, size, 3), np.uint8)
        return self.begin(conditions_NE, keys, sampler).wait()[0]

    @torch.inference_mode()
    def begin(
        self,
        conditions_NE: np.ndarray | None,
        keys: Sequence[tuple[int, int]],
        sampler: Sampler,
        *,
        embed: bool = False,
    ) -> Drawn:
        """As `draw` of at least one tile, without waiting; `embed` also asks for the encoder's embeddings of the tiles.

        Without conditions the model's null condition takes their place.
        """
        count = len(keys)
        on_host, padded_keys = padded(conditions_NE, keys, self.model.sit.config.condition_width, self._pad_to)
        marks = Marks(self.device, self.spent)
        conditions = None if on_host is None else self._to_device(on_host)
        latents = self._latents(conditions, padded_keys, sampler)
        finite = torch.isfinite(latents).all()
        marks.set("sample")
        self.spent.network_calls += count * calls_per_tile(sampler)
        tiles = self._decoded(self.model.sit.denormalise(latents))
        marks.set("decode")
        return Drawn(tiles, self._embedded(tiles) if embed else None, finite, count, marks)

    def _embedded(self, tiles: Tensor) -> Tensor:
        if self.model.encoder is None:
            raise ValueError("the model holds no encoder")
        return self.model.encoder.embed_tiles(tiles)

    def _to_device(self, values: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return values
        return values.pin_memory().to(self.device, non_blocking=True)

    def _latents(self, conditions: Tensor | None, keys: Sequence[tuple[int, int]], sampler: Sampler) -> Tensor:
        config = self.model.sit.config
        noise = CandidateNoise(keys, (config.latent_channels, config.latent_size, config.latent_size))

        def fresh() -> Tensor:
            return self._to_device(noise.draw())

        return integrate(sampler, self.network.velocity(conditions, sampler.guidance, len(keys)), fresh(), fresh)

    def _decoded(self, latents: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), a chunk at a time."""
        chunks = latents.contiguous(memory_format=torch.channels_last).split(DECODE_ROWS)  # type: ignore[no-untyped-call]
        return torch.cat([pixels_to_uint8(self.model.vae.decode(chunk)) for chunk in chunks])
