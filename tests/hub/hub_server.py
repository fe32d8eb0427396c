"""A Hub on the loopback: what huggingface_hub asks, answered from memory, with faults.

`/api/{models,datasets}/REPO/revision/REV` lists files with sizes and hashes, `/REPO/resolve/...`
gives content by range. Large files are sent on to another address, as the real one does.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_BYTES = 2000
HANG_S = 20.0
API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/(.+)")
TREE = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/(.+)")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CDN = re.compile(r"/cdn/([0-9a-f]{64})")


@dataclass
class Repo:
    """A repository: files of one commit, which `revisions` lead to."""

    files: dict[str, bytes]
    kind: str = "model"
    is_gated: bool = False
    needs_token: bool = False
    revisions: tuple[str, ...] = ("main", "v1")

    @property
    def commit(self) -> str:
        """Return a commit that changes with the content."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """What was asked, how it was answered, and how much content was sent."""

    method: str
    path: str
    status: int
    sent_bytes: int
    token: str | None


@dataclass
class Fault:
    """What goes wrong in the next requests that match.

    kind: a status (429, 500, 401 ...), `gated`, `no_repo`, `no_revision`, `no_entry`, `cut` after
    `after` bytes, `stall` after them, `wrong` content of the right size, `hang`, `garbled` JSON,
    `no_range`, `short` content.
    """

    kind: str
    match: str = "."
    times: int = 1
    after: int = 0
    retry_after: str | None = None


def git_sha1(content: bytes) -> str:
    """Return the name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """The server's state: repositories, accepted token, faults to come, and what was asked."""

    repos: dict[str, Repo]
    token: str = "hf_TheOneTokenThatThisHubAccepts0123456"
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: threading.Event = field(default_factory=threading.Event)

    def fault_of(self, line: str) -> Fault | None:
        """Take the first fault for a request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, line):
                    fault.times -= 1
                    return fault
        return None

    @property
    def content_bytes(self) -> int:
        """Return how much content was sent."""
        return sum(one.sent_bytes for one in self.requests)

    def sent(self) -> Counter[str]:
        """Return how much content was sent of each address."""
        counts: Counter[str] = Counter()
        for one in self.requests:
            counts[one.path] += one.sent_bytes
        return counts


class Handler(BaseHTTPRequestHandler):
    """Answers from `hub`, which the subclass made by `serving` has."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.status, self.sent_bytes = 0, 0
        path = unquote(urlsplit(self.path).path)
        header = self.headers.get("authorization", "")
        self.token = header.removeprefix("Bearer ") or None
        try:
            fault = self.hub.fault_of(f"{self.command} {path}")
            if fault is None or not self.fail(fault):
                self.route(path, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            request = Request(self.command, path, self.status, self.sent_bytes, self.token)
            with self.hub.lock:
                self.hub.requests.append(request)

    def fail(self, fault: Fault) -> bool:
        """Answer with an error; False where the fault is one of content."""
        codes = {"gated": (403, "GatedRepo"), "no_repo": (404, "RepoNotFound")}
        codes |= {"no_revision": (404, "RevisionNotFound"), "no_entry": (404, "EntryNotFound")}
        if fault.kind == "hang":
            self.hub.is_over.wait(HANG_S)
            self.close_connection = True
            return True
        if fault.kind.isdecimal():
            waits = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self.reply(int(fault.kind), b"{}", **waits)
            return True
        if fault.kind in codes:
            status, code = codes[fault.kind]
            self.reply(status, b"{}", **{"X-Error-Code": code})
            return True
        return False

    def route(self, path: str, fault: Fault | None) -> None:
        if found := API.fullmatch(path):
            self.listing(*found.groups(), fault)
        elif found := TREE.fullmatch(path):
            self.tree(*found.groups())
        elif found := RESOLVE.fullmatch(path):
            self.resolve(found, fault)
        elif found := CDN.fullmatch(path):
            contents = (c for repo in self.hub.repos.values() for c in repo.files.values())
            content = next(c for c in contents if hashlib.sha256(c).hexdigest() == found[1])
            self.content(content, fault)
        else:
            self.reply(404, b"{}")

    def repo(self, kind: str, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if self.token not in (None, self.hub.token):
            self.reply(401, b"{}", **{"X-Error-Message": "Invalid credentials"})
        elif repo is None or repo.kind != kind:
            self.reply(
                401 if self.token is None else 404, b"{}", **{"X-Error-Code": "RepoNotFound"}
            )
        elif repo.needs_token and self.token is None:
            self.reply(401, b"{}")
        elif revision not in (*repo.revisions, repo.commit):
            self.reply(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def listing(self, kind: str, name: str, revision: str, fault: Fault | None) -> None:
        repo = self.repo(kind, name, revision)
        if repo is None:
            return
        siblings = []
        for path, content in repo.files.items():
            one = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if len(content) >= LFS_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
            siblings.append(one)
        text = json.dumps({"id": name, "sha": repo.commit, "siblings": siblings})
        if fault is not None and fault.kind == "garbled":
            text = text[: len(text) // 2]
        self.reply(200, text.encode(), **{"Content-Type": "application/json"})

    def tree(self, kind: str, name: str, revision: str) -> None:
        """List files in the way that snapshot_download asks for from 2.0 on."""
        repo = self.repo(kind, name, revision)
        if repo is None:
            return
        entries = []
        for path, content in repo.files.items():
            one = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if len(content) >= LFS_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(one)
        self.reply(200, json.dumps(entries).encode(), **{"Content-Type": "application/json"})

    def resolve(self, found: re.Match[str], fault: Fault | None) -> None:
        kind = "dataset" if found[1] else "model"
        repo = self.repo(kind, found[2], found[3])
        if repo is None:
            return
        if repo.is_gated:
            status = 401 if self.token is None else 403
            self.reply(status, b"{}", **{"X-Error-Code": "GatedRepo"})
            return
        content = repo.files.get(found[4])
        if content is None:
            self.reply(404, b"{}", **{"X-Error-Code": "EntryNotFound"})
            return
        facts = {"X-Repo-Commit": repo.commit, "ETag": f'"{git_sha1(content)}"'}
        if len(content) >= LFS_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            facts |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            host = self.hub.url.replace("127.0.0.1", "localhost")
            facts["Location"] = f"{host}/cdn/{sha256}?Signature=secret-signature"
            self.reply(302, b"", **facts)
        else:
            self.content(content, fault, **facts)

    def content(self, content: bytes, fault: Fault | None, **headers: str) -> None:
        kind = fault.kind if fault else ""
        size = len(content)
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))) is not None:
            start = 0 if kind == "no_range" else int(asked[1])
        if kind == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
            if start:
                content = content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]
        body = content[start:]
        if kind == "short":
            body = body[: len(body) // 2]
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        cut = fault.after if fault is not None and kind in ("cut", "stall") else None
        self.is_stalling = kind == "stall"
        self.reply(206 if start else 200, body, cut, **headers)

    def reply(self, status: int, body: bytes, cut: int | None = None, **headers: str) -> None:
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        is_content = status in (200, 206) and not self.path.startswith("/api/")
        sent = body if cut is None else body[:cut]
        for begin in range(0, len(sent), 1 << 14):
            part = sent[begin : begin + (1 << 14)]
            self.wfile.write(part)
            self.sent_bytes += len(part) * is_content
        if cut is not None and cut < len(body):
            self.wfile.flush()
            self.close_connection = True
            if self.is_stalling:
                self.hub.is_over.wait(HANG_S)

    def log_message(self, *arguments: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """A server that does not mind clients that go away."""

    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on a free port of the loopback; its url is set."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = QuietServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.is_over.set()
        server.shutdown()
        server.server_close()


def settle(hub: Hub) -> None:
    """Wait until the threads of cut connections have noted what they sent."""
    count = -1
    while count != len(hub.requests):
        count = len(hub.requests)
        with suppress(InterruptedError):
            time.sleep(0.02)
