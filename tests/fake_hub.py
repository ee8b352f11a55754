"""A hub on the loopback interface: the few addresses that an upload calls, and what it was sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What was uploaded; `visibility` of the one repository is None until it is made."""

    visibility: str | None = None
    refuses: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    """Every request as it came over the wire."""
    paths: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON for one request."""
        path = path.partition("?")[0]
        if self.refuses:
            return 403, {"error": "no rights"}
        if path == "/api/repos/create":
            if self.visibility is not None:
                return 409, {"error": "it is there", "url": f"{self.url}/me/mine"}
            asked = json.loads(body)
            self.visibility = asked.get("visibility") or ["public", "private"][asked["private"]]
            return 200, {"url": f"{self.url}/me/mine", "name": "me/mine", "id": "me/mine"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/tree/" in path:
            facts = {"type": "file", "oid": "c" * 40}
            return 200, [{**facts, "path": n, "size": len(b)} for n, b in self.files.items()]
        if method == "GET":
            private = self.visibility == "private"
            sha = "a" * 40
            return 200, {
                "id": "me/mine",
                "private": private,
                "sha": sha,
                "tags": [],
                "siblings": [],
            }
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file["path"], **plain} for file in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
            commit = {"commitUrl": f"{self.url}/me/mine/commit/{'b' * 40}", "commitOid": "b" * 40}
            return 200, {**commit, "hookOutput": ""}
        return 404, {"error": f"{method} {path} is not known here"}


@contextmanager
def running_hub(**state: Any) -> Iterator[FakeHub]:
    """Give a hub that runs in a thread of this process."""
    hub = FakeHub(**state)

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.bodies.append(body)
            hub.paths.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization") or "")
            status, content = hub.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
