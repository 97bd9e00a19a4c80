"""A Hub on this machine, over real HTTP: what `huggingface_hub`, `datasets` and `diffusers` ask the real one for.

    python tests/hub_server.py FOLDER

Uploads go by the LFS protocol, not by Xet, so clients need `HF_HUB_DISABLE_XET=1`. Histories live in memory, contents
in the folder; a commit becomes visible whole or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_tokenThatWrites": ("user", "write"), "hf_tokenThatReads": ("user", "read")}
LFS_SUFFIXES = {".arrow", ".bin", ".npz", ".parquet", ".safetensors"}  # as in the Hub's own .gitattributes
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))


class HubError(Exception):
    """An answer that is no success; `code` is what the clients look at beside the status."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


@dataclass
class File:
    """A file of a commit; `sha256` names its content in the server's folder."""

    sha256: str
    size: int
    git_oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Commit:
    """What one upload made of its parent's files."""

    title: str
    message: str
    author: str
    date: str
    parent: str | None
    files: dict[str, File]

    @property
    def oid(self) -> str:
        tree = {path: file.git_oid for path, file in sorted(self.files.items())}
        return hashlib.sha1(json.dumps([self.title, self.message, self.date, self.parent, tree]).encode()).hexdigest()


@dataclass
class Repo:
    """A model, data set or Space."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit.oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def history(self, oid: str | None) -> Iterator[tuple[str, Commit]]:
        """The commit and those before it, newest first."""
        while oid is not None:
            yield oid, self.commits[oid]
            oid = self.commits[oid].parent


class Hub:
    """The repositories, and who may write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.Lock()

    def create(self, kind: str, name: str, private: bool, author: str) -> Repo:
        repo = Repo(kind, name, private)
        repo.add(
            "main", self.commit("initial commit", "", author, None, {".gitattributes": self.store(GITATTRIBUTES)})
        )
        self.repos[kind, name] = repo
        return repo

    def commit(self, title: str, message: str, author: str, parent: str | None, files: dict[str, File]) -> Commit:
        return Commit(
            title, message, author, datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"), parent, files
        )

    def store(self, content: bytes | str) -> File:
        """Keep the content of a file that is not LFS."""
        content = content.encode() if isinstance(content, str) else content
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        return File(sha256, len(content), git_oid(content), lfs=False)

    def read(self, file: File) -> bytes:
        return (self.folder / file.sha256).read_bytes()

    def apply(self, repo: Repo, branch: str, lines: list[dict[str, Any]], author: str) -> str:
        """Make the lines of an upload one commit of `branch`, whose id is returned."""
        with self.lock:
            if branch not in repo.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            parent = repo.branches[branch]
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit", parent) != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent].files)
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.store(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    content = self.folder / value["oid"]
                    if not content.exists():
                        raise HubError(400, f"LFS object {value['oid']} of {value['path']} was not uploaded.")
                    size = content.stat().st_size
                    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
                    files[value["path"]] = File(value["oid"], size, git_oid(pointer.encode()), lfs=True)
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist.", "EntryNotFound")
                elif line["key"] == "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
            commit = self.commit(header["summary"], header.get("description", ""), author, parent, files)
            return repo.add(branch, commit)


class HubServer(ThreadingHTTPServer):
    """Serves a `Hub`; uploads to paths that start with `cut` break off half-way, and `requests` is what was asked."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.hub = Hub(folder)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.cut: tuple[str, ...] = ()
        self.requests: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may leave early
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection: finds what a path names, and answers."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def respond(self) -> None:
        self.url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {self.path}")
        self.body = self.read_body()
        if self.body is None:
            return
        try:
            self.route([unquote(part) for part in self.url.path.strip("/").split("/")])
        except HubError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            self.send(error.status, error.body, {**headers, "X-Error-Message": error.body["error"]})

    def read_body(self) -> bytes | None:
        """The request's body; None where the connection was to be cut."""
        if self.server.cut and self.command in ("POST", "PUT") and self.url.path.startswith(self.server.cut):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return None
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    # Who asks, and for what

    def account(self) -> tuple[str | None, str]:
        """User and role of the token; (None, "") without one."""
        header = self.headers.get("Authorization")
        if header is None:
            return None, ""
        account = TOKENS.get(header.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def writer(self, namespace: str) -> str:
        user, role = self.account()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "You must use a write token to upload to a repository")
        if namespace != user:
            raise HubError(403, f"You don't have the rights to create or write under the namespace {namespace!r}")
        return user

    def repo(self, kind: str, namespace: str, name: str) -> Repo:
        repo = self.server.hub.repos.get((kind, f"{namespace}/{name}"))
        user, _ = self.account()
        if repo is None or (repo.private and user != namespace):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def web_url(self, repo: Repo) -> str:
        return f"{self.server.endpoint}/{'' if repo.kind == 'models' else f'{repo.kind}/'}{repo.name}"

    def route(self, parts: list[str]) -> None:
        match [self.command, *parts]:
            case ["GET", "api", "whoami-v2"]:
                user, role = self.account()
                if user is None:
                    raise HubError(401, "Invalid username or password.")
                access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
                self.send(200, {"type": "user", "name": user, "orgs": [], "auth": access})
            case ["POST", "api", "repos", "create"]:
                self.create_repo(**self.json())
            case ["POST", "api", "validate-yaml"]:
                errors = [{"message": message} for message in metadata_errors(self.json()["content"])]
                self.send(400 if errors else 200, {"errors": errors, "warnings": []})
            case ["POST", *repo, "info", "lfs", "objects", "batch"]:
                self.lfs_batch(["models", *repo][-3:])
            case ["PUT", "lfs", oid]:
                if hashlib.sha256(self.body).hexdigest() != oid:
                    raise HubError(400, "The content is not what its name says.")
                (self.server.hub.folder / oid).write_bytes(self.body)
                self.send(200, b"")
            case ["GET" | "HEAD", "lfs", oid]:
                self.send_content((self.server.hub.folder / oid).read_bytes(), {"ETag": f'"{oid}"'})
            case [_, "api", ("models" | "datasets" | "spaces") as kind, namespace, name, *rest]:
                self.repo_api(self.repo(kind, namespace, name), rest)
            case ["GET" | "HEAD", ("datasets" | "spaces") as kind, namespace, name, "resolve", revision, *path]:
                self.resolve(self.repo(kind, namespace, name), revision, "/".join(path))
            case ["GET" | "HEAD", namespace, name, "resolve", revision, *path]:
                self.resolve(self.repo("models", namespace, name), revision, "/".join(path))
            case _:
                raise HubError(404, f"This Hub does not know {self.command} {self.url.path}")

    # Writing

    def create_repo(
        self, name: str, organization: str | None, type: str = "model", visibility: str = "public", **_: Any
    ) -> None:
        user = self.writer(organization or self.account()[0] or "")
        kind, full_name = f"{type}s", f"{user}/{name}"
        with self.server.hub.lock:
            if there := self.server.hub.repos.get((kind, full_name)):
                message = f"You already created this {type} repo: {full_name}"
                raise HubError(409, message, url=self.web_url(there))
            repo = self.server.hub.create(kind, full_name, visibility == "private", user)
        self.send(200, {"url": self.web_url(repo), "name": full_name})

    def lfs_batch(self, repo: list[str]) -> None:
        kind, namespace, name = repo
        self.repo(kind, namespace, name.removesuffix(".git"))
        self.writer(namespace)
        objects = []
        for item in self.json()["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if not (self.server.hub.folder / item["oid"]).exists():
                entry["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}
            objects.append(entry)
        self.send(200, {"transfer": "basic", "objects": objects})

    def repo_api(self, repo: Repo, rest: list[str]) -> None:
        namespace = repo.name.split("/")[0]
        match [self.command, *rest]:
            case ["GET"]:
                self.send(200, repo_info(repo, repo.resolve("main")))
            case ["GET", "revision", revision]:
                self.send(200, repo_info(repo, repo.resolve(revision)))
            case ["GET", "refs"]:
                branches = [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                    for name, oid in repo.branches.items()
                ]
                self.send(200, {"branches": branches, "tags": [], "converts": []})
            case ["GET", "commits", revision]:
                commits = [
                    {
                        "id": oid,
                        "title": commit.title,
                        "message": commit.message,
                        "date": commit.date,
                        "authors": [{"user": commit.author}],
                    }
                    for oid, commit in repo.history(repo.resolve(revision))
                ]
                self.send(200, commits)
            case ["GET", "tree", revision, *path]:
                query = parse_qs(self.url.query)
                recursive, expand = (query.get(name, [""])[0].lower() == "true" for name in ("recursive", "expand"))
                self.send(200, list_tree(repo, revision, "/".join(path), recursive, expand))
            case ["POST", "paths-info", revision]:
                form = parse_qs((self.body or b"").decode())
                expand = form.get("expand", [""])[0].lower() == "true"
                wanted = {path.strip("/") for path in form.get("paths", [])}
                entries = list_tree(repo, revision, "", recursive=True, expand=expand)
                self.send(200, [entry for entry in entries if entry["path"] in wanted])
            case ["POST", "branch", branch]:
                self.writer(namespace)
                if branch in repo.branches:
                    raise HubError(409, f"Reference already exists: {branch}")
                repo.branches[branch] = repo.resolve(self.json().get("startingPoint", "main"))
                self.send(201, {})
            case ["POST", "preupload", revision]:
                self.writer(namespace)
                files = repo.commits[repo.resolve(revision)].files
                self.send(200, {"files": [upload_mode(item, files) for item in self.json()["files"]]})
            case ["POST", "commit", branch]:
                author = self.writer(namespace)
                lines = [json.loads(line) for line in (self.body or b"").splitlines()]
                oid = self.server.hub.apply(repo, branch, lines, author)
                self.send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.web_url(repo)}/commit/{oid}"})
            case _:
                raise HubError(404, f"This Hub does not know {self.command} {self.url.path}")

    # Reading

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        oid = repo.resolve(revision)
        file = repo.commits[oid].files.get(path)
        headers = {"X-Repo-Commit": oid}
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.send(404, {"error": "Entry not found"}, headers)
        elif file.lfs:  # its content lies on another host, where the token must not be sent
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            self.send(
                302, b"", {**headers, "Location": f"http://localhost:{self.server.server_port}/lfs/{file.sha256}"}
            )
        else:
            self.send_content(self.server.hub.read(file), {**headers, "ETag": f'"{file.etag}"'})

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """All of it, or the one range that was asked for."""
        headers = {**headers, "Accept-Ranges": "bytes"}
        unit, _, span = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            self.send(200, content, headers)
            return
        first, _, last = span.partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= stop:
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self.send(206, content[start:stop], headers)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def upload_mode(item: dict[str, Any], files: dict[str, File]) -> dict[str, Any]:
    """Whether a file about to be uploaded is an LFS one, and what is there under its name."""
    path, known = item["path"], files.get(item["path"])
    binary = b"\0" in base64.b64decode(item["sample"])
    lfs = binary or item["size"] > 10_000_000 or Path(path).suffix in LFS_SUFFIXES
    mode = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
    return mode if known is None else {**mode, "oid": known.etag}


def repo_info(repo: Repo, oid: str) -> dict[str, Any]:
    history = list(repo.history(oid))
    return {
        "_id": repo.name,
        "id": repo.name,
        "author": repo.name.split("/")[0],
        "sha": oid,
        "lastModified": history[0][1].date,
        "createdAt": history[-1][1].date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(repo.commits[oid].files)],
    }


def list_tree(repo: Repo, revision: str, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
    """Files and folders below `folder`, those right below it unless `recursive`; `expand` adds the last commit."""
    oid = repo.resolve(revision)
    files = repo.commits[oid].files
    prefix = f"{folder}/" if folder else ""
    below = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
    if folder and not below:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    last = {"id": oid, "title": repo.commits[oid].title, "date": repo.commits[oid].date}
    expanded = {"lastCommit": last} if expand else {}
    entries: dict[str, dict[str, Any]] = {}
    for path, file in below.items():
        parents = [str(parent) for parent in Path(path).parents if str(parent) != "." and str(parent) != folder]
        for parent in reversed([parent for parent in parents if parent.startswith(prefix)]):
            entries[parent] = {"type": "directory", "path": parent, "oid": git_oid(parent.encode()), "size": 0}
        entries[path] = {"type": "file", "path": path, "oid": file.git_oid, "size": file.size}
        if file.lfs:
            entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    return [
        {**entry, **expanded} for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)
    ]


def metadata_errors(card: str) -> list[str]:
    """What the Hub would say against the YAML on top of a card."""
    if not card.startswith("---\n"):
        return []  # the Hub warns, it doesn't refuse
    try:
        metadata = yaml.safe_load(card.split("\n---", 1)[0])
    except yaml.YAMLError as error:
        return [f"YAML is broken: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["metadata must be a mapping"]
    errors = [
        f'"{name}" must be a string'
        for name in ("library_name", "pipeline_tag", "pretty_name")
        if not isinstance(metadata.get(name, ""), str)
    ]
    for name in ("tags", "task_categories", "license", "language", "datasets"):
        values = metadata.get(name) or []
        if not all(isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{name}" must be a string or a list of strings')
    for entry in metadata.get("model-index") or []:
        if not isinstance(entry, dict) or not {"name", "results"} <= set(entry):
            errors.append('"model-index" needs "name" and "results" in every entry')
            continue
        for result in entry["results"]:
            for part, needed in (("task", ["type"]), ("dataset", ["type", "name"])):
                for name in needed:
                    if not isinstance(result.get(part), dict) or not isinstance(result[part].get(name), str):
                        errors.append(f'"model-index[0].results[0].{part}.{name}" is required')
            for metric in result.get("metrics") or [{}]:
                errors += [
                    f'"model-index[0].results[0].metrics[0].{name}" is required'
                    for name in ("type", "value")
                    if metric.get(name) is None
                ]
    return errors


@contextmanager
def serve_hub(folder: Path, port: int = 0) -> Iterator[HubServer]:
    """A Hub that runs until the block ends, on a free port unless one is given."""
    with HubServer(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with HubServer(Path(sys.argv[1]), port=8642) as standing:
        print(f"HF_ENDPOINT={standing.endpoint} HF_HUB_DISABLE_XET=1, tokens: {', '.join(TOKENS)}")
        standing.serve_forever()
