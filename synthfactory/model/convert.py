"""Weights of others -> our model folder, key by key, whole or not at all: `synthfactory model import`.

SiT keeps REPA-E's names. What a published file is not known to hold is an option with a default: where the condition's linear layer
stands, the null condition, the number of heads, the statistics that normalise latents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from synthfactory.model.config_check import MAX_DEPTH
from synthfactory.model.sit import SiT, SiTConfig, sincos_positions
from synthfactory.model.sources import Source, State
from synthfactory.model.vae import VAE, VAEConfig
from synthfactory.spec.errors import InputError

TABLE = "y_embedder.embedding_table.weight"
CONDITION_KEYS = ("y_embedder.proj", "y_embedder.linear", "y_embedder.embedding_table", "y_embedder")
NULL_KEYS = ("y_embedder.null", "y_embedder.null_embedding", "null_embedding")
# Names of the original SD-VAE, and of older diffusers, in today's. Decoder levels count the other way round; see _vae_name.
VAE_NAMES = [(re.compile(old), new) for old, new in (
    (r"^first_stage_model\.", ""),
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.<\1>.resnets.\2."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.<\1>.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.(nin_shortcut)\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the files do not say. None: found by the defaults that the command's help names."""

    condition_key: str | None = None
    null_key: str | None = None
    heads: int | None = None
    norm_groups: int = 32
    projection_depth: int = 8
    rename: Mapping[str, str] = field(default_factory=dict)  # prefix of a source's name -> prefix of ours


@dataclass(frozen=True)
class Row:
    """One tensor: our name, the source's ('' where it was made), its shape, and what was done."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    what: str  # as it is, renamed, reshaped, made: why


@dataclass(frozen=True)
class Converted:
    """Both networks, checked to hold every tensor that they need, and how each came about."""

    sit: State
    vae: State
    sit_config: SiTConfig
    vae_config: VAEConfig
    rows: list[Row]


class _Tensors:
    """A source's tensors, taken one by one; what is left at the end was not understood."""

    def __init__(self, state: State, rename: Callable[[str], str]) -> None:
        self.state: State = {}
        self.origin: dict[str, str] = {}
        self.rows: list[Row] = []
        for name, value in state.items():
            ours = rename(name)
            if ours in self.origin:
                raise InputError(
                    f"{name} and {self.origin[ours]} would both be {ours}; nothing was written (see --rename)"
                )
            self.state[ours], self.origin[ours] = value, name

    def move(self, name: str, ours: str, value: Tensor | None = None, what: str | None = None) -> Tensor:
        """Takes a tensor out under our name; `value` is what became of it."""
        given = self.state.pop(name)
        found = given if value is None else value
        said = what or ("as it is" if self.origin[name] == ours.removeprefix("kl.") else "renamed")
        self.rows.append(Row(ours, self.origin[name], tuple(found.shape), said))
        return found.contiguous().clone()

    def made(self, ours: str, value: Tensor, why: str) -> Tensor:
        """A tensor that the source does not hold."""
        self.rows.append(Row(ours, "", tuple(value.shape), f"made: {why}"))
        return value

    def need(self, name: str, sides: int) -> Tensor:
        """A tensor whose shape says a size. InputError where it is absent, or has not that many sides."""
        if name not in self.state:
            close = [known for known in self.state if known.endswith(name.rpartition(".")[2])][:3]
            raise InputError(
                f"the network has no tensor {name}; it has for example {', '.join(close) or 'none like it'}; nothing was written "
                "(--rename OLD=NEW changes the beginning of names)"
            )
        found = self.state[name]
        if found.ndim != sides or not found.numel():
            raise InputError(
                f"{self.origin[name]} has shape {tuple(found.shape)}; {sides} sides, none of them 0, are needed; nothing was written"
            )
        return found


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    """What stands where the pattern has its group, in the names that fit it."""
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def convert(source: Source, options: Options) -> Converted:
    """Both networks under our names. InputError, naming the first tensors, where anything is missing, left over, or of another shape."""

    def renamed(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in options.rename.items() if name.startswith(old)), name)

    tensors = _Tensors(source.sit, renamed)
    config = _sit_config(tensors, source, options)
    wanted = _shapes(SiT, config)
    sit = _sit(tensors, config, source, options, wanted)
    _check("network", sit, wanted, tensors)
    vae_tensors, vae_config = _vae(source, options)
    wanted = _shapes(VAE, vae_config)
    vae = {name: _linear(vae_tensors, name) for name in wanted if name in vae_tensors.state}
    _check("autoencoder", vae, wanted, vae_tensors)
    return Converted(sit, vae, config, vae_config, [*tensors.rows, *vae_tensors.rows])


def _shapes(kind: type[SiT] | type[VAE], config: Any) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"its sizes do not make a network: {str(error).splitlines()[0]}; nothing was written"
        ) from None


