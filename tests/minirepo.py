"""A complete miniature of a published CytoSyn repository: model_index.json, pipeline.py, a tiny SiT and a tiny AutoencoderKL.

The pipeline's code is written from the equations, apart from the package's own, so that pixels that agree say something. 16-wide
embeddings, 32-px tiles, latents 4 x 16 x 16; about 0.1M parameters. `make_repo` returns its files; equal seeds give equal bytes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save

EMBEDDING, LATENT, TILE = 16, 16, 32
WIDTH, DEPTH, HEADS, PATCH, CHANNELS = 32, 2, 2, 2, 4
FORM = {"condition_width": EMBEDDING, "tile_size_px": TILE, "latent_size": LATENT, "encoder_id": "tiny-encoder"}

PIPELINE = '''
"""Draws tiles from embeddings."""
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor


class CytoSynPipeline(DiffusionPipeline):
    def __init__(self, transformer, vae):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)

    @torch.no_grad()
    def __call__(self, h0_mini_embeds=None, num_images_per_prompt=1, num_inference_steps=250, guidance_scale=2.5,
                 guidance_low=0.0, guidance_high=0.75, SIGNATURE_output_type="pil"):
        form = self.transformer.config
        if h0_mini_embeds is None:
            embeds = torch.zeros(num_images_per_prompt, form.cond_dim, device=self.device)
        else:
            embeds = h0_mini_embeds.repeat_interleave(num_images_per_prompt, 0)
        shape = (len(embeds), form.in_channels, form.input_size, form.input_size)
        START
        nobody = torch.ones(len(embeds), dtype=torch.bool, device=x.device)
        known = torch.zeros_like(nobody) if h0_mini_embeds is not None else nobody
        times = torch.linspace(1.0, 0.0, num_inference_steps + 1, dtype=torch.float64).tolist()
        for now, after in zip(times[:-1], times[1:]):
            t = torch.full((len(embeds),), now, dtype=torch.float32, device=x.device)
            v = self.transformer(x, t, embeds, known)
            if guidance_scale != 1.0 and guidance_low <= now <= guidance_high:
                v0 = self.transformer(x, t, embeds, nobody)
                v = v0 + guidance_scale * (v - v0)
            x = x + (after - now) * v
        mean, var = self.transformer.bn.running_mean, self.transformer.bn.running_var
        latents = x * (var + 1e-4).sqrt()[None, :, None, None] + mean[None, :, None, None]
        pixels = (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        if output_type == "np":
            return {"images": pixels.permute(0, 2, 3, 1).float().cpu().numpy()}
        array = (pixels * 255 + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return {"images": self.numpy_to_pil(array / 255.0)}
'''
STARTS = {
    "latents": ("latents=None, ", "x = latents"),
    "generator": ("generator=None, ", "x = randn_tensor(shape, generator=generator, device=embeds.device)"),
    "neither": ("", "x = torch.randn(shape, device=embeds.device)"),
}

TRANSFORMER = """
import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Embed(nn.Module):
    pass


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn = Embed()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Embed()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    @staticmethod
    def norm(x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def forward(self, x, c):
        s1, k1, g1, s2, k2, g2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        y = self.norm(x) * (1 + k1) + s1
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attn.qkv(y).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + g1 * self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        y = self.norm(x) * (1 + k2) + s2
        return x + g2 * self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(y), approximate="tanh"))


