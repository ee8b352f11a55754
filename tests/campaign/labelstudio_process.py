"""A real Label Studio in a process of its own, on the loopback interface, and people who use it."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PROGRAM = Path(__file__).parents[2] / ".venv-labelstudio" / "bin" / "label-studio"
ADMIN, ADMIN_KEY = "ann@example.org", "0123456789abcdef0123456789abcdef01234567"
PATIENCE = 180
"""Seconds until a server that does not come up is given up; it takes about 25."""
# Nothing leaves the machine: no analytics, no error reports, no look for a newer version.
QUIET = {
    "COLLECT_ANALYTICS": "0",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "0",
    "FEATURE_FLAGS_OFFLINE": "1",
    "DJANGO_DB": "sqlite",
}


@dataclass(frozen=True)
class Person:
    """Somebody with an account; their requests."""

    email: str
    key: str
    http: httpx.Client

    def request(self, method: str, path: str, **how: Any) -> Any:
        """Make a request and return what came, which must be a success."""
        answer = self.http.request(method, path, **how)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def annotate(self, task: int, answer: str | None, closed: bool = True, **more: Any) -> Any:
        """Annotate a task; None skips it."""
        content = {"result": [], "was_cancelled": True} if answer is None else of(answer, closed)
        return self.request("POST", f"/api/tasks/{task}/annotations/", json={**content, **more})


def of(answer: str, closed: bool = True) -> dict[str, Any]:
    """Make the content of an annotation."""
    kind, value = ("choices", "choices") if closed else ("textarea", "text")
    result = {"from_name": "label", "to_name": "text", "type": kind, "value": {value: [answer]}}
    return {"result": [result]}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a server with its data in a folder, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), "start", "--no-browser", "--internal-host", "127.0.0.1"]
    command += ["--port", str(port), "--username", ADMIN, "--password", "a-password-of-a-test"]
    command += ["--user-token", ADMIN_KEY, "--enable-legacy-api-token", "--log-level", "WARNING"]
    environment = {**os.environ, **QUIET, "HOME": str(folder)}
    environment["LABEL_STUDIO_BASE_DATA_DIR"] = str(folder / "data")
    environment.pop("PYTHONPATH", None)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(PATIENCE):
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(1)
    raise AssertionError(f"Label Studio did not come up:\n{log.read_text()[-3000:]}")


@contextmanager
def admin(url: str) -> Iterator[Person]:
    """Return the administrator, whose key never expires."""
    headers = {"Authorization": f"Token {ADMIN_KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        yield Person(ADMIN, ADMIN_KEY, http)


@contextmanager
def joined(url: str, email: str, invited: str) -> Iterator[Person]:
    """Let somebody sign up by an invitation and make a key that is renewed at every use."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False, follow_redirects=True) as http:
        page = http.get(invited).text
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token, page[:2000]
        form = {"csrfmiddlewaretoken": token[1], "email": email, "password": "a-password-of-a-test"}
        answer = http.post(invited, data=form, headers={"Referer": f"{url}{invited}"})
        assert answer.is_success, answer.text[:2000]
        http.headers.update({"X-CSRFToken": http.cookies["csrftoken"], "Referer": url})
        person = Person(email, "", http)
        yield Person(email, person.request("POST", "/api/token/")["token"], http)
