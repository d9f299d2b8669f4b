"""Weights of others in our form: every tensor accounted for, or nothing written."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from minirepo import EMBEDDING, WIDTH, make_repo, make_vae, transformer_state
from safetensors.torch import load_file, save_file
from tinymodel import make_tiny_model

from synthfactory.model.convert import Options, convert
from synthfactory.model.folder import open_model
from synthfactory.model.importing import import_model
from synthfactory.model.sources import Source, read_source
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError

State = dict[str, torch.Tensor]
TINY = Options(heads=2, norm_groups=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature repository as a folder."""
    root = tmp_path_factory.mktemp("mini")
    for name, content in make_repo().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return root


def vae_state() -> State:
    return dict(make_vae().state_dict())


def checkpoint(path: Path, sit: State, **more: Any) -> Path:
    other = {name: torch.zeros_like(value) for name, value in sit.items()}
    torch.save({"model": other, "ema": sit, "vae": vae_state(), "opt": {"state": {}}, "steps": 7, **more}, path)
    return path


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_diffusers_folder_becomes_a_model_folder(folder: Path, tmp_path: Path) -> None:
    lines = list(import_model(str(folder), str(tmp_path / "out"), TINY, model_id="mini", encoder_id="tiny-encoder"))
    found = open_model(str(tmp_path / "out"))
    assert (found.id, found.tile_size_px, found.condition_width, found.has_encoder) == ("mini", 32, EMBEDDING, False)
    assert found.encoder == {"id": "tiny-encoder", "sha256": "", "token": "class"}
    loaded = load_model(found)
    assert loaded.encoder is None
    same(dict(loaded.sit.state_dict()), transformer_state())
    same({name.removeprefix("kl."): value for name, value in loaded.vae.state_dict().items()}, vae_state())
    count = len(transformer_state()) + len(vae_state())
    assert (
        f"{count} tensors: {count} as it is, 0 renamed, 0 reshaped, 0 made; none missing, none left over" in lines[-4]
    )


def test_a_checkpoint_gives_its_averaged_weights_unless_told(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "0400000.pt", {f"module.{name}": value for name, value in transformer_state().items()})
    list(import_model(str(path), str(tmp_path / "ema"), TINY))
    same(dict(load_model(open_model(str(tmp_path / "ema"))).sit.state_dict()), transformer_state())
    other = read_source(str(path), weights="model")
    assert not other.sit["final_layer.linear.weight"].any()


def source(sit: State, vae: State | None = None, **vae_config: Any) -> Source:
    return Source(sit, vae_state() if vae is None else vae, {}, vae_config, {"name": "x", "sharing": "local"})


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


def test_a_table_of_labels_is_a_layer_from_one_hot_labels() -> None:
    table = torch.randn(6, WIDTH)
    state = without(transformer_state(), "y_embedder.proj.weight", "y_embedder.proj.bias", "y_embedder.null")
    made = convert(source({**state, "y_embedder.embedding_table.weight": table}), TINY)
    assert made.sit_config.condition_width == 5
    one_hot = torch.eye(5)
    embedded = one_hot @ made.sit["y_embedder.proj.weight"].T + made.sit["y_embedder.proj.bias"]
    assert torch.equal(embedded, table[:5])
    assert torch.equal(made.sit["y_embedder.null"], table[5])


def test_what_is_not_known_of_the_condition_is_an_option() -> None:
    state = without(transformer_state(), "y_embedder.proj.weight", "y_embedder.proj.bias", "y_embedder.null")
    layer, null = torch.randn(WIDTH, EMBEDDING), torch.randn(1, EMBEDDING)
    given = {**state, "net.caption.weight": layer, "net.empty": null}
    with pytest.raises(InputError, match=r"no y_embedder\.proj\.weight.*--condition-key"):
        convert(source(given), TINY)
    made = convert(source(given), Options(condition_key="net.caption", null_key="net.empty", heads=2, norm_groups=4))
    assert torch.allclose(made.sit["y_embedder.null"], layer @ null[0], atol=1e-5)
    assert not made.sit["y_embedder.proj.bias"].any()
    zeros = convert(source(without(given, "net.empty")), Options(condition_key="net.caption", heads=2, norm_groups=4))
    assert zeros.sit_config.null_form == "zeros"
    assert any(row.ours == "y_embedder.null" and row.what.startswith("made") for row in zeros.rows)