def _check(what: str, state: State, wanted: Mapping[str, tuple[int, ...]], tensors: _Tensors) -> None:
    missing = sorted(wanted.keys() - state.keys())
    other = sorted(name for name in wanted.keys() & state.keys() if tuple(state[name].shape) != wanted[name])
    left = sorted(tensors.origin[name] for name in tensors.state)
    if not (missing or other or left):
        return
    parts = [_listed(f"{len(missing)} missing", missing)] if missing else []
    parts += [_listed(f"{len(left)} not understood", left)] if left else []
    if other:
        shown = [f"{name} {tuple(state[name].shape)} instead of {wanted[name]}" for name in other]
        parts.append(_listed(f"{len(other)} of another shape", shown))
    raise InputError(
        f"the {what} does not fit: {'; '.join(parts)}. Nothing was written (see --rename, --heads, --condition-key)"
    )


def _listed(head: str, names: Sequence[str]) -> str:
    return f"{head} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), None)


def _condition_key(tensors: _Tensors, options: Options) -> str:
    for key in (options.condition_key,) if options.condition_key else CONDITION_KEYS:
        if f"{key}.weight" in tensors.state:
            return key
    near = [name for name in tensors.state if "embed" in name][:6]
    raise InputError(
        f"the network has no {options.condition_key or CONDITION_KEYS[0]}.weight, which turns an embedding into a condition; name it by "
        f"--condition-key (it has {', '.join(near) or 'none like it'}); nothing was written"
    )


def _sit_config(tensors: _Tensors, source: Source, options: Options) -> SiTConfig:
    """Sizes, read off the tensors; the number of heads is not in them."""
    patches = tensors.need("x_embedder.proj.weight", 4)
    width, channels, patch = int(patches.shape[0]), int(patches.shape[1]), int(patches.shape[-1])
    grid = int(tensors.need("pos_embed", 3).shape[1] ** 0.5) if "pos_embed" in tensors.state else 0
    hidden = tensors.need("blocks.0.mlp.fc1.weight", 2).shape[0]
    blocks = _numbers(tensors.state, r"blocks\.(\d{1,6})\.")
    if max(blocks) >= MAX_DEPTH:
        raise InputError(
            f"the network has a block {max(blocks)}; at most {MAX_DEPTH:,} are understood; nothing was written"
        )
    condition = tensors.need(f"{_condition_key(tensors, options)}.weight", 2)
    projected = [name for name in tensors.state if name.startswith("projectors.0.") and name.endswith(".weight")]
    values: dict[str, Any] = {
        "latent_channels": channels,
        "latent_size": grid * patch or _number(source.sit_config, "input_size", "sample_size") or 28,
        "patch_size": patch,
        "width": width,
        "depth": 1 + max(blocks),
        "heads": options.heads or _number(source.sit_config, "num_heads", "num_attention_heads", "heads") or 16,
        "mlp_ratio": hidden / width,
        "condition_width": int(condition.shape[0]) - 1
        if _is_table(tensors, condition, width)
        else int(condition.shape[-1]),
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors.state,
        "null_form": "learned" if _null(tensors, options) or _is_table(tensors, condition, width) else "zeros",
        "projection_depth": options.projection_depth if projected else None,
    }
    if projected:
        values["projection_hidden"] = int(tensors.need("projectors.0.0.weight", 2).shape[0])
        values["projection_width"] = int(tensors.need("projectors.0.4.weight", 2).shape[0])
    try:
        return SiTConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the network's {first['loc'][0]} is {first['input']}: {first['msg']}; nothing was written"
        ) from None


def _is_table(tensors: _Tensors, condition: Tensor, width: int) -> bool:
    """Whether the condition is REPA-E's table of labels (rows, width), the last row the null: a linear layer from one-hot labels."""
    return TABLE in tensors.state and condition is tensors.state[TABLE] and int(condition.shape[-1]) == width


def _null(tensors: _Tensors, options: Options) -> str | None:
    if options.null_key is not None:
        if options.null_key not in tensors.state:
            raise InputError(f"the network has no tensor {options.null_key} (see --null-key); nothing was written")
        return options.null_key
    return next((key for key in NULL_KEYS if key in tensors.state), None)


def _sit(
    tensors: _Tensors, config: SiTConfig, source: Source, options: Options, wanted: Mapping[str, tuple[int, ...]]
) -> State:
    found = _condition(tensors, config, options)
    if "pos_embed" not in tensors.state:
        grid = config.latent_size // config.patch_size
        found["pos_embed"] = tensors.made(
            "pos_embed", sincos_positions(config.width, grid), "fixed sine-cosine positions"
        )
    if "bn.running_mean" not in tensors.state:
        found.update(_statistics(tensors, config, source.vae_config))
    for name in [name for name in tensors.state if name in wanted]:
        found[name] = tensors.move(name, name)
    variance = found.get("bn.running_var")
    if variance is not None and not bool((variance.float() + config.latent_norm_eps > 0).all()):
        raise InputError("the network's bn.running_var holds variances below 0; nothing was written")
    return found


