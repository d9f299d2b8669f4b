"""`synthfactory submit`: the same build as a Ray job on a cluster, followed from here, its exit code passed on.

Only the spec's text travels (a working_dir of that one file); model, bank, OUT and LINEAGE are read and written where the job runs.
The token is Ray's own affair (RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) and is never read, shown or sent along here: text of
an exception is shown only where it came from the server or the operating system.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synthfactory.model.folder import BUILT_IN
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.schema import Spec

PROGRAM = "python -m synthfactory.cli build"  # as the cluster's nodes start it
METADATA_KEY = "synthfactory_spec_sha256"
POLL_SEC = 1.0
LOG_CHARS_PER_SEC = 100_000  # a log comes whole each time, so a long one is asked for less often
MAX_POLL_SEC = 30.0
LOST_SEC = 120.0  # how long a broken connection may stay broken
PENDING_SEC = 30.0
TIMEOUT_SEC = (10, 60)  # connect, read; Ray's client sets none
START_PAUSES_SEC = (0, 1, 2, 4, 8)
LOG_PAUSES_SEC = (0, 1, 3)
LOST, STOPPED = 1, 130  # exit codes where the job has none of its own
NEEDS_JOBS = 'submit needs Ray\'s job client, which is not installed; pip install "synthfactory[jobs]"'
TOKEN_HELP = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN to the token that the cluster was started with"

Say = Callable[[str], None]


def submit(
    spec: Spec,
    text: bytes,
    file_name: str,
    *,
    address: str,
    workers: int | None,
    follow: bool,
    say: Say,
    quick: bool = False,
) -> int:
    """Builds `spec` (`text` of the file `file_name`) as a job of the cluster whose dashboard is at `address`; returns the exit code.

    A job that is at work on the same text already is followed instead. Codes: the job's own; 130 where following was interrupted or the
    job was stopped; 1 where the job was lost with its node or its cluster; 0 for an accepted job with `follow` False. InputError for
    what the user can mend.
    """
    check_places(spec)
    address = checked_address(address)
    client = connect(address)
    import ray.exceptions

    try:
        entrypoint = _entrypoint(file_name, workers, quick)
        job_id, there = _start(client, spec.name, text, entrypoint, file_name, address)
        if there is None:
            say(f"job {job_id} is accepted by {address}")
        else:
            say(f"job {job_id} is at work on this spec already ({there.status} at {address}); no second one is started")
            if there.entrypoint != entrypoint:
                say(f"it was started as `{there.entrypoint}`")
        if not follow:
            say(
                f"the same command without --no-follow follows it, or `ray job logs --address {address} --follow {job_id}`"
            )
            return 0
        say("Ctrl-C stops following and leaves the job running")
        try:
            return _follow(client, job_id, address, say)
        except KeyboardInterrupt:
            say(f"no longer following job {job_id}, which goes on at {address}; the same command follows it again")
            say(f"`ray job stop --address {address} {job_id}` ends it; what is committed stays")
            return STOPPED
    except ray.exceptions.RayError as error:  # AuthenticationError, which older versions lack; no other comes here
        raise _refused(address, error) from None


def check_places(spec: Spec) -> None:
    """Refuses places that mean something else, or nothing, on the cluster: relative paths and the user's home."""
    named: list[tuple[str, str | None, str]] = [
        (
            "model",
            spec.model.name if spec.model.hub is None and spec.model.name not in BUILT_IN else None,
            "an absolute path",
        ),
        ("model.encoder", None if spec.model.encoder_hub else spec.model.encoder, "an absolute path"),
        *((f"embeddings.{key}", place, "a URL or an absolute path") for key, place in spec.embeddings.places()),
        ("balance.against", spec.balance.file if spec.balance else None, "a URL or an absolute path"),
        ("output.path", spec.output.path, "a URL or an absolute path"),
        ("lineage", spec.lineage, "a URL or an absolute path"),
        ("privacy.ledger", spec.privacy.ledger, "a URL or an absolute path"),
        ("privacy.projection", spec.privacy.projection, "an absolute path"),
        (
            "screen.nearest_real.holdout",
            getattr(spec.screen.nearest_real, "holdout", None),
            "a URL or an absolute path",
        ),
    ]
    wrong = []
    for path, place, right in named:
        if place is not None and not _means_the_same_everywhere(place):
            message = f"'{place}' would be looked up where the job runs; write {right} on storage shared by all nodes"
            wrong.append(str(spec.error(path, message)))
    if wrong:
        raise InputError("\n".join(wrong))


def _means_the_same_everywhere(place: str) -> bool:
    last = place.rpartition("::")[2]  # of a chain such as simplecache::s3://bucket/file
    return is_url(last) or Path(last.partition("://")[2] if "://" in last else last).is_absolute()


