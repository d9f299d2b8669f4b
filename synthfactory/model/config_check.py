"""Is a model folder's config.json one that a set can be begun with? Asked before anything of it is used, printed or locked (no torch).

Sizes are bounded far above any real model, so that a hostile file is refused at once instead of filling the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synthfactory.spec.text import shown

FORMAT = "synthfactory-model/1"
PARTS = ("sit", "vae", "encoder")
MAX_TEXT = 500  # as in a lock
MAX_TILE_PX = 4096  # as in a shard
MAX_SIZE = 1 << 16  # of any width, number of heads, ...
MAX_DEPTH = 1000
MAX_LEVELS = 8  # of an autoencoder; each halves the resolution
MAX_NESTING = 4
MAX_ENTRIES = 100
DEPTHS = ("depth", "layers_per_block", "projection_depth")
# Where config.json leaves them out: the defaults of SiT and VAE.
LATENT_SIZE, LATENT_CHANNELS, LEVELS, UNSHUFFLE = 28, 4, 4, 1


def config_problem(config: Any) -> str | None:
    """What is wrong with a config.json of unknown origin, in words, or None."""
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        return f"is not of format {FORMAT}; export the model with this version of synthfactory-train"
    wanted = {"id": str, "revision": str, "tile_size_px": int, "resolution_mpp": float, "files": dict, "licence": dict}
    for key, kind in (*wanted.items(), *((part, dict) for part in PARTS)):
        if not isinstance(config.get(key), kind) or isinstance(config[key], bool):
            return f"'{key}' is missing or no {kind.__name__}"
    problem = _files_problem(config["files"])
    if problem:
        return problem
    if "id" not in config["encoder"]:
        return "'encoder.id' is missing"
    named = [(key, config[key]) for key in ("id", "revision")]
    for path, text in (*named, ("encoder.id", config["encoder"]["id"])):
        if not isinstance(text, str) or not _is_text(text):
            return f"'{path}' must be 1 to {MAX_TEXT} printable characters, not '{shown(str(text))}'"
    if not 0 < config["resolution_mpp"] <= MAX_SIZE:
        return f"'resolution_mpp' must be micrometres per pixel, such as 0.5, not {config['resolution_mpp']}"
    problem = _value_problem("licence", config["licence"], nesting=MAX_NESTING)
    for part in PARTS:
        problem = problem or _value_problem(part, config[part], nesting=2)
    if problem:
        return problem
    width = config["sit"].get("condition_width")
    if not _is_whole(width) or width < 1:
        return "'sit.condition_width' is missing or no positive whole number"
    return _encoder_problem(config["encoder"]) or _tile_problem(config)


def _files_problem(files: Mapping[str, Any]) -> str | None:
    expected = {f"{part}.safetensors" for part in PARTS}
    if set(files) not in (expected, expected - {"encoder.safetensors"}):
        return f"'files' must name exactly {', '.join(sorted(expected))} (the encoder may be absent)"
    if not all(isinstance(digest, str) and len(digest) == 64 and digest.isalnum() for digest in files.values()):
        return "'files' must give each file's sha256"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(text: str) -> bool:
    return 0 < len(text) <= MAX_TEXT and text.isprintable()


def _value_problem(path: str, value: Any, nesting: int) -> str | None:
    """Text must be printable, numbers finite and not beyond any model's, and nothing nested deep."""
    name = path.rpartition(".")[2]
    if isinstance(value, str):
        return None if value == "" or _is_text(value) else f"'{path}' holds text that is too long or not printable"
    if isinstance(value, float) and not math.isfinite(value):
        return f"'{path}' is no finite number"
    if _is_whole(value):
        most = MAX_DEPTH if name in DEPTHS else MAX_SIZE
        return None if -most <= value <= most else f"'{path}' is too large; at most {most:,} is allowed"
    if not isinstance(value, dict | list):
        return None
    if nesting == 0 or len(value) > MAX_ENTRIES:
        return f"'{path}' is nested too deep or has more than {MAX_ENTRIES} entries"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and not _is_text(key):
            return f"'{path}' has an entry whose name is too long or not printable"
        problem = _value_problem(f"{path}.{key}", inner, nesting - 1)
        if problem:
            return problem
    return None


def _encoder_problem(encoder: Mapping[str, Any]) -> str | None:
    """What is read of an encoder before its network is built."""
    for name in ("width", "image_size"):
        if name in encoder and not (_is_whole(encoder[name]) and encoder[name] > 0):
            return f"'encoder.{name}' must be a whole number above 0"
    for name in ("mean", "std"):
        values = encoder.get(name, [0.5] * 3)
        numbers = isinstance(values, list) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        if not numbers or len(values) != 3:
            return f"'encoder.{name}' must be a list of three numbers, one for each of red, green and blue"
    return None


def _tile_problem(config: Mapping[str, Any]) -> str | None:
    """Tiles must be as large as the autoencoder makes them: what config.json says goes into locks, tables and cards."""
    latent, unshuffle = config["sit"].get("latent_size", LATENT_SIZE), config["vae"].get("unshuffle", UNSHUFFLE)
    channels = config["vae"].get("channels", [0] * LEVELS)
    if not (_is_whole(latent) and _is_whole(unshuffle) and isinstance(channels, list)):
        return "'sit.latent_size', 'vae.unshuffle' and 'vae.channels' must be whole numbers and a list of them"
    if not 1 <= len(channels) <= MAX_LEVELS:
        return f"'vae.channels' must have 1 to {MAX_LEVELS} entries"
    latent_channels = [config[part].get("latent_channels", LATENT_CHANNELS) for part in ("sit", "vae")]
    if latent_channels[0] != latent_channels[1]:
        return (
            f"'sit.latent_channels' is {latent_channels[0]} and 'vae.latent_channels' {latent_channels[1]}: they must be the same; "
            "the model and the autoencoder do not belong together"
        )
    made = latent * unshuffle * 2 ** (len(channels) - 1)
    if config["tile_size_px"] != made or not 1 <= made <= MAX_TILE_PX:
        return (
            f"'tile_size_px' is {config['tile_size_px']}, but sit.latent_size and vae make tiles of {made} px "
            f"(at most {MAX_TILE_PX}); export the model again"
        )
    return None