def test_scaling_of_diffusers_stands_in_for_stored_statistics() -> None:
    state = {name: value for name, value in transformer_state().items() if not name.startswith("bn.")}
    made = convert(source(state, scaling_factor=0.18215, shift_factor=0.5), TINY)
    std = (made.sit["bn.running_var"] + 1e-4).sqrt()
    assert torch.allclose(std, torch.full((4,), 1 / 0.18215))
    assert torch.equal(made.sit["bn.running_mean"], torch.full((4,), 0.5))


def original_names(state: State, levels: int) -> State:
    """A diffusers autoencoder under the names of the original SD-VAE, attention as 1 x 1 convolutions."""
    found = {}
    for name, value in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def test_the_original_names_of_the_autoencoder_are_understood_as_diffusers_does() -> None:
    original = original_names(vae_state(), levels=2)
    form = {"down_block_types": [""] * 2, "up_block_types": [""] * 2}
    expected = convert_ldm_vae_checkpoint(dict(original), form)
    same(expected, vae_state())  # the test's own renaming is right
    made = convert(source(transformer_state(), original), TINY)
    same({name.removeprefix("kl."): value for name, value in made.vae.items()}, vae_state())
    assert sum(row.what.startswith("reshaped") for row in made.rows) == 8  # q, k, v and out, in both halves
    older = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): value
        for name, value in vae_state().items()
    }
    same(
        {k.removeprefix("kl."): v for k, v in convert(source(transformer_state(), older), TINY).vae.items()},
        vae_state(),
    )


