"""Randomness that follows from what it is for: the generator is the published one, and neither batch nor device has a say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from train.place import Place, Rows
from train.streams import normal, philox, uniform
from train.symmetry import transformed, turned_each


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers that come with Random123 (kat_vectors)
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_words_are_those_of_philox(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox(torch.tensor([counter]), key)[0].tolist() == words


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_sample_draws_the_same_in_any_company(draw: Callable[..., torch.Tensor]) -> None:
    shape = (3, 5)  # no multiple of the four words of a block
    many = draw(7, "noise", range(100), shape)
    assert torch.equal(many[[40, 3]], draw(7, "noise", np.asarray([40, 3]), shape))
    assert torch.equal(many[40:41], draw(7, "noise", torch.tensor([40]), shape))
    for other in (draw(8, "noise", range(100), shape), draw(7, "time", range(100), shape)):
        assert not (other == many).any()
    assert len(many.flatten().unique()) > 1490  # no two places of a sample, and no two samples, share their words
    far = draw(7, "noise", [3 + 2**32], shape)  # a position of more than 32 bits is another one
    assert not (far == many[3]).any()
    assert draw(7, "noise", range(4), ()).shape == (4,)


def test_normals_are_normal_and_uniforms_uniform() -> None:
    found = normal(0, "noise", range(400), (4, 28, 28)).flatten().double()
    assert found.dtype == torch.float64 and found.isfinite().all()
    assert [found.mean().item(), found.var().item()] == pytest.approx([0, 1], abs=0.01)
    assert [found.pow(3).mean().item(), found.pow(4).mean().item()] == pytest.approx([0, 3], abs=0.03)
    assert (found.abs() > 3).double().mean().item() == pytest.approx(0.0027, abs=0.0003)
    pairs = found.reshape(-1, 4)  # of one block's words
    assert torch.corrcoef(pairs.T).sub(torch.eye(4)).abs().max() < 0.01
    shares = torch.histc(uniform(0, "null", range(100_000)).float(), 10, 0, 1) / 100_000
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.004)


def test_each_row_takes_a_symmetry_of_its_own() -> None:
    grids = torch.arange(8 * 2 * 9).reshape(8, 2, 3, 3)
    ways = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    wanted = [transformed(grid.numpy(), int(way), rows=1) for grid, way in zip(grids, ways, strict=True)]
    assert torch.equal(turned_each(grids, ways), torch.from_numpy(np.stack(wanted)))


def test_rows_come_in_the_format_of_the_weights() -> None:
    kept = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    rows = Rows(kept, Place(dtype=torch.float64))
    found = rows.of(np.asarray([3, 0]), np.asarray([1, 0]))
    assert found.dtype == torch.float64 and found.tolist() == [[21, 22, 23], [0, 1, 2]]
    assert not rows.at_hand
