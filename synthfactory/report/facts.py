"""What card and Croissant say of a set, gathered from lock, rounds and commits: counts, shards, fingerprints, terms.

Public facts only; and a function of its arguments: no clock, no host, no path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthfactory.plan.recipe import BEFORE_STRIDES
from synthfactory.shards.commit import Commit
from synthfactory.shards.record import EXTENSIONS
from synthfactory.spec.bags import ONE_PATIENT, SEVERAL_PATIENTS

PRIVACY = (
    "each tile was conditioned on one real tile's embedding; no privacy guarantee is given; "
    "treat as personal data where the bank came from patients"
)
PRIVACY_MIX = (
    "each tile was conditioned on a blend of the embeddings of tiles of {k} patients, none with more than {max_weight:g} of the weight, "
    "{overlap}; this is not a privacy guarantee, since attacks on "
    "conditions tell nearly all members from others; treat as personal data where the bank came from patients"
)
PRIVACY_DP = (
    "conditions were drawn from one release of cohort {cohort} under (epsilon, delta)-differential privacy with epsilon = {epsilon:g} and "
    "delta = {delta:g}, for adding or removing one patient with all tiles; any number of tiles of this release costs nothing more, and "
    "other releases of the same patients add up. The projection was declared to be of public data ({provenance}), which was not checked: "
    "if it is not, the guarantee does not hold. Not covered: what the base model remembers of its own training set, the projection, "
    "names of classes, numbers of patients and tiles as declared, and whether a build takes place at all (a bank with damaged rows is "
    "refused)"
)
PRIVACY_UNCONDITIONAL = (
    "tiles were drawn without conditions; what the model remembers of its training set may still show, "
    "and no privacy guarantee is given"
)
COHORTS = {
    "some": "patients of TCGA are among the conditions, and CytoSyn was trained on TCGA: evaluations on these patients, or by models "
    "of that kind, are contaminated",
    "none": "no patient or slide id among the conditions is a TCGA barcode, TCGA being CytoSyn's training set",
    "unknown": "not known: some conditions, or all, came without patient and slide ids, or from synthetic tiles",
}
LABELS = {
    "none": "label of the conditioning tile",
    "mix": "label of the tiles that were blended into the condition",
    "dp": "class of the release that the condition was drawn from",
}
BAGS = {  # mechanism -> what a bag's tiles share; `none`: by what the lock says of patients
    "mix": "they share their class, and patients: each condition blends several, tiles of one kind of tissue that are neighbours in a bag "
    "mostly other ones where there are enough, and tiles of different kinds may have any in common",
    "overlapping mix": "they share their class and may share most of their patients: conditions of tiles with near numbers often blend the "
    "same ones, so that a bag may rest on few patients, and one of them may be behind every tile of it",
    "dp": "they share nothing but their class: every condition is a draw of its own from what was released",
    "unconditional": "they share nothing but their class: they were drawn without conditions",
}
MIME = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # from 10^3 in steps of ten


def tiles_sha256(commits: Mapping[int, Commit]) -> str:
    """Of a set's tiles as they are now: growth and what is drawn anew after a revocation change it, and the lock may stay."""
    return hashlib.sha256(
        "".join(sorted(str(commit.body["tar"]["sha256"]) for commit in commits.values())).encode()
    ).hexdigest()


@dataclass(frozen=True)
class ClassCount:
    """Tiles of one class: asked for, made, and given up after every attempt."""

    name: str
    class_index: int
    asked: int
    made: int
    shortfall: int


@dataclass(frozen=True)
class Execution:
    """One kind of machine and software, and what it made."""

    fingerprint: dict[str, Any]
    shards: int
    tiles: int


@dataclass(frozen=True)
class Facts:
    """The counts; `tile_size_px` is one side."""

    classes: tuple[ClassCount, ...]
    shards_asked: int
    shards_made: int
    executions: tuple[Execution, ...]

    @property
    def asked(self) -> int:
        """Tiles that all rounds ask for."""
        return sum(item.asked for item in self.classes)

    @property
    def made(self) -> int:
        """Published tiles."""
        return sum(item.made for item in self.classes)

    @property
    def shortfall(self) -> int:
        """Tiles that no attempt gave."""
        return sum(item.shortfall for item in self.classes)

    @property
    def pending(self) -> int:
        """Tiles of shards that are not committed yet."""
        return self.asked - self.made - self.shortfall


def gather(lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], commits: Mapping[int, Commit]) -> Facts:
    """The facts of a set, complete or not; classes in order of their index, fingerprints in order of their first shard."""
    asked, made, missing = Counter[str](), Counter[str](), Counter[str]()
    for step in rounds:
        asked.update({name: high - low for name, (low, high) in step["ranges"].items()})
    executions: list[Execution] = []
    for _, commit in sorted(commits.items()):
        made.update(commit.classes)
        missing.update({name: len(indices) for name, indices in commit.shortfall.items()})
        _count(executions, commit)
    return Facts(
        tuple(
            ClassCount(str(name), int(entry["class_index"]), asked[name], made[name], missing[name])
            for entry in sorted(lock["classes"], key=lambda entry: int(entry["class_index"]))
            for name in (entry["name"],)
        ),
        sum(int(step["num_shards"]) for step in rounds),
        len(commits),
        tuple(executions),
    )