def checked_address(address: str) -> str:
    """The dashboard's address without a slash at its end. InputError where it is no http or https address."""
    right = "write the address of the cluster's dashboard, such as http://HOST:8265"
    scheme, mark, _ = address.partition("://")
    if "@" in address:
        raise InputError(
            f"--address: holds a user name or password, which would end in logs; {right}, and {TOKEN_HELP}"
        )
    if scheme == "ray":
        raise InputError(
            f"--address {address}: ray:// is the address of Ray's interactive client, and jobs go elsewhere; {right}"
        )
    if not mark or scheme not in ("http", "https"):
        raise InputError(f"--address {address}: has no http:// or https:// in front; {right}")
    try:
        parts = urlsplit(address)
        sound = bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # brackets that do not close, a port that is no number
        sound = False
    if not sound or any(character.isspace() or not character.isprintable() for character in address):
        raise InputError(f"--address {address!r}: is no such address; {right}")
    return address.rstrip("/")


def connect(address: str) -> Any:
    """A JobSubmissionClient with time-outs. InputError where it is not installed, or no cluster of Ray's answers or lets us in."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as in ray_pool.py
    if importlib.util.find_spec("aiohttp") is None:  # what Ray's client itself asks for
        raise InputError(NEEDS_JOBS)
    try:
        import ray.exceptions
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError(NEEDS_JOBS) from None
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Any
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, **{"timeout": TIMEOUT_SEC, **options})

    right = "is the cluster up, and is that the port of its dashboard (8265 by default)?"
    try:
        with _environment("RAY_API_SERVER_ADDRESS", address):  # Ray prefers this, and RAY_ADDRESS, to the argument
            return Client(address)
    except ray.exceptions.RayError as error:
        raise _refused(address, error) from None
    except ConnectionError as error:
        raise InputError(f"--address {address}: nothing answers there ({_reason(error)}); {right}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, UnicodeError) or type(error).__name__ == "InvalidHeader":  # a class of requests'
            raise InputError(
                f"--address {address}: the token found here is no line of plain text; {TOKEN_HELP}"
            ) from None
        if "ray[default]" in str(error):
            raise InputError(NEEDS_JOBS) from None
        raise InputError(
            f"--address {address}: what answers there is no dashboard of Ray's ({_reason(error)}); {right}"
        ) from None


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _reason(error: BaseException) -> str:
    """Why a connection failed, in few words. Not the exception's own text: that of a header that cannot be sent holds the header."""
    words = f"status {status}" if (status := _http_status(error)) else type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        words = getattr(cause, "strerror", None) or words
        cause = cause.__cause__ or cause.__context__
    return words


def _http_status(error: BaseException) -> int | None:
    """The status of a refused request: Ray raises it as words, requests as a response."""
    if isinstance(error, RuntimeError):
        found = re.match(r"(?:Request failed with status code|Version check returned) (\d{3})", str(error))
        return int(found[1]) if found else None
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _refused(address: str, error: BaseException) -> InputError:
    text = str(getattr(error, "message", ""))
    if text.startswith("Authentication required"):
        what = "the cluster asks for a token, and none was sent"
    elif text.startswith("Authentication failed"):
        what = "the cluster refuses the token that was sent"
    else:
        what = "RAY_AUTH_MODE asks for a token, and none can be read here"
    return InputError(f"--address {address}: {what}; {TOKEN_HELP}")


def _entrypoint(file_name: str, workers: int | None, quick: bool) -> str:
    base = Path(file_name).name
    words = [f"./{base}" if base.startswith("-") else base, "--address", "auto"]
    words += ["--workers", str(workers)] if workers else []
    return f"{PROGRAM} {shlex.join([*words, *(['--quick'] if quick else [])])}"


def _start(
    client: Any, name: str, text: bytes, entrypoint: str, file_name: str, address: str
) -> tuple[str, Any | None]:
    """Id and details of the job at work on this spec; or the id of a new one, and None.

    The ids are numbered, so that asking twice is safe: of two equal submissions one is refused, and joins the other.
    """
    digest = hashlib.sha256(text).hexdigest()
    stem = f"synthfactory-{name}-{digest[:8]}"
    tried = ""
    for pause_sec in START_PAUSES_SEC:
        time.sleep(pause_sec)
        try:
            jobs = {str(job.submission_id): job for job in client.list_jobs() if job.submission_id}
            if tried in jobs:  # accepted, and the reply lost, or another's
                return tried, None
            for job_id, job in jobs.items():
                if (job.metadata or {}).get(METADATA_KEY) == digest and not job.status.is_terminal():
                    return job_id, job
            numbers = [int(found[1]) for job_id in jobs if (found := re.fullmatch(rf"{re.escape(stem)}-(\d+)", job_id))]
            tried = f"{stem}-{max(numbers, default=0) + 1}"
            _send(client, tried, text, entrypoint, file_name, digest)
            return tried, None
        except OSError as error:
            trouble = _reason(error)
        except RuntimeError as error:
            trouble = str(error).strip().splitlines()[-1]
            if (_http_status(error) or 0) < 500 and "already exists" not in str(error):
                break
    raise InputError(f"--address {address}: the job was not accepted ({trouble}); the same command tries again")


