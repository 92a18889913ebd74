"""A model hub on this machine: enough of its HTTP API for huggingface_hub's own client.

Files are uploaded in the "regular" way, inside the commit. The true hub has large ones uploaded in
other ways, which are between it and its client.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
OWNER = "somebody"


class Hub(ThreadingHTTPServer):
    """Repositories by id, each with its commits' files, newest last; the branch is always main.

    Attributes
    ----------
    broken : set of str
        Paths whose requests are answered with an error: one after which the client does not try
        again.
    asked : list of str
        Method and path of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool | None] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repositories[repo_id][-1]


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def taken_for_the_hub(folder: str) -> Iterator[Hub]:
    """A hub that huggingface_hub's client, and transformers, take for their own."""
    with serving() as hub, mock.patch.dict(os.environ, HF_TOKEN=TOKEN):
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": folder + "/hub",
            "HF_TOKEN_PATH": folder + "/token",
        }
        # transformers keeps a client, which keeps the endpoint it was made with.
        client = mock.patch("transformers.utils.hub._hf_api", None, create=True)
        with mock.patch.multiple("huggingface_hub.constants", **settings), client:
            yield hub


def sha(repo_id: str, number: int) -> str:
    return hashlib.sha1(f"{repo_id} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path in self.server.broken:
            self.answer(400, {"error": "out of order"})
        elif path.startswith("/api/"):
            self.api(path.removeprefix("/api/").split("/"), body)
        else:
            owner, name, _, revision, *file = path.removeprefix("/").split("/")
            self.file(f"{owner}/{name}", revision, "/".join(file))

    def api(self, parts: list[str], body: bytes) -> None:
        wanted = self.headers.get("Authorization")
        if self.command == "POST" and wanted != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif parts == ["validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif parts == ["repos", "create"]:
            self.create(json.loads(body))
        elif parts[0] == "models":
            repo_id = "/".join(parts[1:3])
            if repo_id not in self.server.repositories:
                self.answer(404, {"error": "Repository not found"}, code="RepoNotFound")
            elif self.command == "POST" and parts[1] != OWNER:
                self.answer(403, {"error": "You don't have the rights"})
            elif parts[3:4] == ["preupload"]:
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in files]
                self.answer(200, {"files": modes})
            elif parts[3:4] == ["commit"]:
                self.commit(repo_id, body)
            elif parts[3:4] == ["tree"]:
                tree = self.server.files(repo_id).items()
                self.answer(
                    200,
                    [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in tree],
                )
            else:
                self.info(repo_id)
        else:
            self.answer(404, {"error": f"no {self.path} here"})

    def create(self, given: dict[str, Any]) -> None:
        owner = given.get("organization") or OWNER
        repo_id = f"{owner}/{given['name']}"
        made = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", **made})
        elif owner != OWNER:
            self.answer(403, {"error": "You don't have the rights"})
        else:
            self.server.repositories[repo_id] = [{}]
            self.server.private[repo_id] = (
                given.get("private") or given.get("visibility") == "private"
            )
            self.answer(200, made)

    def commit(self, repo_id: str, body: bytes) -> None:
        files = dict(self.server.files(repo_id))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                assert line["key"] == "header", line
        commits = self.server.repositories[repo_id]
        commits.append(files)
        oid = sha(repo_id, len(commits) - 1)
        url = f"{self.server.url}/{repo_id}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def info(self, repo_id: str) -> None:
        names = self.server.files(repo_id)
        newest = sha(repo_id, len(self.server.repositories[repo_id]) - 1)
        siblings = [{"rfilename": name} for name in names]
        self.answer(200, {"id": repo_id, "modelId": repo_id, "sha": newest, "siblings": siblings})

    def file(self, repo_id: str, revision: str, name: str) -> None:
        commits = self.server.repositories.get(repo_id)
        if commits is None:
            self.answer(404, {"error": "Repository not found"}, code="RepoNotFound")
            return
        known = {sha(repo_id, n): n for n in range(len(commits))}
        number = known.get(revision, len(commits) - 1)
        headers = {"X-Repo-Commit": sha(repo_id, number)}
        data = commits[number].get(name)
        if data is None:
            self.answer(404, {"error": "Entry not found"}, code="EntryNotFound", **headers)
        else:
            self.answer(200, data, ETag=f'"{_etag(data)}"', **headers)

    def answer(self, status: int, content: Any, code: str = "", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        said = {"Content-Type": kind, "Content-Length": str(len(data)), **headers}
        if code:
            said |= {"X-Error-Code": code, "X-Error-Message": content["error"]}
        for name, value in said.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
