"""The Hugging Face Hub in memory, for tests without network.

It serves only the requests that huggingface_hub makes to download a model repository (the commit of
a revision, the tree of a commit, and its files), and to upload small files to one in a commit,
which needs TOKEN. After `Fake.failing(n)` the next n requests get
503, as from an overloaded service.

    with serve() as fake: run(environment=fake.environment)
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CREATE, VALIDATE = "/api/repos/create", "/api/validate-yaml"
PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/(.+)")
COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/(.+)")
TOKEN = "hf_letmein"


class Fake:
    """The content of the repositories: commits[repository][commit] is {path: bytes}."""

    def __init__(self):
        self.commits, self.revisions, self.closed = {}, {}, {}
        self.requests, self.refused, self.lock = [], 0, threading.Lock()

    def store(self, repository, files, *, revision="main", closed=""):
        """Adds a commit with a branch or tag; closed="private" or "gated" requires TOKEN."""
        content = repr((repository, sorted(files.items())))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.revisions[repository, revision] = commit
        self.closed[repository] = closed
        return commit

    def store_folder(self, repository, folder, **options):
        """Adds a commit with the files of a folder, without empty folders, as in git."""
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.store(repository, files, **options)

    def failing(self, requests):
        """Makes the next requests fail with 503."""
        self.refused = requests


class Handler(BaseHTTPRequestHandler):
    """Handles one request; self.server.fake holds the repositories."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *arguments):
        pass

    def respond(self, status, content=b"", headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if "Authorization" not in self.headers:
            self.send_header("X-HF-Warning", "unauthenticated; You come without a token.")
        media = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        headers = {"Content-Type": media, "Content-Length": str(len(body)), **dict(headers)}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def refuse(self, status, code, message):
        self.respond(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def handle_one(self):
        fake, path = self.server.fake, urlsplit(self.path).path
        fake.requests.append((self.command, unquote(path)))
        with fake.lock:
            fake.refused, refused = max(fake.refused - 1, 0), fake.refused
        if refused:
            return self.refuse(503, "Overloaded", "try again")
        for pattern, reply in ((REVISION, self.about), (TREE, self.tree), (FILE, self.one)):
            if match := pattern.fullmatch(path):
                repository, revision, *rest = map(unquote, match.groups())
                return self.within(repository, revision, reply, *rest)
        return self.refuse(404, "Unknown", f"the fake does not know {self.command} {self.path}")

    do_GET = do_HEAD = handle_one

    def do_POST(self):
        """Creates a repository, says that files are no large ones, or adds a commit."""
        fake, path = self.server.fake, urlsplit(self.path).path
        content = self.rfile.read(int(self.headers["Content-Length"]))
        fake.requests.append((self.command, unquote(path)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized", "Invalid username or password.")
        if path == CREATE:
            given = json.loads(content)
            name = f"{given.get('organization') or 'anna'}/{given['name']}"
            is_private = given.get("private") or given.get("visibility") == "private"
            fake.commits.setdefault(name, {})
            fake.closed.setdefault(name, "private" if is_private else "")
            return self.respond(200, {"url": f"{self.host()}/{name}"})
        if path == VALIDATE:
            return self.respond(200, {"errors": [], "warnings": []})
        if PREUPLOAD.fullmatch(path):
            files = json.loads(content)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.respond(200, {"files": [{"path": f["path"], **regular} for f in files]})
        if match := COMMIT.fullmatch(path):
            return self.commit(*map(unquote, match.groups()), content)
        return self.refuse(404, "Unknown", f"the fake does not know POST {self.path}")

    def commit(self, repository, revision, content):
        fake = self.server.fake
        lines = [json.loads(line) for line in content.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines if line["key"] == "file"
        }  # fmt: skip
        removed = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
        before = fake.commits[repository].get(fake.revisions.get((repository, revision)), {})
        before = {path: file for path, file in before.items() if path not in removed}
        closed = fake.closed[repository]
        commit = fake.store(repository, before | added, revision=revision, closed=closed)
        url = f"{self.host()}/{repository}/commit/{commit}"
        self.respond(200, {"success": True, "commitUrl": url, "commitOid": commit})

    def host(self):
        """The address of this server."""
        return f"http://{self.headers['Host']}"

    def within(self, repository, revision, reply, *rest):
        """The reply about a commit, if the request may read it."""
        fake = self.server.fake
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        closed = "" if known else fake.closed.get(repository, "private")
        if closed == "gated":
            return self.refuse(401, "GatedRepo", f"Access to model {repository} is restricted.")
        if closed or repository not in fake.commits:  # one reply for both hides private names
            return self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        commit = fake.revisions.get((repository, revision), revision)
        if commit not in fake.commits[repository]:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return reply(repository, commit, fake.commits[repository][commit], *rest)

    def about(self, repository, commit, files):
        siblings = [{"rfilename": path} for path in files]
        info = {"_id": commit[:24], "id": repository, "modelId": repository, "sha": commit}
        info |= {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0}
        self.respond(200, {**info, "likes": 0, "siblings": siblings})

    def tree(self, repository, commit, files):
        folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        listed = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
        ]
        listed += [
            {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}
            for path, content in files.items()
        ]
        self.respond(200, listed)

    def one(self, repository, commit, files, path):
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers["ETag"] = f'"{_oid(files[path])}"'
        return self.respond(200, files[path], headers)


def _oid(content):
    """The hash by which git identifies a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves concurrent connections, because several threads download files."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Prints nothing: clients may close a connection early."""


@contextmanager
def serve():
    """`with serve() as fake`: a running Fake; fake.environment has the variables that locate it."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.fake = fake = Fake()
        fake.environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield fake
        finally:
            server.shutdown()
