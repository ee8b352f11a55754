"""A Label Studio in memory: what a real one answers to the requests of a push and of a pull."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

URL, KEY = "http://labels.example", "0123456789abcdef0123456789abcdef01234567"
USERS = {1: "ann@example.org", 2: "bob@example.org"}


def annotated(answer: Any, closed: bool = True) -> list[dict[str, Any]]:
    """Make the result of an annotation."""
    kind, value = ("choices", "choices") if closed else ("textarea", "text")
    return [{"from_name": "label", "to_name": "text", "type": kind, "value": {value: [answer]}}]


class FakeLabelStudio(httpx.BaseTransport):
    """Carries requests to dictionaries instead of a server; `instead` answers before it does."""

    def __init__(self) -> None:
        self.projects: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.instead: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.largest_page = 100
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        self._last = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        answer = self.instead(request)
        if answer is not None:
            return answer
        if request.headers.get("authorization") != f"Token {KEY}":
            return self._answer(401, {"detail": "Invalid token."})
        return self._answer(*self._routed(request))

    # What people do there

    def annotate(self, task: int, answer: Any, user: int = 1, **more: Any) -> dict[str, Any]:
        """Add an annotation; `skipped`, or results of any kind, by keywords."""
        note: dict[str, Any] = {
            "id": self._number(),
            "completed_by": user,
            "result": annotated(answer) if isinstance(answer, str) else answer,
            "was_cancelled": False,
            "ground_truth": False,
            "lead_time": None,
            "created_at": self._now(),
            **more,
        }
        note.setdefault("updated_at", note["created_at"])
        self.tasks[task]["annotations"].append(note)
        return note

    def update(self, note: dict[str, Any], answer: str, **more: Any) -> None:
        """Change an annotation."""
        note |= {"result": annotated(answer), "updated_at": self._now(), **more}

    def export(self) -> bytes:
        """Return all tasks as a JSON export."""
        return json.dumps(list(self.tasks.values())).encode()

    # What the server does

    def _routed(self, request: httpx.Request) -> tuple[int, Any]:
        path, method = request.url.path.rstrip("/"), request.method
        number = re.match(r"/api/projects/(\d+)", path)
        project = int(number[1]) if number else int(request.url.params.get("project", 0))
        if path == "/api/users":
            return 200, [{"id": user, "email": name} for user, name in USERS.items()]
        if path == "/api/projects" and method == "GET":
            start = (int(request.url.params["page"]) - 1) * int(request.url.params["page_size"])
            some = list(self.projects.values())[start : start + 100]
            return 200, {"count": len(self.projects), "results": some}
        if path == "/api/projects":
            made = {"id": self._number(), **json.loads(request.content)}
            self.projects[made["id"]] = made
            return 201, made
        if project not in self.projects:
            return 404, {"detail": "No Project matches the given query."}
        if path == "/api/tasks":
            return self._page(request, project)
        if path.endswith("/import"):
            return self._imported(project, json.loads(request.content))
        if method == "PATCH":
            self.projects[project] |= json.loads(request.content)
        return 200, self.projects[project]

    def _page(self, request: httpx.Request, project: int) -> tuple[int, Any]:
        page = int(request.url.params["page"])
        size = min(int(request.url.params["page_size"]), self.largest_page)
        ours = [task for task in self.tasks.values() if task["project"] == project]
        some = ours[(page - 1) * size : page * size]
        if not some and page > 1:
            return 404, {"detail": "Invalid page."}
        return 200, {"total": len(ours), "total_annotations": 0, "total_predictions": 0} | {
            "tasks": some
        }

    def _imported(self, project: int, tasks: list[dict[str, Any]]) -> tuple[int, Any]:
        for task in tasks:
            number = self._number()
            made = {"id": number, "project": project, "annotations": [], "drafts": []}
            self.tasks[number] = made | task
        return 201, {"task_count": len(tasks)}

    def _answer(self, status: int, body: Any) -> httpx.Response:
        return httpx.Response(status, json=body)

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _now(self) -> str:
        self._clock += timedelta(seconds=1)
        return self._clock.isoformat().replace("+00:00", "Z")
