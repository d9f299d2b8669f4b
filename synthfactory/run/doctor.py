"""`synthfactory doctor`: can a build work here? Device, memory, Ray, stores, the Hub's token and gates, accepted licences.

One line a check: ok, warn or fail. Nothing is drawn; the probe of a store's exclusive creation is removed again. The Hub's token is
looked for and used by the Hub's client, and shown nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from synthfactory.model.describe import weight_bytes
from synthfactory.model.find import H0_MINI, Opened, find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.hub import access, pin
from synthfactory.plan.plan import BYTES_PER_TILE
from synthfactory.run.models import choose_model, needs_encoder
from synthfactory.shards.base import temporary_name
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import DEFAULT_REVISION, HubName, repo_of
from synthfactory.spec.model import Pipeline
from synthfactory.spec.schema import Spec

GB = 1e9
WORKING = (
    1.5e9  # bytes beside the weights: torch itself, and a batch of 16 tiles of 224 px on its way through the decoder
)
LEAST_FREE = 2e9  # bytes that shards on their way need, wherever temporary files go


@dataclass(frozen=True)
class Check:
    """One finding. `level` is ok, warn or fail."""

    level: str
    what: str
    text: str

    def line(self) -> str:
        """As it is printed."""
        return f"{self.level:<4}  {self.what:<10} {self.text}"


def examine(spec: Spec | None, *, ray: bool = True) -> Iterator[Check]:
    """Every check that can be made without a spec, then those of the spec. InputError is turned into a failed check."""
    without = packages()
    if without is not None:
        yield without
    else:
        yield device()
        if ray:
            yield ray_starts()
    yield scratch()
    if spec is None:
        yield token(needed=False)
        return
    yield from stores(spec)
    repositories = gates(spec)
    if repositories:
        yield token(needed=any(_gated(name) for name in repositories))
        for name in repositories:
            yield gate(name)
    if without is None:
        yield from model(spec)


def packages() -> Check | None:
    """A failed check where torch or diffusers is not installed: without them neither device nor model can be looked at."""
    try:
        importlib.import_module("synthfactory.model.weights")
    except ImportError as error:
        text = f"what draws tiles cannot be imported ({error}); install what is missing, or synthfactory anew"
        return Check("fail", "packages", text)
    return None


def device() -> Check:
    """What tiles would be drawn on."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Check("ok", "device", f"{count} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    cores = os.cpu_count() or 1
    return Check("warn", "device", f"no GPU is seen by torch {torch.__version__}; {cores} CPU cores would draw, slowly")


