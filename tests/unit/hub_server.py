"""A local stand-in for the hub's endpoints: repositories in memory, LFS for large files, ndjson commits."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from local_server import LocalServer, QuietHandler, running


@dataclass
class Hub:
    """Repositories (branch -> commit -> files), and everything that was asked."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """repository -> branch or commit -> path -> content"""
    heads: dict[tuple[str, str], str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    token: str = ""
    failures: list[int] = field(default_factory=list)
    """statuses to answer first"""
    corrupt: set[str] = field(default_factory=set)
    """paths that are served with a wrong byte"""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        held = {**self.repos[repo].get(self.heads.get((repo, branch), ""), {}), **files}
        text = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in sorted(held.items())})
        sha = hashlib.sha1((branch + text).encode()).hexdigest()
        self.repos[repo][sha] = held
        self.heads[repo, branch] = sha
        return sha

    def resolve(self, repo: str, revision: str) -> str | None:
        sha = self.heads.get((repo, revision), revision)
        return sha if sha in self.repos.get(repo, {}) else None


class Handler(QuietHandler):
    """Answers what huggingface_hub asks."""

    server: Server

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def handle_any(self) -> None:
        body = self.body()
        self.hub.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
        if self.hub.failures:
            self.answer({"error": "not now"}, self.hub.failures.pop(0))
            return
        given = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if self.command == "POST" and not given:
            self.answer({"error": "Invalid username or password."}, 401)
            return
        path = self.path.split("?")[0]
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                action(self, body, *found.groups())
                return
        self.answer({"error": f"no route {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815 names of the base class


def create(h: Handler, body: bytes) -> None:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if name in h.hub.repos:
        h.answer({"error": "exists", "url": name}, 409)
        return
    h.hub.repos[name] = {}
    h.hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
    h.hub.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
    h.answer({"url": f"{h.server.url}/{name}", "name": name, "id": name})


def branch(h: Handler, body: bytes, repo: str, name: str) -> None:
    h.hub.heads[repo, name] = h.hub.heads[repo, "main"]
    h.answer({})


def preupload(h: Handler, body: bytes, repo: str, revision: str) -> None:
    files = json.loads(body)["files"]
    modes = [
        {
            "path": f["path"],
            "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for f in files
    ]
    h.answer({"files": modes})


def lfs_batch(h: Handler, body: bytes, repo: str) -> None:
    objects = [
        {**o, "actions": {"upload": {"href": f"{h.server.url}/lfs/{o['oid']}"}}}
        for o in json.loads(body)["objects"]
    ]
    h.answer({"objects": objects, "transfer": "basic"})


def lfs_put(h: Handler, body: bytes, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        h.answer({"error": "wrong hash"}, 422)
        return
    h.hub.lfs[oid] = body
    h.answer({})


def commit(h: Handler, body: bytes, repo: str, revision: str) -> None:
    files: dict[str, bytes] = {}
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = h.hub.lfs[value["oid"]]
    sha = h.hub.commit(repo, revision, files)
    h.answer({"success": True, "commitOid": sha, "commitUrl": f"{h.server.url}/{repo}/commit/{sha}"})


def info(h: Handler, body: bytes, repo: str, revision: str) -> None:
    sha = h.hub.resolve(repo, revision)
    if sha is None:
        code = "RepoNotFound" if repo not in h.hub.repos else "RevisionNotFound"
        h.answer({"error": "Not Found"}, 404, {"X-Error-Code": code})
        return
    siblings = []
    for name, content in h.hub.repos[repo][sha].items():
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        file: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            file["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        siblings.append(file)
    h.answer({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": [], "private": False})


def main_info(h: Handler, body: bytes, repo: str) -> None:
    info(h, body, repo, "main")


def resolve(h: Handler, body: bytes, repo: str, revision: str, path: str) -> None:
    sha = h.hub.resolve(repo, revision)
    content = h.hub.repos[repo][sha].get(path) if sha else None
    if content is None:
        h.answer({"error": "Entry not found"}, 404)
        return
    if path in h.hub.corrupt:
        content = content[:-1] + bytes([content[-1] ^ 1])
    h.answer(content, headers={"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


def validate(h: Handler, body: bytes) -> None:
    front = json.loads(body)["content"]
    h.answer({"errors": [] if front.startswith("---") else [{"message": "no front matter"}], "warnings": []})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", rf"/api/models/{REPO}/branch/([\w.-]+)", branch),
    ("POST", rf"/api/models/{REPO}/preupload/([\w.-]+)", preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(\w+)", lfs_put),
    ("POST", rf"/api/models/{REPO}/commit/([\w.-]+)", commit),
    ("GET", rf"/api/models/{REPO}/revision/([\w.-]+)", info),
    ("GET", rf"/api/models/{REPO}", main_info),
    ("GET", rf"/{REPO}/resolve/([\w.-]+)/(.+)", resolve),
]


class Server(LocalServer):
    """The stand-in."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(Handler)
        self.hub = hub


def serve_hub(hub: Hub) -> contextlib.AbstractContextManager[str]:
    """Serve a hub and return its address."""
    return running(Server(hub))
