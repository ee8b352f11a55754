"""A Label Studio server, called through its own client, with checked data and our errors."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from starlearn.campaign.labelstudio.payload import (
    PROJECT,
    PROJECTS,
    TASKS,
    USERS,
    LabelStudioTask,
    Project,
    checked,
)
from starlearn.errors import InputError, MissingDependencyError, ServerError, StarlearnError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

KEY = "LABEL_STUDIO_API_KEY"
"""Environment variable with the key. The key comes from nowhere else and is never written."""
SECRET = re.compile(r"\b(Token|Bearer) \S+")
"""A key, or a token derived from it, as it appears in a request."""
SECONDS = 60.0
"""Timeout of a request."""
PAGE = 100
"""Number of tasks per page."""
MAX_PAGES = 10_000
ONCE: Any = {"max_retries": 0}
"""The client must not repeat a request that may have been executed; the next push checks."""

T = TypeVar("T")
P = TypeVar("P", Project, LabelStudioTask)


def key_from_environment() -> str:
    """Return the key; InputError, which never holds the key, where it cannot be used."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise InputError(
            f"The key of Label Studio is not set. Copy it from Account & Settings > Access Token "
            f"there, and type: export {KEY}=..."
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(f"{KEY} holds characters that a key cannot have. Copy the key again.")
    return key


