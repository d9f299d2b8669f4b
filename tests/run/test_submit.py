"""submit against a client that is scripted: what is sent, what is refused, how a job is followed, which exit code comes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthfactory.run import submit as room
from synthfactory.run.submit import METADATA_KEY, submit
from synthfactory.spec.errors import InputError
from synthfactory.spec.load import parse_spec
from synthfactory.spec.schema import Spec

jobs = pytest.importorskip("ray.job_submission")
pytest.importorskip("aiohttp")

ADDRESS = "http://127.0.0.1:8265"
TEXT = """\
name: tiny
model: phantom
classes: {alpha: 3}
embeddings: {bank: s3://bucket/bank.parquet}
output: {path: /data/out}
lineage: /data/lineage
"""


def spec_of(text: str = TEXT) -> Spec:
    return parse_spec(text, "spec.yaml")


class FakeClient:
    """Holds jobs; `script` says, look by look, what has become of the last one (a function may raise)."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.sent: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.script: list[dict[str, Any] | Callable[[], None]] = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
        self.log = ""
        self.submit_hook: Callable[[str], None] = lambda job_id: None

    def add(self, job_id: str, status: str, entrypoint: str = "x", metadata: dict[str, str] | None = None) -> None:
        self.jobs[job_id] = jobs.JobDetails(
            type="SUBMISSION", submission_id=job_id, status=status, entrypoint=entrypoint, metadata=metadata
        )

    def list_jobs(self) -> list[Any]:
        driver = jobs.JobDetails(type="DRIVER", job_id="01000000", status="RUNNING", entrypoint="")
        return [driver, *self.jobs.values()]

    def submit_job(
        self,
        *,
        entrypoint: str,
        runtime_env: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
        submission_id: str | None = None,
    ) -> str:
        assert submission_id
        if submission_id in self.jobs:
            text = f"Traceback\nValueError: Job with submission_id {submission_id} already exists. Please use another."
            raise RuntimeError(f"Request failed with status code 400: {text}.")
        assert runtime_env is not None
        folder = Path(runtime_env["working_dir"])
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.sent.append({"entrypoint": entrypoint, "env": runtime_env, "metadata": metadata, "id": submission_id})
        self.submit_hook(submission_id)
        self.add(submission_id, "PENDING", entrypoint, metadata)
        return submission_id

    def get_job_info(self, job_id: str) -> Any:
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(step):
            step()
            return self.get_job_info(job_id)
        if "log" in step:
            self.log = step["log"]
        values = {key: value for key, value in step.items() if key != "log"}
        self.jobs[job_id] = self.jobs[job_id].model_copy(update={**values, "status": jobs.JobStatus(values["status"])})
        return self.jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        assert job_id in self.jobs
        return self.log


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(room, "connect", lambda address: fake)
    monkeypatch.setattr(room.time, "sleep", lambda seconds: None)
    return fake


def run(text: str = TEXT, file_name: str = "spec.yaml", **options: Any) -> tuple[int, list[str]]:
    said: list[str] = []
    values = {"address": ADDRESS, "workers": None, "follow": True, "say": said.append, **options}
    return submit(spec_of(text), text.encode(), file_name, **values), said


def test_fake_client_takes_what_the_real_one_takes() -> None:
    for name in ("list_jobs", "submit_job", "get_job_info", "get_job_logs"):
        real = inspect.signature(getattr(jobs.JobSubmissionClient, name)).parameters
        fake = inspect.signature(getattr(FakeClient, name)).parameters
        assert {key: value.kind for key, value in fake.items()} == {key: real[key].kind for key in fake}


def test_only_the_spec_travels_under_its_own_name(client: FakeClient) -> None:
    code, said = run(file_name="my specs/a set's spec.yaml", workers=3)
    assert code == 0
    (sent,) = client.sent
    assert client.files == {"a set's spec.yaml": TEXT.encode()}
    assert not Path(sent["env"]["working_dir"]).exists()
    assert list(sent["env"]) == ["working_dir"]
    assert sent["entrypoint"] == (
        "python -m synthfactory.cli build 'a set'\"'\"'s spec.yaml' --address auto --workers 3"
    )
    assert sent["id"].startswith("synthfactory-tiny-") and sent["id"].endswith("-1")
    assert list(sent["metadata"]) == [METADATA_KEY]
    assert said[0] == f"job {sent['id']} is accepted by {ADDRESS}"


def test_quick_is_passed_on(client: FakeClient) -> None:
    run(quick=True)
    assert client.sent[0]["entrypoint"] == "python -m synthfactory.cli build spec.yaml --address auto --quick"


def test_name_that_looks_like_an_option_stays_a_file(client: FakeClient) -> None:
    run(file_name="--local")
    assert client.sent[0]["entrypoint"] == "python -m synthfactory.cli build ./--local --address auto"


def test_places_that_exist_here_only_are_refused_together(client: FakeClient) -> None:
    text = TEXT.replace("/data/out", "out").replace("/data/lineage", "~/lineage").replace("phantom", "runs/model")
    with pytest.raises(InputError) as caught:
        run(text.replace("s3://bucket/bank.parquet", "file://bank.parquet"))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model", "embeddings.bank", "output.path", "lineage"]
    assert lines[2].startswith(
        "spec.yaml:5:16: output.path: 'out' would be looked up where the job runs; write a URL or"
    )
    assert client.sent == []


def test_token_goes_into_nothing_that_is_sent(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2hunter2")
    _, said = run()
    assert "hunter2" not in repr((client.sent, client.files, said))


def test_job_at_work_on_the_spec_is_followed(client: FakeClient) -> None:
    run(follow=False, workers=2)
    first = client.sent[0]["id"]
    client.script = [{"status": "FAILED", "driver_exit_code": 3, "log": "a\n"}]
    code, said = run()
    assert (code, len(client.sent)) == (3, 1)
    assert said[0] == f"job {first} is at work on this spec already (PENDING at {ADDRESS}); no second one is started"
    assert "--workers 2" in said[1]
    client.script = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
    assert run()[0] == 0
    assert [entry["id"] for entry in client.sent] == [first, first[:-1] + "2"]


def test_another_text_is_another_job(client: FakeClient) -> None:
    run(follow=False)
    run(TEXT + "seed: 1\n", follow=False)
    ids = [entry["id"] for entry in client.sent]
    assert ids[0] != ids[1] and all(job_id.endswith("-1") for job_id in ids)
    for number in (7, 10):
        client.add(f"{ids[0][:-1]}{number}", "RUNNING", metadata={METADATA_KEY: "of a text with the same eight digits"})
    client.jobs.pop(ids[0])
    run(follow=False)
    assert client.sent[-1]["id"] == f"{ids[0][:-1]}11"


def test_reply_lost_after_the_job_was_accepted_starts_no_second(client: FakeClient) -> None:
    def lose(job_id: str) -> None:
        client.add(job_id, "SUCCEEDED", metadata=client.sent[-1]["metadata"])
        raise ConnectionResetError(104, "Connection reset by peer")

    client.submit_hook = lose
    code, said = run()
    assert (code, len(client.sent)) == (0, 1)
    assert said[0] == f"job {client.sent[0]['id']} is accepted by {ADDRESS}"


def test_equal_submission_at_the_same_moment_is_joined(client: FakeClient) -> None:
    listed = client.list_jobs

    def late() -> list[Any]:
        found = listed()
        client.add(room_id, "RUNNING")
        client.list_jobs = listed  # type: ignore[method-assign]
        return found

    run(follow=False)
    room_id = client.sent[0]["id"]
    client.jobs.clear()
    client.list_jobs = late  # type: ignore[method-assign]
    client.script = [{"status": "FAILED", "driver_exit_code": 3}]
    assert run()[0] == 3
    assert len(client.sent) == 1


def test_cluster_that_refuses_the_job_is_one_message(client: FakeClient) -> None:
    def refuse(job_id: str) -> None:
        raise RuntimeError("Request failed with status code 400: Traceback ...\nTypeError: metadata.")

    client.submit_hook = refuse
    with pytest.raises(InputError, match=r"the job was not accepted \(TypeError: metadata\.\)"):
        run()
    assert len(client.sent) == 1

    def busy(job_id: str) -> None:
        raise RuntimeError("Request failed with status code 500: No available agent to submit job.")

    client.submit_hook = busy
    with pytest.raises(InputError, match="No available agent"):
        run()
    assert len(client.sent) == 1 + len(room.START_PAUSES_SEC)


def test_log_comes_line_by_line_and_once(client: FakeClient) -> None:
    client.script = [
        {"status": "PENDING"},
        {"status": "RUNNING", "log": "one\ntw"},
        {"status": "RUNNING", "log": "one\ntw"},
        {"status": "RUNNING", "log": "one\ntwo\r\n\nthree\u2028\n"},
        {"status": "SUCCEEDED", "driver_exit_code": 0, "log": "one\ntwo\r\n\nthree\u2028\nfour"},
    ]
    code, said = run()
    assert code == 0
    assert said[2:-1] == ["one", "two", "", "three\u2028", "four"]


def test_log_that_cannot_be_read_costs_no_exit_code(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job_id: str) -> str:
        raise RuntimeError("Request failed with status code 500: Traceback ...")

    monkeypatch.setattr(client, "get_job_logs", broken)
    client.script = [{"status": "RUNNING"}, {"status": "FAILED", "driver_exit_code": 2}]
    code, said = run()
    assert code == 2
    assert any("log of job" in line and "cannot be read" in line for line in said)


def raising(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_short_loss_of_the_connection_is_survived(client: FakeClient) -> None:
    client.script = [
        {"status": "RUNNING", "log": "one\n"},
        raising(ConnectionRefusedError(111, "Connection refused")),
        raising(RuntimeError("Request failed with status code 503: busy.")),
        {"status": "FAILED", "driver_exit_code": 3, "log": "one\ntwo\n"},
    ]
    code, said = run()
    assert code == 3
    assert said[2:6] == [
        "one",
        f"the connection to {ADDRESS} is lost (Connection refused); the job goes on, trying again",
        "connected again",
        "two",
    ]


def test_long_loss_ends_the_following(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(room.time, "monotonic", lambda: float(next(clock)))
    client.script = [{"status": "RUNNING"}, raising(TimeoutError("x"))]
    code, said = run()
    assert code == room.LOST
    assert "has not answered for 120 s" in said[-2]


def test_job_that_the_cluster_has_forgotten(client: FakeClient) -> None:
    client.script = [raising(RuntimeError("Request failed with status code 404: Job x does not exist."))]
    code, said = run()
    assert code == room.LOST
    assert "no longer knows job" in said[-1]


def test_interruption_leaves_the_job_running(client: FakeClient) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    client.script = [{"status": "RUNNING", "log": "one\n"}, interrupt, {"status": "RUNNING"}]
    code, said = run()
    assert code == 130
    assert "goes on at" in said[-2] and "ray job stop" in said[-1]
    assert [str(job.status) for job in client.jobs.values()] == ["RUNNING"]


def test_token_refused_while_following(client: FakeClient) -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    client.script = [raising(exceptions.AuthenticationError("Authentication failed: Forbidden"))]
    with pytest.raises(InputError, match=r"refuses the token that was sent; .*RAY_AUTH_TOKEN_PATH"):
        run()


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, "ended with exit code 0"),
        ({"status": "FAILED", "driver_exit_code": 130}, 130, "ended with exit code 130"),
        ({"status": "FAILED", "driver_exit_code": -9}, 137, "was ended by signal 9"),
        (
            {"status": "FAILED", "message": "Job entrypoint command failed with exit code 3, last available logs"},
            3,
            "ended with exit code 3",
        ),
        (
            {"status": "FAILED", "message": "runtime_env setup failed: disk full\nTraceback ... exit code 7"},
            1,
            "was lost: runtime_env setup failed: disk full",
        ),
        ({"status": "FAILED", "message": None}, 1, "was lost: no reason is known"),
        ({"status": "STOPPED"}, 130, "was stopped"),
    ],
)
def test_exit_code_is_the_jobs_own(client: FakeClient, ending: dict[str, Any], code: int, words: str) -> None:
    client.script = [ending]
    found, said = run()
    assert found == code
    assert words in said[-1]


@pytest.mark.parametrize(
    ("log", "code"),
    [
        (
            "/usr/bin/python: Error while finding module specification (ModuleNotFoundError: No module named 'synthfactory')",
            1,
        ),
        ("/bin/sh: 1: python: not found", 127),
    ],
)
def test_cluster_without_synthfactory_is_told(client: FakeClient, log: str, code: int) -> None:
    client.script = [{"status": "FAILED", "driver_exit_code": code, "log": log + "\n"}]
    found, said = run()
    assert found == code
    assert "synthfactory is not installed on the cluster" in said[-2]


def test_without_following_it_says_how_to(client: FakeClient) -> None:
    code, said = run(follow=False)
    assert code == 0
    assert f"ray job logs --address {ADDRESS} --follow {client.sent[0]['id']}" in said[-1]
