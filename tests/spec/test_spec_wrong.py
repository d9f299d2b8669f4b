"""Wrong specs: each gives one clear message that begins with file:line:column and the spec path, and nothing worse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synthfactory.spec.errors import InputError
from synthfactory.spec.load import load_spec

GOOD = """\
name: demo
model: phantom
classes:
  phantom-gland: 12
  phantom-solid: {count: 12, sampler: {steps: 20}}
embeddings:
  bank: bank.parquet
sampler:
  method: ode
  steps: 10
  guidance: {scale: 1.5, low: 0.1, high: 0.9}
screen: {tissue: {min_fraction: 0.1}, agreement: {min: 0.3, max: 0.9}}
output:
  path: out/demo
  shard_size: 18
  format: png
lineage: out/demo-lineage
seed: 7
budget: {network_calls: 1000}
execution: {strict: true}
"""

# id: (what is replaced in GOOD, by what, line, column, spec path, words that the message has)
WRONG: dict[str, tuple[str, str, int, int, str, str]] = {
    # types
    "text for a number": ("steps: 10", "steps: ten", 10, 10, "sampler.steps", "'ten' is no whole number; for example"),
    "quoted number": ("steps: 10", 'steps: "10"', 10, 10, "sampler.steps", "is no whole number"),
    "float for a whole number": ("steps: 10", "steps: 10.0", 10, 10, "sampler.steps", "10.0 is no whole number"),
    "true for a whole number": ("shard_size: 18", "shard_size: true", 15, 15, "output.shard_size", "true is no whole"),
    "true for a count": ("gland: 12", "gland: true", 4, 18, "classes.phantom-gland", "true is no count; write an int"),
    "text for a count": ("gland: 12", "gland: many", 4, 18, "classes.phantom-gland", '"many" is no count'),
    "float for a count": ("gland: 12", "gland: 0.5", 4, 18, "classes.phantom-gland", "{fraction: 0.5}"),
    "nothing for a count": ("gland: 12", "gland:", 4, 17, "classes.phantom-gland", "nothing is no count"),
    "list for a count": ("gland: 12", "gland: [1]", 4, 3, "classes.phantom-gland", "[1] is no count"),
    "number for a name": ("name: demo", "name: 12", 1, 7, "name", "put it in quotes"),
    "text for true": ("strict: true", "strict: yes", 20, 21, "execution.strict", "'yes' is neither true nor false"),
    "one for true": ("strict: true", "strict: 1", 20, 21, "execution.strict", "1 is neither true nor false"),
    "text for a mapping": (
        "{network_calls: 1000}",
        "lots",
        19,
        9,
        "budget",
        "'lots' is no mapping of fields; for example budget:",
    ),
    "list for a mapping": ("{tissue: {min_fraction: 0.1}, ", "[1] #", 12, 1, "screen", "is no mapping of fields"),
    "list of classes": (
        "  phantom-gland: 12\n  phantom-solid: {count: 12, sampler: {steps: 20}}\n",
        "  - phantom-gland\n",
        3,
        1,
        "classes",
        "no mapping of fields; for example classes:",
    ),
    "nothing for a mapping": (
        "embeddings:\n  bank: bank.parquet",
        "embeddings:",
        6,
        12,
        "embeddings",
        "null (nothing)",
    ),
    # what is not known, missing or said twice
    "unknown field, near one": ("sampler:\n", "smapler:\n", 8, 1, "smapler", "is 'sampler' meant?"),
    "unknown field deep down": ("scale: 1.5", "scael: 1.5", 11, 21, "sampler.guidance.scael", "is 'scale' meant?"),
    "unknown field of a class": (
        "{count: 12, sampler: {steps: 20}}",
        "{count: 12, sampler: {step: 20}}",
        5,
        46,
        "classes.phantom-solid.sampler.step",
        "is 'steps' meant?",
    ),
    "unknown field, near none": ("seed: 7", "zzz: 7", 18, 6, "zzz", "known here: name, model, total, classes"),
    "word near one": ("format: png", "format: webpp", 16, 11, "output.format", "is webp meant?"),
    "word near none": ("format: png", "format: tiff", 16, 11, "output.format", "is not 'png', 'webp' or 'jpeg'"),
    "solver unknown": ("steps: 10", "solver: hun", 10, 11, "sampler.solver", "is heun meant?"),
    "no lineage": ("lineage: out/demo-lineage\n", "", 1, 1, "lineage", "is missing; for example lineage: out/"),
    "no output path": ("  path: out/demo\n", "", 13, 1, "output.path", "is missing; for example path: out/demo"),
    "no model name": ("model: phantom", 'model: ""', 2, 8, "model", "is empty; for example model: phantom"),
    "no classes": (
        "\n  phantom-gland: 12\n  phantom-solid: {count: 12, sampler: {steps: 20}}",
        " {}",
        3,
        1,
        "classes",
        "at least one entry is needed",
    ),
    "a field twice": ("seed: 7", "name: other", 18, 1, "name", "stands there twice; keep one"),
    "a class twice": ("  phantom-solid:", '  "phantom-gland":', 5, 3, "classes.phantom-gland", "stands there twice"),
    "a size twice": (
        "{count: 12, s",
        "{count: 12, fraction: 0.5, s",
        5,
        3,
        "classes.phantom-solid",
        "both count and fraction; keep one",
    ),
    "no size": ("{count: 12, s", "{s", 5, 3, "classes.phantom-solid", "neither count nor fraction; write for example"),
    # numbers out of range
    "not a number": ("scale: 1.5", "scale: .nan", 11, 21, "sampler.guidance.scale", "is not finite; write a number"),
    "infinite": ("scale: 1.5", "scale: .inf", 11, 21, "sampler.guidance.scale", "is not finite"),
    "minus infinite": ("min: 0.3", "min: -.INF", 12, 56, "screen.agreement.min", "is not finite"),
    "beyond floats": ("scale: 1.5", "scale: 1e400", 11, 21, "sampler.guidance.scale", "is not finite"),
    "beyond floats, whole": ("scale: 1.5", f"scale: 1{'0' * 400}", 11, 21, "sampler.guidance.scale", "no number"),
    "thousands of digits": ("gland: 12", f"gland: {'9' * 5000}", 4, 18, "classes.phantom-gland", "5,000 digits"),
    "negative count": ("gland: 12", "gland: -3", 4, 18, "classes.phantom-gland.count", "-3 is too small; at least 1"),
    "zero count": ("gland: 12", "gland: 0", 4, 18, "classes.phantom-gland.count", "at least 1"),
    "too many tiles": ("gland: 12", "gland: 10_000_000_000_000", 4, 18, "classes.phantom-gland.count", "at most 1000"),
    "zero steps": ("steps: 10", "steps: 0", 10, 10, "sampler.steps", "0 is too small; at least 1"),
    "negative fraction": (
        "min_fraction: 0.1",
        "min_fraction: -0.1",
        12,
        33,
        "screen.tissue.min_fraction",
        "at least 0",
    ),
    "calls of a class": (
        "{count: 12, sampler: {steps: 20}}",
        "{count: 12, budget: {network_calls: 9}}",
        5,
        54,
        "classes.phantom-solid.budget.network_calls",
        "unknown field; known here: max_attempts",
    ),
    "zero budget": ("network_calls: 1000", "device_hours: 0", 19, 24, "budget.device_hours", "must be above 0"),
    "time above one": ("high: 0.9", "high: 1.1", 11, 42, "sampler.guidance.high", "at most 1"),
    "guidance low above high": ("low: 0.1", "low: 0.95", 11, 31, "sampler.guidance.low", "low <= high is needed"),
    "agreement min at max": ("min: 0.3", "min: 0.9", 12, 56, "screen.agreement.min", "min < max is needed"),
    "negative seed": ("seed: 7", "seed: -1", 18, 7, "seed", "integer from 0 to 2**128 - 1, or the word secret"),
    "huge seed": ("seed: 7", f"seed: {2**128}", 18, 7, "seed", "or the word secret"),
    "seed in words": ("seed: 7", "seed: seven", 18, 7, "seed", "or the word secret"),
    "no sha256": (
        "seed: 7",
        "terms: {sharing: permitted, permission: {from: x, date: '2026-11-23', document_sha256: abc}}",
        18,
        88,
        "terms.permission.document_sha256",
        "'abc' does not fit; for example document_sha256: 9f86",
    ),
    **{
        f"permission of {day or 'no day'}": (
            "seed: 7",
            f"terms: {{sharing: permitted, permission: {{from: x, date: '{day}', document_sha256: {'a' * 64}}}}}",
            18,
            57,
            "terms.permission.date",
            "is no date; write YYYY-MM-DD, for example date: 2026-11-23",
        )
        for day in ("2026-99-99", "2026-02-30", "20261123", "")
    },
    "float seed": ("seed: 7", "seed: 7.0", 18, 7, "seed", "or the word secret"),
    "true as seed": ("seed: 7", "seed: true", 18, 7, "seed", "or the word secret"),
    # what does not go together
    "solver of the other method": (
        "method: ode",
        "method: sde\n  solver: heun",
        10,
        11,
        "sampler.solver",
        "does not go with method sde; it would be euler_maruyama",
    ),
    "one step of an SDE": (
        "method: ode\n  steps: 10",
        "method: sde\n  steps: 1",
        10,
        10,
        "sampler.steps",
        "method sde needs 2 or more",
    ),
    "override that does not fit": (
        "{steps: 20}",
        "{solver: euler_maruyama}",
        5,
        48,
        "classes.phantom-solid.sampler.solver",
        "does not go with method ode; it would be heun or euler",
    ),
    "override of guidance that does not fit": (
        "{steps: 20}",
        "{guidance: {low: 0.95}}",
        5,
        56,
        "classes.phantom-solid.sampler.guidance.low",
        "0.95 is above high = 0.9",
    ),
    "fractions short of one": (
        "  phantom-gland: 12\n  phantom-solid: {count: 12, sampler: {steps: 20}}\n",
        "  a: {fraction: 0.5}\n  b: {fraction: 0.4}\ntotal: 10\n",
        3,
        1,
        "classes",
        "sum to 0.9; they must sum to 1",
    ),
    "fractions without total": (
        "  phantom-gland: 12\n  phantom-solid: {count: 12, sampler: {steps: 20}}\n",
        "  a: {fraction: 0.5}\n  b: {fraction: 0.5}\n",
        1,
        1,
        "total",
        "is missing; classes with fractions need",
    ),
    "counts and fractions": (
        "phantom-gland: 12",
        "phantom-gland: {fraction: 1}",
        5,
        3,
        "classes.phantom-solid",
        "has a count while other classes have fractions; use one kind for all",
    ),
    "total with counts": ("seed: 7", "total: 24", 18, 8, "total", "goes with fractions only"),
    "bank and tiles": (
        "bank: bank.parquet",
        "bank: bank.parquet\n  tiles: tiles",
        6,
        1,
        "embeddings",
        "needs exactly one of bank",
    ),
    "neither bank nor tiles": ("bank: bank.parquet", "label_level: tile", 6, 1, "embeddings", "needs exactly one of"),
    "tiles of no level": (
        "bank: bank.parquet",
        "tiles: tiles",
        6,
        1,
        "embeddings.label_level",
        "slide, region or tile",
    ),
    "bank with a level": (
        "bank: bank.parquet",
        "bank: b\n  label_level: tile",
        8,
        16,
        "embeddings.label_level",
        "not with bank; leave the key out",
    ),
    # names
    "name with capitals": ("name: demo", "name: Demo", 1, 7, "name", "use 1 to 48 of a-z, 0-9 and '-'"),
    "name with a path": ("name: demo", "name: ../demo", 1, 7, "name", "use 1 to 48 of"),
    "name with a line break": ("name: demo", 'name: "demo\\n"', 1, 7, "name", "use 1 to 48 of"),
    "class that climbs": ("phantom-gland:", "../gland:", 4, 13, "classes.../gland", "looks like a path"),
    "class with a backslash": ("phantom-gland:", "a\\b:", 4, 8, "classes.a\\b", "looks like a path"),
    "hidden class": ("phantom-gland:", ".gland:", 4, 11, "classes..gland", "looks like a path"),
    "class without letters": ("phantom-gland:", "---:", 4, 8, "classes.---", "no ASCII letter or digit"),
    "class of blanks": ("phantom-gland:", '" ":', 4, 8, "classes. ", "is empty or has spaces at an end"),
    "invisible class": ("phantom-gland:", '"a\\u200bb":', 4, 15, r"classes.a\u200bb", "invisible character"),
    "class too long": ("phantom-gland:", f"{'g' * 65}:", 4, 70, f"classes.{'g' * 65}", "at most 64"),
    "classes of one slug": (
        "phantom-gland:",
        "Phantom Solid:",
        5,
        3,
        "classes.phantom-solid",
        "same keys as class 'Phantom Solid' (case and punctuation do not count); rename one",
    ),
    "keys too long for a tar": (
        "name: demo\nmodel: phantom\nclasses:\n  phantom-gland:",
        f"name: {'n' * 48}\nmodel: phantom\nclasses:\n  {'g' * 64}:",
        4,
        69,
        f"classes.{'g' * 64}",
        "shorten either by 31",
    ),
    # YAML that is more than data, or none
    "tab": ("  bank", "\tbank", 7, 1, "spec", "a tab indents this line; YAML wants spaces"),
    "tab between": ("name: demo", "name:\tdemo", 1, 6, "spec", "is no YAML"),
    "anchor": ("model: phantom", "model: &m phantom", 2, 8, "model", "anchors and aliases are not allowed"),
    "alias": ("model: phantom", "model: *m", 2, 8, "model", "anchors and aliases are not allowed"),
    "alias as a key": ("model: phantom", "*m : phantom", 2, 1, "spec", "anchors and aliases are not allowed"),
    "merge key": ("  path:", "  <<: {shard_size: 1}\n  path:", 14, 3, "output", "merge keys (<<) are not allowed"),
    "custom tag": ("name: demo", "name: !me demo", 1, 7, "name", "tag !me is not allowed; a spec is plain data"),
    "custom tag, quoted": ("name: demo", 'name: !me "demo"', 1, 7, "name", "tag !me is not allowed"),
    "tag of Python": ("name: demo", "name: !!python/name:os.system x", 1, 7, "name", "!!python/name:os.system"),
    "tag of a key": ("name: demo", "!!binary name: demo", 1, 1, "spec", "tag !!binary is not allowed"),
    "tag of a list": ("seed: 7", "seed: !!set {7}", 18, 7, "seed", "tag !!set is not allowed"),
    "tag of text": ("name: demo", "name: !!str 12", 1, 7, "name", "tag !!str is not allowed"),
    "list as a key": ("seed: 7", "? [seed]\n: 7", 18, 3, "spec", "a key must be a word"),
    "colon in text": ("name: demo", "name: a: b", 1, 8, "spec", "mapping values are not allowed here"),
    "open bracket": ("budget: {network_calls: 1000}", "budget: {a: 1", 20, 10, "spec", "is no YAML"),
    "two documents": ("seed: 7", "---\nseed: 7", 18, 1, "spec", "a second document begins here"),
    "control character": ("name: demo", "name: de\x07mo", 1, 9, "spec", "holds a control character (#x0007)"),
    "escape beyond Unicode": ("name: demo", 'name: "\\UFFFFFFFF"', 1, 1, "spec", "out of range"),
    "half a character": ("path: out/demo", 'path: "\\uD800"', 14, 9, "output.path", "half a character"),
    "half a character in a key": ("phantom-gland:", '"\\uD800":', 4, 3, "classes", "half a character"),
    "line break in a key": ("seed: 7", '"a\\n\\e[31mb": 7', 18, 15, r"a\n\x1b[31mb", "unknown field"),
    "nested too deep": ("seed: 7", f"seed: {'[' * 5000}", 18, 27, f"seed{'.0' * 20}", "at most 20 deep"),
}


def message_of(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "s.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_spec(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    return message.replace(str(file), "FILE")


def check_form(message: str) -> None:
    lines = message.splitlines()
    assert 1 <= len([line for line in lines if line.startswith("FILE:")]) <= 10
    for line in lines:
        assert re.match(r"FILE:\d+:\d+: \S.*: \S|and \d+ more$", line), line
        assert "\x1b" not in line
        assert len(line) < 500
    assert not re.search(r"Traceback|pydantic|Error\b|\.py\b|0x[0-9a-f]{6}", message)


def test_the_spec_that_the_wrong_ones_come_from_is_right(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD)
    assert load_spec(tmp_path / "s.yaml").name == "demo"


def check_wrong(tmp_path: Path, old: str, new: str, line: int, column: int, path: str, words: str) -> None:
    assert GOOD.count(old) == 1, "the case is not about one place"
    message = message_of(tmp_path, GOOD.replace(old, new))
    check_form(message)
    assert message.split(": ", 2)[:2] == [f"FILE:{line}:{column}", path]
    assert words in message
    assert len(message.splitlines()) == 1, "one fault, one line"
    assert [found.name for found in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_spec(tmp_path: Path, case: tuple[str, str, int, int, str, str]) -> None:
    check_wrong(tmp_path, *case)