def checked_url(url: str) -> str:
    """Return the address of a web server without a final slash; it must not hold a password."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError:
        usable, secret = False, False
    if not usable or parts.query or parts.fragment or not url.isprintable():
        raise InputError(
            "--url must be the address of a Label Studio server, such as http://127.0.0.1:8080."
        )
    if secret:
        raise InputError(f"--url must not hold a user or password: the key comes from {KEY}.")
    return url.strip().rstrip("/")


class LabelStudioServer:
    """A Label Studio server at an address from `checked_url`."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        try:
            with warnings.catch_warnings():  # it warns about newer versions of pydantic
                warnings.simplefilter("ignore")
                import httpx
                from label_studio_sdk import LabelStudio
        except ImportError as error:
            raise MissingDependencyError(
                "The client of Label Studio is not installed. Type: pip install "
                "'starlearn[labelstudio]'; without it: starlearn export FOLDER tasks.json."
            ) from error
        from starlearn.campaign.labelstudio.transport import LimitedTransport, plain_transport

        self._http = httpx.Client(
            transport=LimitedTransport(plain_transport(url), url),
            timeout=SECONDS,
            follow_redirects=False,  # the key must go only to the given address
        )
        try:
            with self._errors_about("the key"):
                # The final slash keeps the path of the address.
                self._client = LabelStudio(
                    base_url=f"{url}/", api_key=key, timeout=SECONDS, httpx_client=self._http
                )
        except StarlearnError:  # such as an expired key
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # Projects

    def project(self, number: int) -> Project:
        """Return a project."""
        with self._errors_about(f"project {number}"):
            found = self._client.projects.get(number, request_options=ONCE)
            return self._validated(PROJECT, found)

    def project_of(self, campaign: str) -> Project | None:
        """Return the oldest project that was made for a campaign, or None."""

        def request_page(page: int) -> Any:
            return self._client.projects.list(
                page=page, page_size=PAGE, ordering="id", request_options=ONCE
            )

        with self._errors_about("the list of projects"):
            for project in self._paged(request_page, PROJECTS):
                if campaign in (project.description or ""):
                    return project
        return None

    def make_project(self, title: str, campaign: str, config: str, per_item: int) -> Project:
        """Make a project for a campaign."""
        with self._errors_about("a new project"):
            made = self._client.projects.create(
                title=title[:50],
                description=f"Made by starlearn for the campaign {campaign}.",
                label_config=config,
                maximum_annotations=per_item,
                request_options=ONCE,
            )
            return self._validated(PROJECT, made)

    def set_interface(self, number: int, config: str) -> None:
        """Change the labelling interface of a project."""
        with self._errors_about(f"the labelling interface of project {number}"):
            self._client.projects.update(number, label_config=config, request_options=ONCE)

    # Tasks and users

    def add_tasks(self, number: int, tasks: Sequence[dict[str, Any]]) -> None:
        """Send tasks to a project."""
        request: Any = list(tasks)
        with self._errors_about(f"new tasks for project {number}"):
            self._client.projects.import_tasks(number, request=request, request_options=ONCE)

    def tasks(self, number: int, *, annotations: bool) -> list[LabelStudioTask]:
        """Return all tasks of a project, with or without annotations."""
        options: dict[str, Any] = {"fields": "all"}
        if not annotations:
            options = {"fields": "task_only", "include": "id,data"}

        def request_page(page: int) -> Any:
            return self._client.tasks.list(
                project=number,
                page=page,
                page_size=PAGE,
                resolve_uri=False,  # texts must not be read as addresses
                request_options=ONCE,
                **options,
            )

        with self._errors_about(f"the tasks of project {number}"):
            return list(self._paged(request_page, TASKS))

    def names(self) -> dict[int, str]:
        """Return the email or name of users by number; empty where the key cannot read them."""
        try:
            with self._errors_about("the list of users"):
                users = self._validated(USERS, self._client.users.list(request_options=ONCE))
        except _ForbiddenError:
            return {}
        return {user.id: user.name for user in users if user.name is not None}

    def _paged(
        self, request_page: Callable[[int], Any], kind: "TypeAdapter[list[P]]"
    ) -> Iterator[P]:
        """Yield the parts of all pages, whatever page size the server uses."""
        seen: set[int] = set()
        for page in range(1, MAX_PAGES):
            try:
                pager = request_page(page)
            except Exception as error:
                if page > 1 and getattr(error, "status_code", None) == 404:
                    return  # after the last page
                raise
            fresh = [part for part in self._validated(kind, pager.items) if part.id not in seen]
            yield from fresh
            seen.update(part.id for part in fresh)
            total = getattr(pager.response, "total", getattr(pager.response, "count", None))
            if not fresh or (isinstance(total, int) and len(seen) >= total):
                return

    # Errors

    def _validated(self, kind: "TypeAdapter[T]", value: Any) -> T:
        try:
            return checked(kind, value)
        except InputError as error:
            raise ServerError(
                f"{self.url} returned data that cannot be used ({error}). Is it Label Studio "
                "1.20 or newer? Nothing was changed here."
            ) from error

    @contextmanager
    def _errors_about(self, what: str) -> Iterator[None]:
        """Raise our errors in place of those of the client, and hide its warnings."""
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except StarlearnError:
            raise
        except ApiError as error:
            raise self._refused(what, error.status_code or 0, error.headers, error.body) from None
        except httpx.TimeoutException:
            raise ServerError(
                f"{self.url} did not answer within {SECONDS:.0f} s to a request about {what}. Run "
                "the command again: tasks that have arrived are not sent twice."
            ) from None
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url} cannot be reached ({self._safe(str(error))}). Is Label Studio "
                f"running there? Try: curl {self.url}/health"
            ) from None
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ServerError(
                f"{self.url} returned data about {what} that its own client cannot read "
                f"({type(error).__name__}: {self._safe(str(error))}). Nothing was changed here."
            ) from None

    def _refused(self, what: str, status: int, headers: Any, body: Any) -> StarlearnError:
        reason = self._safe(_error_text(body))
        if status == 401:
            return InputError(
                f"{self.url} does not accept the key in {KEY} (401: {reason}). Copy it again from "
                f"Account & Settings > Access Token, and type: export {KEY}=..."
            )
        if status == 403:
            return _ForbiddenError(
                f"{self.url}: the user of this key has no permission for {what} (403: {reason}). "
                "Ask for it, or use the key of another user."
            )
        if status == 404:
            return InputError(
                f"{self.url} cannot find {what}, or hides it from this user (404: {reason}). "
                "Name the project: --project NUMBER; or make one: starlearn push FOLDER --new."
            )
        if 300 <= status < 400:
            target = self._safe(str((headers or {}).get("location", "another address")))
            return InputError(
                f"{self.url} redirects to {target}. Use that address as --url if you trust it "
                "with the key."
            )
        if status < 300:
            return ServerError(
                f"{self.url} does not answer like Label Studio to a request about {what} "
                f"({reason}). Check --url."
            )
        return ServerError(
            f"{self.url} refused {what} ({status}: {reason}). Nothing was lost here. Check the "
            "server's log, and run the command again."
        )

    def _safe(self, text: str) -> str:
        """Return a text of the server, shortened and without the key."""
        return " ".join(SECRET.sub(r"\1 ***", text.replace(self._key, "***")).split())[:300]


class _ForbiddenError(InputError):
    """A request that the user has no permission for."""


def _error_text(body: Any) -> str:
    if not isinstance(body, dict):
        return str(body)
    parts = [body.get("detail"), body.get("validation_errors")]
    return ": ".join(str(part) for part in parts if part) or str(body)