def free_memory() -> int:
    """Bytes free on the GPU, or for new processes on this machine."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    with contextlib.suppress(OSError, ValueError, IndexError):  # what the page cache holds is free for processes, too
        return 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory(found: Opened) -> Check:
    """The weights in float32 and what a batch needs, against what is free."""
    weights = weight_bytes(found)
    if weights is None:
        return Check("warn", "memory", "the weights are not fetched yet, so their size is not known")
    need, free = weights + WORKING, free_memory()
    text = (
        f"about {need / GB:.1f} GB a worker are needed ({weights / GB:.2f} GB of weights), {free / GB:.1f} GB are free"
    )
    return Check("ok" if free >= need else "fail", "memory", text)


def ray_starts() -> Check:
    """Ray on this machine, on loopback, started and ended."""
    try:
        from synthfactory.run.ray_pool import try_ray
    except ImportError as error:
        return Check("fail", "ray", f"cannot be imported ({error}); reinstall the package, or build with --local")
    try:
        return Check("ok", "ray", f"{try_ray()} starts")
    except InputError as error:
        return Check("fail", "ray", str(error))
    except (OSError, RuntimeError, ValueError) as error:
        return Check(
            "fail", "ray", f"does not start ({str(error).splitlines()[0]}); build with --local, or name a cluster"
        )


def scratch() -> Check:
    """Space for shards on their way."""
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    text = f"{free / GB:.1f} GB free in {place}, where shards are written first"
    return Check("ok" if free > LEAST_FREE else "warn", "scratch", text)


def stores(spec: Spec) -> Iterator[Check]:
    """Write access and exclusive creation at every place that is written to; room for the set where it is a local folder."""
    places = [("output", spec.output.path), ("lineage", spec.lineage)]
    if spec.privacy.ledger is not None:
        places.append(("ledger", spec.privacy.ledger))
    for what, place in places:
        try:
            yield _store(what, place)
        except (InputError, OSError, NotImplementedError) as error:
            yield Check("fail", what, f"{place}: cannot be written to ({str(error).splitlines()[0]})")
    with contextlib.suppress(InputError, OSError, NotImplementedError):  # said above
        yield from _room(spec)


def _store(what: str, place: str) -> Check:
    store = open_store(place)
    root = getattr(store, "root", None)
    if isinstance(root, Path):  # a local folder that is not there yet is tried at the nearest one that is, and not made
        nearest = next(step for step in (root, *root.parents) if os.path.lexists(step))
        store = open_store(str(nearest))
    return (
        Check("ok", what, f"{place}: can be written to, and creates exclusively")
        if _exclusive(store)
        else Check("fail", what, f"{place}: a second writer would overwrite the first; use another store")
    )


def _exclusive(store: Store) -> bool:
    name = temporary_name()
    try:
        return store.create(name, b"first") and not store.create(name, b"second") and store.read(name) == b"first"
    finally:
        store.delete(name)


def _room(spec: Spec) -> Iterator[Check]:
    root = getattr(open_store(spec.output.path), "root", None)
    if not isinstance(root, Path):
        return
    nearest = next(step for step in (root, *root.parents) if os.path.lexists(step))
    tiles = spec.total or sum(item.count or 0 for item in spec.classes.values())
    need, free = tiles * BYTES_PER_TILE[spec.output.format], shutil.disk_usage(nearest).free
    text = f"the whole set takes about {need / GB:.2g} GB, {free / GB:.1f} GB are free at {spec.output.path}"
    yield Check("ok" if free > need else "fail", "room", text)


def gates(spec: Spec) -> list[HubName]:
    """The repositories of the Hub that this spec needs: the model's, and the encoder's only where something is to be embedded."""
    found = [spec.model.hub] if spec.model.hub else []
    if spec.model.encoder_hub:
        found.append(spec.model.encoder_hub)
    elif spec.model.encoder is None and needs_encoder(spec) and _takes_h0_mini(spec):
        found.append(HubName(H0_MINI, DEFAULT_REVISION))
    return found


def _takes_h0_mini(spec: Spec) -> bool:
    """Whether the model is conditioned on H0-mini's embeddings and holds no encoder itself."""
    try:
        opened = find_model(spec.model)
    except InputError:  # said where the model is looked at; until then, what the spec says of it
        return spec.model.hub is not None and repo_of((spec.model.pipeline or Pipeline()).encoder_id) == H0_MINI
    return repo_of(opened.encoder["id"]) == H0_MINI and not (isinstance(opened, ModelFolder) and opened.has_encoder)


def token(*, needed: bool) -> Check:
    """Whether a token of the Hub is here; it is never shown."""
    if huggingface_hub.get_token():
        return Check("ok", "token", "a token of the Hub is here")
    how = "log in with `hf auth login`, or set HF_TOKEN"
    return Check("fail" if needed else "warn", "token", f"no token of the Hub is here; gated models need one: {how}")


def _gated(name: HubName) -> bool:
    """Whether access must be asked for; taken for so where the Hub does not say."""
    try:
        return pin(name).gated
    except InputError:
        return True


def gate(name: HubName) -> Check:
    """Whether the repository's files may be read with the token that is here."""
    try:
        found = pin(name)
        access(found)
    except InputError as error:
        return Check("fail", "access", str(error))
    gated = "gated, and open to you" if found.gated else "open to all"
    return Check("ok", "access", f"{name.repo} at {found.commit[:12]}: {gated}")


def model(spec: Spec) -> Iterator[Check]:
    """Whether model, encoder, sampler and terms go together, and fit into memory."""
    from synthfactory.model.formats import slow_format
    from synthfactory.model.weights import default_device

    try:
        chosen = choose_model(spec)
    except InputError as error:
        yield Check("fail", "model", str(error))
        return
    accepted = ", ".join(spec.terms.accept) or "none needed"
    yield Check("ok", "model", f"{chosen.model.id} revision {chosen.model.revision[:12]}, {chosen.model.backend}")
    yield Check("ok", "licences", f"accepted: {accepted}")
    yield memory(chosen.model)
    slow = slow_format(spec.execution.dtype, default_device())
    if slow is not None:
        yield Check("warn", "format", f"execution.dtype: {slow}; leave it out, or write float32")