Change = Callable[[State], State]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "blocks.1.mlp.fc2.bias"), r"1 missing \(blocks\.1\.mlp\.fc2\.bias\)"),
        (lambda s: {**s, "extra.weight": torch.zeros(2)}, r"1 not understood \(extra\.weight\)"),
        (
            lambda s: {**s, "blocks.1.attn.qkv.bias": torch.zeros(5)},
            r"1 of another shape \(blocks\.1\.attn\.qkv\.bias \(5,\)",
        ),
        (
            lambda s: {f"net.{name}": value for name, value in s.items()},
            r"no tensor x_embedder\.proj\.weight.*--rename",
        ),
        (lambda s: {**s, "blocks.0.attn.q_norm.weight": torch.ones(16)}, "missing"),
    ],
)
def test_a_network_that_does_not_fit_whole_is_not_written_in_part(change: Change, words: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.pt", change(transformer_state()))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words) as caught:
        list(import_model(str(path), str(tmp_path / "out"), TINY))
    assert "othing was written" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    wrapped = {f"net.{name}": value for name, value in transformer_state().items()}
    renaming = Options(heads=2, norm_groups=4, rename={"net.": ""})
    list(import_model(str(checkpoint(tmp_path / "d.pt", wrapped)), str(tmp_path / "out"), renaming))


class Trap:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("pickle.pt", pickle.dumps({"ema": Trap()})), ("text.pt", b"hello"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .*so it is not read"):
            read_source(str(tmp_path / name))
    checkpoint(tmp_path / "args.pt", transformer_state(), args=Trap())
    with pytest.raises(InputError, match="so it is not read"):
        read_source(str(tmp_path / "args.pt"))
    torch.save({"ema": {}, "steps": 3}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="it holds: ema, steps"):
        read_source(str(tmp_path / "other.pt"))
    checkpoint(tmp_path / "hidden.pt", transformer_state(), args=argparse.Namespace(lr=1e-4, trap=Trap()))
    with pytest.raises(InputError, match="holds objects other than tensors, so it is not read"):
        read_source(str(tmp_path / "hidden.pt"))
    assert "it ran" not in capsys.readouterr().out


def test_folders_that_are_not_whole_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_source(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"transformer/ and vae/ are needed"):
        read_source(str(tmp_path))
    copy = tmp_path / "copy"
    for part in ("transformer", "vae"):
        (copy / part).mkdir(parents=True)
        (copy / part / "config.json").write_text("{}")
    (copy / "transformer" / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"only model\.bin, a pickle"):
        read_source(str(copy))
    save_file(load_file(folder / "vae/diffusion_pytorch_model.safetensors"), copy / "vae/a.safetensors")
    (copy / "transformer/a.safetensors").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="is a pickle"):
        read_source(str(copy))
    model = make_tiny_model(tmp_path / "model")
    with pytest.raises(InputError, match="is there already"):
        list(import_model(str(folder), str(model), TINY))
    assert json.loads((model / "config.json").read_text())["id"] == "tiny"


def test_the_arguments_of_a_training_script_are_passed_over(tmp_path: Path) -> None:
    """As REPA-E publishes: beside the weights stands argparse's namespace, and in it whatever a script may put there."""
    args = argparse.Namespace(
        lr=1e-4, exp_name="a", resume=None, paths=[Path("/data"), PureWindowsPath("x")], seed=np.int64(3), scale=np.float32(0.5)
    )  # fmt: skip
    found = read_source(str(checkpoint(tmp_path / "c.pt", transformer_state(), args=args, opt=args)))
    same(found.sit, transformer_state())
    torch.save({"ema": {"a": np.float64(1)}, "vae": {}}, tmp_path / "d.pt")
    with pytest.raises(InputError, match="'ema' holds a, which is no tensor"):
        read_source(str(tmp_path / "d.pt"))


BIAS = "x_embedder.proj.bias"
ODD: dict[str, tuple[State, str]] = {
    "a block of no number": ({"blocks.foo.bar": torch.zeros(1)}, r"1 not understood \(blocks\.foo\.bar\)"),
    "blocks without end": ({"blocks.99999.bar": torch.zeros(1)}, "has a block 99999; at most 1,000 are understood"),
    "flat positions": ({"pos_embed": torch.zeros(3)}, r"pos_embed has shape \(3,\); 3 sides"),
    "flat patches": ({"x_embedder.proj.weight": torch.zeros(3)}, r"has shape \(3,\); 4 sides"),
    "patches of width 0": ({"x_embedder.proj.weight": torch.zeros(0, 4, 2, 2)}, "4 sides, none of them 0"),
    "a scalar condition": ({"y_embedder.proj.weight": torch.tensor(1.0)}, r"y_embedder\.proj\.weight has shape \(\)"),
    "a scalar layer": ({"blocks.0.mlp.fc1.weight": torch.tensor(1.0)}, r"fc1\.weight has shape \(\)"),
    "sparse": ({BIAS: torch.ones(WIDTH).to_sparse()}, f"{BIAS} is no plain tensor"),
    "meta": ({BIAS: torch.ones(WIDTH, device="meta")}, f"{BIAS} is no plain tensor"),
    "a few bytes for many": ({BIAS: torch.ones(1).expand(10**12)}, f"{BIAS} is larger than what is stored of it"),
    "complex": ({BIAS: torch.ones(WIDTH, dtype=torch.complex64)}, f"{BIAS} holds complex64 and no real numbers"),
    "bool": ({BIAS: torch.ones(WIDTH, dtype=torch.bool)}, f"{BIAS} holds bool and no real numbers"),
    "no number": ({BIAS: torch.full((WIDTH,), float("nan"))}, f"{BIAS} holds numbers that are not finite"),
    "negative variance": ({"bn.running_var": -torch.ones(4)}, r"bn\.running_var holds variances below 0"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_one_message(name: str, tmp_path: Path) -> None:
    change, words = ODD[name]
    torch.save({"ema": {**transformer_state(), **change}, "vae": vae_state()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=words) as caught:
        list(import_model(str(tmp_path / "c.pt"), str(tmp_path / "out"), TINY))
    assert "othing was written" in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["c.pt"]


def test_odd_tensors_of_an_autoencoder_are_one_message() -> None:
    odd = {**vae_state(), "post_quant_conv.weight": torch.tensor(1.0)}
    with pytest.raises(InputError, match=r"post_quant_conv\.weight has shape \(\); 4 sides"):
        convert(source(transformer_state(), odd), TINY)


def test_a_safetensors_header_that_names_no_number_format(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    header = json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (copy / "vae/diffusion_pytorch_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match="is no safetensors file"):
        read_source(str(copy))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(({"resolution_mpp": mpp}, "--mpp: 'resolution_mpp' must be") for mpp in (0.0, -1.0, float("nan"), float("inf"))),
        ({"model_id": "a\nb"}, "--id: 'id' must be 1 to 500 printable"),
        ({"encoder_id": "\x1b[31m"}, r"--encoder-id: 'encoder\.id' must be"),
        ({"licence": "x" * 501}, r"--licence: 'licence\.name' holds text"),
    ],
)  # fmt: skip
def test_options_that_the_folder_could_not_be_opened_with(
    folder: Path, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        list(import_model(str(folder), str(tmp_path / "out"), TINY, **given))
    assert not list(tmp_path.iterdir())
