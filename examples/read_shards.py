"""Reads a tile set three ways: plain tarfile, webdataset, and a torch DataLoader that trains a small probe on it.

    python examples/read_shards.py out/demo

Needs nothing of synthfactory: the shards are plain tar files. Every fifth tile of each class is held out. A published set does not
say which patient's embedding stands behind a tile, so both sides share patients: the held-out accuracy says that the classes look
different, not that a model trained on them works on real tissue. For that, test on real tiles.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

HELD_OUT = 5  # every fifth tile of a class
SIDES_PX = (224, 56, 14)  # the probe measures colour and texture at these sizes
NUM_FEATURES = len(SIDES_PX) * 3 * 3


def shard_paths(out: Path) -> list[str]:
    """OUT/shards.txt lists the shards of the set; a tar that is not in it belongs to an unfinished build."""
    return [str(out / line) for line in (out / "shards.txt").read_text().split()]


def with_tarfile(shards: list[str]) -> tuple[Counter[str], dict[int, str]]:
    """Counts labels with nothing but the standard library and Pillow; also gives the label of each class index."""
    counts: Counter[str] = Counter()
    names: dict[int, str] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()  # KEY.png and KEY.json stand side by side
            for image, record in zip(members[::2], members[1::2], strict=True):
                values = json.load(tar.extractfile(record))  # type: ignore[arg-type]
                with Image.open(io.BytesIO(tar.extractfile(image).read())) as picture:  # type: ignore[union-attr]
                    assert picture.size == (values["width_px"], values["height_px"])
                counts[values["label"]] += 1
                names[values["class_index"]] = values["label"]
    return counts, names


def is_held_out(record: dict[str, Any]) -> bool:
    """KEY is NAME-CLASS-INDEX, and INDEX counts within the class: so every class is split in the same proportion."""
    return int(record["key"].rpartition("-")[2]) % HELD_OUT == 0


def to_example(sample: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, int]:
    """(27 features, class index): mean, spread and mean step between neighbours of each channel, at three sizes."""
    image, record = sample
    found = []
    for side in SIDES_PX:
        small = F.interpolate(image[None], size=(side, side), mode="area")[0]
        steps = (small[:, 1:] - small[:, :-1]).abs().mean((1, 2))
        found += [small.mean((1, 2)), small.std((1, 2)), steps]
    return torch.cat(found), record["class_index"]


def with_webdataset(shards: list[str], *, held_out: bool) -> webdataset.WebDataset:
    """A stream of examples; add num_workers to the DataLoader where there are at least as many shards as workers."""
    dataset = webdataset.WebDataset(shards, shardshuffle=False if held_out else len(shards))
    chosen = dataset.decode("torchrgb").to_tuple("png;webp;jpg", "json").select(lambda s: is_held_out(s[1]) == held_out)
    return chosen.map(to_example) if held_out else chosen.map(to_example).shuffle(1000)


def batches(shards: list[str], *, held_out: bool) -> DataLoader[Any]:
    """One pass over a side of the split."""
    return DataLoader(with_webdataset(shards, held_out=held_out), batch_size=16, drop_last=not held_out)


def train_probe(shards: list[str], num_classes: int, steps: int) -> torch.nn.Module:
    """A linear layer on normalised features; passes over the set until `steps` batches have been seen."""
    probe = torch.nn.Sequential(
        torch.nn.BatchNorm1d(NUM_FEATURES, affine=False), torch.nn.Linear(NUM_FEATURES, num_classes)
    )
    optimiser = torch.optim.Adam(probe.parameters(), lr=0.03)
    seen = 0
    while seen < steps:
        before = seen
        for images, labels in batches(shards, held_out=False):
            loss = F.cross_entropy(probe(images), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen += 1
            if seen % 10 == 0 or seen == steps:
                print(f"step {seen}: loss {loss.item():.3f}")
            if seen == steps:
                break
        if seen == before:
            raise SystemExit("every tile is held out: the set is too small to train on")
    return probe.eval()


def main() -> None:
    """Reads, trains, tests."""
    parser = argparse.ArgumentParser(description="Read a tile set, and train a small probe on it.")
    parser.add_argument("out", type=Path, help="a set that synthfactory has built")
    parser.add_argument("--steps", type=int, default=40, help="batches to train on (default 40)")
    options = parser.parse_args()
    torch.manual_seed(0)
    try:
        shards = shard_paths(options.out)
    except FileNotFoundError:
        parser.error(f"{options.out} holds no finished set (no shards.txt)")
    counts, names = with_tarfile(shards)
    if not counts:
        parser.error(f"{options.out} holds no tile yet")
    print(f"{sum(counts.values())} tiles in {len(shards)} shards: {dict(sorted(counts.items()))}")
    probe = train_probe(shards, max(names) + 1, options.steps)
    right, all_of = Counter[str](), Counter[str]()
    with torch.no_grad():
        for images, labels in batches(shards, held_out=True):
            for label, guess in zip(labels.tolist(), probe(images).argmax(dim=1).tolist(), strict=True):
                all_of[names[label]] += 1
                right[names[label]] += label == guess
    for _, name in sorted(names.items()):
        print(f"{name}: {right[name]} of {all_of[name]} held-out tiles recognised")


if __name__ == "__main__":
    main()