def _send(client: Any, job_id: str, text: bytes, entrypoint: str, file_name: str, digest: str) -> None:
    with tempfile.TemporaryDirectory(prefix="synthfactory-") as folder:
        (Path(folder) / Path(file_name).name).write_bytes(text)
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env={"working_dir": folder},
            metadata={METADATA_KEY: digest},
        )


def _follow(client: Any, job_id: str, address: str, say: Say) -> int:
    """Says the job's log line by line until it ends; returns its exit code. Asks anew each time, so a lost connection costs nothing."""
    shown, log = 0, ""
    began = answered = time.monotonic()
    lost = pending_told = False
    while True:
        try:
            details = client.get_job_info(job_id)
        except (OSError, RuntimeError) as error:
            if _http_status(error) == 404:
                say(
                    f"{address} no longer knows job {job_id}: deleted, or the cluster was started anew; the same command resumes"
                )
                return LOST
            if time.monotonic() - answered > LOST_SEC:
                say(
                    f"{address} has not answered for {LOST_SEC:.0f} s ({_reason(error)}); job {job_id} may still be running there"
                )
                say("the same command follows it again, or resumes where it ended")
                return LOST
            if not lost:
                say(f"the connection to {address} is lost ({_reason(error)}); the job goes on, trying again")
            lost = True
            time.sleep(POLL_SEC)
            continue
        if lost:
            say("connected again")
        lost, answered = False, time.monotonic()
        ended = bool(details.status.is_terminal())
        log = _read_log(client, job_id, log, say, patient=ended)
        shown = _show(log, shown, say, whole=ended)
        if ended:
            return _ended(details, job_id, log, say)
        if str(details.status) == "PENDING" and not pending_told and answered - began > PENDING_SEC:
            say(f"job {job_id} waits: {str(details.message or 'it has not started').splitlines()[0]}")
            pending_told = True
        time.sleep(min(max(POLL_SEC, len(log) / LOG_CHARS_PER_SEC), MAX_POLL_SEC))


def _read_log(client: Any, job_id: str, before: str, say: Say, *, patient: bool) -> str:
    """The whole log so far, or what was known `before` where it cannot be read just now."""
    for pause_sec in LOG_PAUSES_SEC if patient else LOG_PAUSES_SEC[:1]:
        time.sleep(pause_sec)
        try:
            return str(client.get_job_logs(job_id))
        except (OSError, RuntimeError):  # also half a character at the end of the file, or a node that died
            continue
    if patient:
        say(f"the end of the log of job {job_id} cannot be read")
    return before


def _show(log: str, shown: int, say: Say, *, whole: bool) -> int:
    """Says the complete lines of `log` after its first `shown` characters; returns how many are shown now."""
    end = len(log) if whole else log.rfind("\n") + 1
    if end <= shown:
        return shown
    for line in log[shown:end].removesuffix("\n").split("\n"):
        say(line.rstrip("\r"))
    return end


def _ended(details: Any, job_id: str, log: str, say: Say) -> int:
    message = str(details.message or "")
    if str(details.status) == "SUCCEEDED":
        say(f"job {job_id} ended with exit code 0")
        return 0
    if str(details.status) == "STOPPED":
        say(f"job {job_id} was stopped; submitting again resumes")
        return STOPPED
    code = getattr(details, "driver_exit_code", None)
    if code is None:
        found = re.match(r"Job entrypoint command failed with exit code (-?\d+)", message)
        code = int(found[1]) if found else None
    if code is None:
        say(f"job {job_id} was lost: {(message or 'no reason is known').strip().splitlines()[0]}")
        return LOST
    if code < 0:
        say(f"job {job_id} was ended by signal {-code}; submitting again resumes")
        return 128 - int(code)
    if re.search(r"No module named '?synthfactory\b", log) or code == 127:
        say(
            "synthfactory is not installed on the cluster: every node needs it (pip install synthfactory), and `python` must find it"
        )
    say(f"job {job_id} ended with exit code {code}")
    return int(code)
