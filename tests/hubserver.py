"""A stand-in of the Hub's HTTP API on loopback: repositories with commits, branches and gates, as the real client talks to them.

Model info, tree, resolve (ETag, X-Repo-Commit, X-Linked-Etag), whoami; errors carry X-Error-Code as the Hub's do. `serve_hub()` runs it
in a thread; `environment(hub, home)` is what a process needs to find it and to keep its caches apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GRANTED, STRANGER = "hf_thisTokenHasAccess", "hf_thisTokenHasNone"
SHOWN_TO_ALL = ("README.md", ".gitattributes")  # of a gated repository


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """Commits by id, branches and tags by name. Safetensors and anything over 1 kB of weights count as LFS files."""

    name: str
    gated: bool = False
    licence: str | None = "apache-2.0"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of exactly these files, at which `ref` now points; returns its id."""
        listed = json.dumps({path: git_blob(content) for path, content in sorted(files.items())}) + str(
            len(self.commits)
        )
        commit = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt"))


@dataclass
class Hub:
    """Address, repositories, who may pass the gates, and what was asked (method, path, whether a token came along)."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    granted: set[str] = field(default_factory=lambda: {GRANTED})
    valid: set[str] = field(default_factory=lambda: {GRANTED, STRANGER})
    asked: list[str] = field(default_factory=list)
    down: bool = False

    def add(self, name: str, *, gated: bool = False, licence: str | None = "apache-2.0") -> Repo:
        self.repos[name] = Repo(name, gated, licence)
        return self.repos[name]

    def downloads(self) -> list[str]:
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            if self.hub.down:
                raise _Refused(503, "", "down for maintenance")
            self._served(path, body=body)
        except _Refused as error:
            self._send(
                error.status,
                b'{"error": "refused"}',
                {"X-Error-Code": error.code, "X-Error-Message": error.message},
                body,
            )

    def _token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        if token not in self.hub.valid:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return token

    def _repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            raise _Refused(401 if self._token() is None else 404, "RepoNotFound", "Repository not found")
        return self.hub.repos[name]

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _served(self, path: str, *, body: bool) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            if self._token() is None:
                raise _Refused(401, "", "Invalid username or password.")
            return self._json({"name": "someone", "type": "user", "auth": {}}, body)
        if parts[:2] == ["api", "models"]:
            repo = self._repo("/".join(parts[2:4]))
            kind, revision = (parts[4], "/".join(parts[5:])) if len(parts) > 4 else ("revision", "main")
            commit = self._commit(repo, revision)
            return self._json(self._info(repo, commit) if kind == "revision" else self._tree(repo, commit), body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file(self._repo("/".join(parts[:2])), parts[3], "/".join(parts[4:]), body)
        raise _Refused(404, "", "no such page")

    def _info(self, repo: Repo, commit: str) -> dict[str, Any]:
        siblings = []
        for path, content in sorted(repo.commits[commit].items()):
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
            if is_lfs(path):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        card = {} if repo.licence is None else {"cardData": {"license": repo.licence}}
        return {
            "_id": "0", "id": repo.name, "modelId": repo.name, "sha": commit, "private": False, "disabled": False,
            "gated": "manual" if repo.gated else False, "tags": [], "siblings": siblings, **card,
        }  # fmt: skip

    def _tree(self, repo: Repo, commit: str) -> list[dict[str, Any]]:
        found = []
        for path, content in sorted(repo.commits[commit].items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
            if is_lfs(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            found.append(entry)
        return found

    def _file(self, repo: Repo, revision: str, path: str, body: bool) -> None:
        token = self._token()
        if repo.gated and token not in self.hub.granted and path not in SHOWN_TO_ALL:
            raise _Refused(401 if token is None else 403, "GatedRepo", f"Access to model {repo.name} is restricted.")
        commit = self._commit(repo, revision)
        if path not in repo.commits[commit]:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content = repo.commits[commit][path]
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{git_blob(content)}"',
            "Content-Type": "application/octet-stream",
        }
        if is_lfs(path):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": f'"{digest}"'}
        self._send(200, content, headers, body)

    def _json(self, values: Any, body: bool) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Runs the server until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """What a process needs to find the stand-in, with caches of its own and nothing of the user's."""
    found = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_CACHE": str(home / "hf" / "hub"),
        "HF_TOKEN_PATH": str(home / "hf" / "token"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "SYNTHFACTORY_CACHE": str(home / "cache"),
    }
    return found if token is None else {**found, "HF_TOKEN": token}
