"""A plan of 10^9 tiles costs what one of 10^3 does, and needs neither torch nor ray."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import sys
for name in ('torch', 'ray', 'diffusers', 'webdataset'):
    sys.modules[name] = None
import importlib, json, pkgutil, time
import synthfactory.plan, synthfactory.spec
for room in (synthfactory.plan, synthfactory.spec):
    for found in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f'{room.__name__}.{found.name}')
from synthfactory.plan.plan import ClassSummary, make_plan, render
from synthfactory.plan.recipe import ModelFacts
from synthfactory.plan.rounds import num_shards
from synthfactory.plan.units import shard_of, unit_of
from synthfactory.spec.load import parse_spec

tiles = int(sys.argv[1])
classes = {f'class {number}': {'fraction': 0.1} for number in range(10)}
spec = parse_spec(json.dumps({
    'name': 'n', 'model': 'phantom', 'total': tiles, 'classes': classes, 'embeddings': {'bank': 'b'},
    'output': {'path': 'out', 'shard_size': 1000}, 'lineage': 'l',
}), 's.yaml')
began = time.perf_counter()
model = ModelFacts('m', '1', 'a', 8, {}, 224, 0.5, seconds_per_call=0.01)
plan = make_plan(spec, model=model, bank={name: ClassSummary(9, 9, 9, 0, ('tile',)) for name in classes})
text = render(plan)
shards = num_shards(plan.all_rounds)
for shard in {0, shards // 2, shards - 1}:
    unit = unit_of(plan.all_rounds, shard)
    assert len(unit.slots) == 1000
    assert shard_of(plan.all_rounds, unit.slots[-1]) == shard
print(json.dumps({
    'seconds': time.perf_counter() - began, 'shards': shards, 'text': text,
    'bytes': int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) * 1024,
}))
"""


def test_a_billion_tiles_are_planned_like_a_thousand() -> None:
    found = {}
    for tiles in (10**3, 10**9):
        out = subprocess.run([sys.executable, "-c", PROGRAM, str(tiles)], check=True, capture_output=True, text=True)
        found[tiles] = json.loads(out.stdout)
    small, large = found[10**3], found[10**9]
    assert (small["shards"], large["shards"]) == (1, 10**6)
    assert "1,000,000,000" in large["text"]
    assert max(map(len, large["text"].splitlines())) <= 80
    assert large["seconds"] < 5
    assert large["bytes"] - small["bytes"] < 300_000_000
