"""Batches for a step: read and decoded in threads, some steps ahead of the one that is worked on.

Nothing here has a state that a checkpoint would have to hold: what a batch is follows from (seed, step) and this worker's share of it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from synthfactory.spec.errors import InputError
from train.sampler import Order
from train.shardset import Index, Reader
from train.streams import normal, uniform
from train.symmetry import transformed, with_stain

Arrays = dict[str, np.ndarray]
Numbers = Any  # np.ndarray | Tensor
Also = Callable[[np.ndarray], Arrays]
# Other inputs of samples are small: read by few threads, many at a time, or they keep the step itself from Python.
ALSO_THREADS, ALSO_AT_ONCE = 4, 128


@dataclass(frozen=True)
class Batch:
    """This worker's share of a step's batch. `positions` are places in the whole run: what noise is keyed by."""

    step: int
    # int64 (B,) each; tensors on the device where the step is a CUDA graph
    positions: Numbers
    rows: Numbers  # numbers of tiles in the index
    symmetries: Numbers  # 0-7, already applied to the images
    images: np.ndarray  # uint8 (B, H, W, 3); (B, 0, 0, 3) where the loader decodes none
    also: Arrays = field(default_factory=dict)  # what else a step needs, (B, ...) each; see Loader.also

    def cut(self, where: np.ndarray) -> Batch:
        """The samples at these places of the batch."""
        also = {name: array[where] for name, array in self.also.items()}
        at = (self.positions[where], self.rows[where], self.symmetries[where], self.images[where])
        return Batch(self.step, *at, also)


class _Begun(NamedTuple):
    step: int
    positions: np.ndarray
    rows: np.ndarray
    symmetries: np.ndarray
    images: list[Future[np.ndarray]]
    also: list[Future[Arrays]]


@dataclass(frozen=True)
class Share:
    """Which part of every batch is this worker's: `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def of(self, step: int, batch: int) -> np.ndarray:
        """Positions int64 (batch / world,) of a step."""
        each = batch // self.world
        start = step * batch + self.rank * each
        return np.arange(start, start + each)


class Loader:
    """Batches in order of steps. A context manager: its threads end with it."""

    def __init__(
        self,
        index: Index,
        order: Order,
        *,
        seed: int,
        batch: int,
        share: Share = Share(),
        symmetries: bool = True,
        stain_jitter: float = 0.0,
        threads: int | None = None,
        ahead: int = 4,
        end: int | None = None,
        decodes: bool = True,
        also: Also | None = None,
    ) -> None:
        """`end`: the step that is not read any more. `decodes`, `also`: see the attributes."""
        self.index = index
        self._order, self._seed, self._batch, self._share = order, seed, batch, share
        self._symmetries, self._stain = symmetries, stain_jitter
        self._reader = Reader(index)
        threads = threads or max(2, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._beside = ThreadPoolExecutor(min(threads, ALSO_THREADS), thread_name_prefix="loader-also")
        self._ahead, self._end = ahead, end
        self._queue: deque[_Begun] = deque()
        self.decodes = decodes  # a step that has kept all it needs of the tiles sets it to False
        # rows -> what else a step needs of these tiles, read ahead as they are: latents. Called from several threads at once, for some
        # samples of a batch each.
        self.also = also
        self.waited_sec = 0.0
        self.size_px = len(self._reader.image(int(order.rows([0])[0])))

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._beside):
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step; those of the next steps are begun. InputError, naming the tar, for a tile that does not decode."""
        began = time.perf_counter()
        if not self._queue or self._queue[0].step != step:  # the first, or a jump
            self._drop()
            self._queue.append(self._begin(step))
        while len(self._queue) <= self._ahead and (following := self._queue[-1].step + 1) != self._end:
            self._queue.append(self._begin(following))
        begun = self._queue.popleft()
        empty = np.zeros((len(begun.rows), 0, 0, 3), np.uint8)
        images = np.stack([future.result() for future in begun.images]) if begun.images else empty
        parts = [future.result() for future in begun.also]
        also = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        self.waited_sec += time.perf_counter() - began
        return Batch(step, begun.positions, begun.rows, begun.symmetries, images, also)

    def first_rows(self, count: int) -> np.ndarray:
        """Up to `count` different rows of those that are seen first: a sample of what is trained on, in the order of the index."""
        return np.unique(self._order.rows(np.arange(count)))

    def images(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) of these rows as they are."""
        return np.stack(list(self._pool.map(self._decoded, map(int, rows))))

    def _begin(self, step: int) -> _Begun:
        positions = self._share.of(step, self._batch)
        rows = self._order.rows(positions)
        symmetries, gains = np.zeros_like(positions), [None] * len(positions)
        if self._symmetries:
            symmetries = (uniform(self._seed, "symmetry", positions) * 8).long().numpy()
        if self._stain:
            gains = list(1 + self._stain * normal(self._seed, "stain", positions, (3,)).double().numpy())
        futures = [
            self._pool.submit(self._augmented, int(row), int(symmetry), gain)
            for row, symmetry, gain in zip(rows, symmetries, gains, strict=True)
            if self.decodes
        ]
        some = [slice(at, at + ALSO_AT_ONCE) for at in range(0, len(rows), ALSO_AT_ONCE)]
        also = [self._beside.submit(self.also, rows[at]) for at in some if self.also]
        return _Begun(step, positions, rows, symmetries, futures, also)

    def _drop(self) -> None:
        for begun in self._queue:
            waiting: list[Future[Any]] = [*begun.images, *begun.also]
            for future in waiting:
                future.cancel()
        self._queue.clear()

    def _augmented(self, row: int, symmetry: int, gains: np.ndarray | None) -> np.ndarray:
        turned = transformed(self._decoded(row), symmetry)
        return np.ascontiguousarray(turned if gains is None else with_stain(turned, np.maximum(gains, 0.0)))

    def _decoded(self, row: int) -> np.ndarray:
        image = self._reader.image(row)
        if image.shape[0] != self.size_px or image.shape[1] != self.size_px:
            where = self.index.tars[int(self.index.tar_of[row])]
            raise InputError(
                f"{where}: a tile of {image.shape[1]} x {image.shape[0]} px among tiles of {self.size_px} px; "
                "all must have one size"
            )
        return image