def _count(executions: list[Execution], commit: Commit) -> None:
    fingerprint = dict(commit.body["fingerprint"])
    for number, known in enumerate(executions):
        if known.fingerprint == fingerprint:
            executions[number] = Execution(fingerprint, known.shards + 1, known.tiles + commit.tiles)
            return
    executions.append(Execution(fingerprint, 1, commit.tiles))


def size_category(tiles: int) -> str:
    """The Hub's name for a number of examples, such as 10K<n<100K."""
    step = next((number for number in range(len(_SIZES)) if tiles < 10 ** (number + 3)), len(_SIZES))
    if step == len(_SIZES):
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[step - 1]}<n<{_SIZES[step]}" if step else f"n<{_SIZES[0]}"


def image_format(lock: Mapping[str, Any]) -> tuple[str, str]:
    """(format, the extension of its members)."""
    name = str(lock["recipe"]["format"])
    return name, EXTENSIONS.get(name, name)


def label_levels(lock: Mapping[str, Any]) -> str:
    """The levels that labels were given to, joined by 'or'."""
    return " or ".join(str(level) for level in lock.get("label_levels", ())) or "unknown"


def terms(lock: Mapping[str, Any]) -> tuple[str, bool]:
    """(name of the model's terms, whether they, or a permission, are recorded to allow sharing what was made with it)."""
    licence = lock["model"].get("licence") or {}
    return str(licence.get("name") or "not stated"), lock["terms"]["sharing"] in ("allowed", "permitted")


def version(lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    """1.ROUNDS.WITHDRAWALS: a round after the first adds tiles and changes none; a withdrawal takes some back."""
    return f"1.{max(len(rounds) - 1, 0)}.{lock.get('withdrawals', 0)}"


def other_terms(lock: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the licences of model and encoder say besides their name and whether tiles may be shared: (what, text), sorted."""
    found = {}
    for whose, licence in (("", lock["model"].get("licence") or {}), ("encoder: ", lock.get("encoder_licence") or {})):
        found.update({f"{whose}{key}": value for key, value in licence.items() if key not in ("name", "sharing")})
    return sorted(found.items())


def is_unconditional(lock: Mapping[str, Any]) -> bool:
    """True where tiles were drawn without conditions."""
    return "unconditional" in lock.get("label_levels", ())


def overlapping(lock: Mapping[str, Any]) -> bool:
    """Whether blends of slots next to each other share most of their patients, as they did before strides."""
    return (
        lock["recipe"]["privacy"]["mechanism"] == "mix" and int(lock["recipe"]["conditions_version"]) <= BEFORE_STRIDES
    )


def rests_on_patients(lock: Mapping[str, Any]) -> bool:
    """Whether tiles of such a set follow patients of their own."""
    return lock["recipe"]["privacy"]["mechanism"] != "dp" and not is_unconditional(lock)


def label_meaning(lock: Mapping[str, Any], inert: Callable[[str], str] = str) -> str:
    """What a label says, in one line."""
    if is_unconditional(lock):
        return "label = the one name of this set; its tiles were drawn without conditions (label_level unconditional)"
    return f"label = {LABELS[lock['recipe']['privacy']['mechanism']]}, level: {inert(label_levels(lock))}"


def privacy(lock: Mapping[str, Any], inert: Callable[[str], str] = str) -> str:
    """What protects the people behind the tiles, and what does not; texts of unknown origin pass `inert`."""
    says = lock["recipe"]["privacy"]
    if is_unconditional(lock):
        return PRIVACY_UNCONDITIONAL
    values = {name: inert(value) if isinstance(value, str) else value for name, value in says.items()}
    values["overlap"] = (
        "and tiles whose keys have near numbers may share most of theirs"
        if overlapping(lock)
        else "those of one kind of tissue used alike"
    )
    return {"none": PRIVACY, "mix": PRIVACY_MIX, "dp": PRIVACY_DP}[says["mechanism"]].format_map(values)


def bags(lock: Mapping[str, Any]) -> str | None:
    """What the tiles of a bag share, and what that means for privacy; None where the set has no bags."""
    says = lock["recipe"].get("bags")
    if says is None:
        return None
    if says["patients"] is None:
        kind = "overlapping mix" if overlapping(lock) else lock["recipe"]["privacy"]["mechanism"]
        shared = BAGS["unconditional" if is_unconditional(lock) else kind]
    elif says["patients"] == 1:
        shared = ONE_PATIENT
    else:
        shared = f"they follow tiles of {says['patients']:,} patients, who are in the bag alike; {SEVERAL_PATIENTS}"
    return f"tiles are grouped in bags of {says['size']:,} tiles of one class (bag_id; the last bag of a class may hold fewer); {shared}"


def cohort(lock: Mapping[str, Any]) -> str:
    """Whether the conditions belong to a published model's training set, in words."""
    if lock["recipe"]["privacy"]["mechanism"] == "dp":
        return "not stated: under differential privacy it would tell of patients"
    return (
        "does not apply: there are no conditions, and whom the model itself learnt from was not looked at"
        if is_unconditional(lock)
        else COHORTS[str(lock.get("training_cohort", "unknown"))]
    )