class TinySiT(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels=4, input_size=16, patch_size=2, hidden_size=32, depth=2, num_heads=2, cond_dim=16):
        super().__init__()
        self.x_embedder = Embed()
        self.x_embedder.proj = nn.Conv2d(in_channels, hidden_size, patch_size, patch_size)
        self.t_embedder = Embed()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.y_embedder = Embed()
        self.y_embedder.proj = nn.Linear(cond_dim, hidden_size)
        self.y_embedder.null = nn.Parameter(torch.zeros(hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, (input_size // patch_size) ** 2, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = Embed()
        self.final_layer.linear = nn.Linear(hidden_size, patch_size**2 * in_channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.bn = nn.BatchNorm2d(in_channels, eps=1e-4, affine=False)

    def forward(self, x, t, y, nobody):
        form = self.config
        grid, p = form.input_size // form.patch_size, form.patch_size
        half = torch.arange(128, dtype=torch.float32, device=x.device)
        angles = t[:, None] * torch.exp(-math.log(10000) * half / 128)
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], -1))
        c = c + torch.where(nobody[:, None], self.y_embedder.null, self.y_embedder.proj(y))
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        h = self.final_layer.linear(Block.norm(h) * (1 + scale) + shift)
        h = h.reshape(len(x), grid, grid, p, p, form.in_channels).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(len(x), form.in_channels, grid * p, grid * p)
"""


def transformer_state(seed: int = 0, condition: int = EMBEDDING) -> dict[str, torch.Tensor]:
    """The tiny SiT's tensors under REPA-E's names."""
    from synthfactory.model.sit import sincos_positions

    random = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.12

    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH), "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256), "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH), "t_embedder.mlp.2.bias": (WIDTH,),
        "y_embedder.proj.weight": (WIDTH, condition), "y_embedder.proj.bias": (WIDTH,), "y_embedder.null": (WIDTH,),
        "final_layer.linear.weight": (PATCH**2 * CHANNELS, WIDTH), "final_layer.linear.bias": (PATCH**2 * CHANNELS,),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH), "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    }  # fmt: skip
    for number in range(DEPTH):
        for name, shape in {
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,), "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,), "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,), "adaLN_modulation.1.weight": (6 * WIDTH, WIDTH),
            "adaLN_modulation.1.bias": (6 * WIDTH,),
        }.items():  # fmt: skip
            shapes[f"blocks.{number}.{name}"] = shape
    state = {name: some(*shape) for name, shape in shapes.items()}
    state["pos_embed"] = sincos_positions(WIDTH, LATENT // PATCH)
    state["bn.running_mean"] = torch.tensor([0.3, -0.2, 0.1, 0.0])
    state["bn.running_var"] = torch.tensor([1.5, 0.7, 1.0, 2.0])
    state["bn.num_batches_tracked"] = torch.tensor(7)
    return state


def make_vae(seed: int = 0) -> AutoencoderKL:
    """A tiny AutoencoderKL, f2d4, from random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(16, 16), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip


def make_repo(noise: str = "latents", seed: int = 0, condition: int = EMBEDDING) -> dict[str, bytes]:
    """The repository's files; `noise` is what its __call__ takes: latents, generator or neither."""
    signature, start = STARTS[noise]
    files = {
        "README.md": b"---\nlicense: cc-by-nc-nd-4.0\n---\n# miniature\n",
        "pipeline.py": PIPELINE.replace("SIGNATURE_", signature).replace("START", start).encode(),
        "transformer/tiny_sit.py": TRANSFORMER.encode(),
        "transformer/config.json": json.dumps(
            {"_class_name": "TinySiT", "in_channels": CHANNELS, "input_size": LATENT, "patch_size": PATCH,
             "hidden_size": WIDTH, "depth": DEPTH, "num_heads": HEADS, "cond_dim": condition}
        ).encode(),
        "transformer/diffusion_pytorch_model.safetensors": save(transformer_state(seed, condition), {"format": "pt"}),
        "model_index.json": json.dumps(
            {"_class_name": ["pipeline", "CytoSynPipeline"], "_diffusers_version": "0.42.0",
             "transformer": ["tiny_sit", "TinySiT"], "vae": ["diffusers", "AutoencoderKL"]}
        ).encode(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        make_vae(seed).save_pretrained(scratch)
        for path in Path(scratch).iterdir():
            files[f"vae/{path.name}"] = path.read_bytes()
    return files
