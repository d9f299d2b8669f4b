"""A repository's own diffusers pipeline as an engine: its code, its solver, its decoder; our conditions, noise keys and screens.

The code runs only here and in components.py, after every file was compared with the pinned commit. It is called with the embeddings
(float32, N x width), num_images_per_prompt, num_inference_steps, guidance_scale, guidance_low and guidance_high, and gives
result["images"]. Each candidate's own noise goes in where the pipeline's signature has `latents` (the start) or a `generator` per
image (all of it); where it has neither, a batch is seeded by its first key, and its bytes depend on which tiles share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn

from synthfactory.model.pipeline import GENERATORS, LATENTS, PipelineRepo
from synthfactory.model.vit import ViT
from synthfactory.model.weights import default_device
from synthfactory.plan.cost import calls_per_tile
from synthfactory.sample.components import check_loaded, code_lock, foreign
from synthfactory.sample.engine import PAD_TO, Drawn, Engine, Marks, Spent, padded
from synthfactory.sample.noise import CandidateNoise, mersenne
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler

PASSED = ("num_images_per_prompt", "num_inference_steps", "guidance_scale", "guidance_low", "guidance_high")


class OfficialEngine:
    """A pinned pipeline on a device, with the surface of Engine. It keeps nothing between batches but `spent`."""

    compiled = False
    dtype = torch.float32  # what its code does to other formats is not known

    def __init__(
        self,
        repo: PipelineRepo,
        encoder: ViT | None,
        *,
        threads: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Runs the repository's code. InputError where a file differs from the pin (nothing is run then), or the pipeline does not load."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.repo, self.encoder = repo, encoder
        self.device = device or default_device()
        self.spent = Spent()
        self.software = {"diffusers": diffusers.__version__}
        self._pipeline = _loaded(repo, self.device)
        if hasattr(self._pipeline, "set_progress_bar_config"):
            self._pipeline.set_progress_bar_config(disable=True)

    @property
    def network(self) -> nn.Module:
        """The pipeline's largest module that is no autoencoder: the one that predicts velocities."""
        parts = self._pipeline.components.values()
        modules = [part for part in parts if isinstance(part, nn.Module) and not hasattr(part, "decode")]
        return max(modules, key=lambda part: sum(weight.numel() for weight in part.parameters()))

    def shrink(self, full_rows: int) -> None:
        """After memory ran out: what the allocator holds is given back."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def draw(self, conditions_NE: np.ndarray, keys: Sequence[tuple[int, int]], sampler: Sampler) -> np.ndarray:
        """As Engine.draw: tiles uint8 (N, H, W, 3)."""
        if not len(keys):
            return np.zeros((0, self.repo.tile_size_px, self.repo.tile_size_px, 3), np.uint8)
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
        """As Engine.begin; the pipeline itself returns only when its tiles are there. Raises as Engine.begin.

        Without conditions the pipeline gets none, and is asked for as many images as there are keys.
        """
        count = len(keys)
        on_host, padded_keys = padded(conditions_NE, keys, self.repo.condition_width, PAD_TO)
        marks = Marks(self.device, self.spent)
        conditions = None if on_host is None else on_host.to(self.device)
        try:
            with _seeded(padded_keys[0], self.device):
                result = self._pipeline(**self._arguments(conditions, padded_keys, sampler))
        except SystemExit as stop:
            raise InputError(
                f"model: {self.repo.id} at {self.repo.revision}: its code would end this process while it draws (status {stop.code}); "
                "try another revision"
            ) from None
        try:
            images = result["images"]
        except (TypeError, LookupError):
            raise InputError(
                f"model: {self.repo.id}: its pipeline returns a {type(result).__name__} without 'images'; try another revision"
            ) from None
        tiles, finite = tiles_of(images, len(padded_keys), self.repo.tile_size_px, self.repo.id)
        marks.set("sample")
        self.spent.network_calls += count * calls_per_tile(sampler)
        tiles = tiles.to(self.device)
        if embed and self.encoder is None:
            raise ValueError("no encoder is at hand")
        return Drawn(tiles, self.encoder.embed_tiles(tiles) if embed and self.encoder else None, finite, count, marks)

    def _arguments(
        self, conditions: Tensor | None, keys: Sequence[tuple[int, int]], sampler: Sampler
    ) -> dict[str, Any]:
        form, takes = self.repo.form, self.repo.arguments
        each = len(keys) if conditions is None else 1
        values = (each, sampler.num_steps, sampler.guidance.scale, sampler.guidance.low, sampler.guidance.high)
        given: dict[str, Any] = dict(zip(PASSED, values, strict=True))
        if conditions is not None:
            given[form.embeds] = conditions
        if LATENTS in takes:
            noise = CandidateNoise(keys, (form.latent_channels, form.latent_size, form.latent_size))
            given[LATENTS] = noise.draw().to(self.device, self.dtype)
        if GENERATORS in takes:  # on the CPU, as diffusers' randn_tensor takes them for any device
            given[GENERATORS] = [mersenne(key) for key in keys]
        return given


AnyEngine = Engine | OfficialEngine


@contextmanager
def _seeded(key: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Whatever the pipeline draws from the global stream follows from the batch's first key, and the stream outside is left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key[0])  # CUDA's generator takes all 64 bits of it; the CPU's would take 32
        torch.set_rng_state(mersenne(key).get_state())
        yield


def _loaded(repo: PipelineRepo, device: torch.device) -> Any:
    """The pipeline, from the verified snapshot and its own code file."""
    with code_lock():
        repo.check_files()
        missing = [name for name in PASSED if name not in repo.arguments]
        if missing:
            raise InputError(
                f"model: {repo.id}: its pipeline takes no {', '.join(missing)}; this version of synthfactory cannot call it"
            )
        said = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        try:
            with foreign(repo, "its pipeline does not load"):
                pipeline = diffusers.DiffusionPipeline.from_pretrained(
                    str(repo.root),
                    custom_pipeline=str(repo.root / repo.entry),
                    trust_remote_code=True,
                    use_safetensors=True,
                    local_files_only=True,
                )
            check_loaded(repo, pipeline.components)
            return pipeline.to(device)
        except InputError as error:
            raise InputError(f"model: {error}") from error
        finally:
            diffusers_logging.set_verbosity(said)


def tiles_of(images: Any, count: int, size_px: int, name: str) -> tuple[Tensor, Tensor]:
    """(uint8 (N, H, W, 3), whether all values were finite) from what a pipeline returns: PIL images, arrays or a tensor, float in
    [0, 1] or uint8. InputError where they are not `count` RGB tiles of `size_px`.
    """
    if isinstance(images, Tensor):
        images = (
            images.permute(0, 2, 3, 1).float().cpu().numpy() if images.is_floating_point() else images.cpu().numpy()
        )
    elif len(images) and isinstance(images[0], Image.Image):
        images = np.stack([np.asarray(image.convert("RGB")) for image in images])
    found = np.asarray(images)
    if found.shape != (count, size_px, size_px, 3):
        raise InputError(
            f"model: {name}: draws images of shape {found.shape}, and ({count}, {size_px}, {size_px}, 3) was expected; correct "
            "model.pipeline.tile_size_px"
        )
    finite = torch.tensor(True)
    if found.dtype != np.uint8:
        finite = torch.tensor(bool(np.isfinite(found).all()))
        found = np.floor(np.clip(np.nan_to_num(found), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(found)), finite