def _condition(tensors: _Tensors, config: SiTConfig, options: Options) -> State:
    key = _condition_key(tensors, options)
    weight = tensors.need(f"{key}.weight", 2)
    found: State = {}
    if _is_table(tensors, weight, config.width):
        table = weight.clone()
        found["y_embedder.proj.weight"] = tensors.move(
            TABLE, "y_embedder.proj.weight", table[:-1].T, "reshaped: labels as one-hot"
        )
        found["y_embedder.proj.bias"] = tensors.made(
            "y_embedder.proj.bias", torch.zeros(config.width), "a table has none"
        )
        found["y_embedder.null"] = tensors.made("y_embedder.null", table[-1].clone(), "the table's last row")
        return found
    found["y_embedder.proj.weight"] = tensors.move(f"{key}.weight", "y_embedder.proj.weight")
    if f"{key}.bias" in tensors.state:
        found["y_embedder.proj.bias"] = tensors.move(f"{key}.bias", "y_embedder.proj.bias")
    else:
        found["y_embedder.proj.bias"] = tensors.made(
            "y_embedder.proj.bias", torch.zeros(config.width), "the layer has none"
        )
    null = _null(tensors, options)
    if null is None:
        found["y_embedder.null"] = tensors.made(
            "y_embedder.null", torch.zeros(config.width), "no null is stored; zeros are taken"
        )
        return found
    value = tensors.state[null].reshape(-1)
    if value.numel() == config.condition_width != config.width:  # a null embedding, in front of the layer
        projected = found["y_embedder.proj.weight"].float() @ value.float() + found["y_embedder.proj.bias"].float()
        found["y_embedder.null"] = tensors.move(
            null, "y_embedder.null", projected, "reshaped: a null embedding, through the layer"
        )
    else:
        found["y_embedder.null"] = tensors.move(null, "y_embedder.null", value)
    return found


def _statistics(tensors: _Tensors, config: SiTConfig, vae: Mapping[str, Any]) -> State:
    """Where no BatchNorm is stored: diffusers' scaling, latents = (z - shift) * scale, as mean and variance."""
    scale, shift = vae.get("scaling_factor", 1.0), vae.get("shift_factor") or 0.0
    if not (isinstance(scale, int | float) and isinstance(shift, int | float) and scale > 0):
        raise InputError(
            f"the autoencoder's scaling_factor is {scale}; a number above 0 is needed; nothing was written"
        )
    why = f"scaling_factor {scale:g}, shift_factor {shift:g}"
    channels, variance = config.latent_channels, 1.0 / scale**2 - config.latent_norm_eps
    return {
        "bn.running_mean": tensors.made("bn.running_mean", torch.full((channels,), float(shift)), why),
        "bn.running_var": tensors.made("bn.running_var", torch.full((channels,), variance), why),
        "bn.num_batches_tracked": tensors.made("bn.num_batches_tracked", torch.tensor(0), why),
    }


def _vae(source: Source, options: Options) -> tuple[_Tensors, VAEConfig]:
    said = source.vae_config
    levels = len(_numbers(source.vae, r".*encoder\.down(?:_blocks)?\.(\d{1,6})\."))
    tensors = _Tensors(source.vae, lambda name: f"kl.{_vae_name(name, levels)}")
    latent = tensors.need("kl.post_quant_conv.weight", 4).shape[1]
    channels = [
        tensors.need(f"kl.encoder.down_blocks.{level}.resnets.0.conv2.weight", 4).shape[0] for level in range(levels)
    ]
    if not channels:
        raise InputError(
            "the autoencoder has no encoder.down_blocks (diffusers' names, or the original SD-VAE's); nothing was written"
        )
    first = "kl.encoder.down_blocks.0.resnets."
    return tensors, VAEConfig(
        channels=tuple(map(int, channels)),
        layers_per_block=len(
            {name.removeprefix(first).split(".")[0] for name in tensors.state if name.startswith(first)}
        ),
        latent_channels=int(latent),
        norm_groups=_number(said, "norm_num_groups") or options.norm_groups,
        mid_attention=any(name.startswith("kl.encoder.mid_block.attentions.") for name in tensors.state),
    )


def _vae_name(name: str, levels: int) -> str:
    """The name that today's AutoencoderKL gives a tensor of the original SD-VAE or of older diffusers."""
    for old, new in VAE_NAMES:
        name = old.sub(new, name)
    return re.sub(r"<(\d+)>", lambda match: str(levels - 1 - int(match[1])), name)


def current_vae_name(name: str) -> str:
    """Today's name of a tensor of older diffusers; any other name is left as it is."""
    return _vae_name(name, 0)


def _linear(tensors: _Tensors, name: str) -> Tensor:
    """Attention's 1 x 1 convolutions in older files are linear layers today."""
    value = tensors.state[name]
    if ".attentions." in name and value.ndim == 4 and value.shape[2:] == (1, 1):
        return tensors.move(name, name, value[:, :, 0, 0], "reshaped: 1 x 1 convolution to linear")
    return tensors.move(name, name)
