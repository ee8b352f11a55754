"""One Label Studio server, asked through its own client: answers are checked, errors are ours."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from starlearn.campaign.labelstudio.payload import (
    PROJECT,
    PROJECTS,
    TASKS,
    USERS,
    Project,
    Task,
    checked,
)
from starlearn.errors import InputError, MissingDependencyError, ServerError, StarlearnError

if TYPE_CHECKING:
    import httpx
    from pydantic import TypeAdapter

KEY = "LABEL_STUDIO_API_KEY"
"""The environment variable with the key; it is read from nowhere else and written nowhere."""
SECRET = re.compile(r"\b(Token|Bearer) \S+")
"""What is derived from a key, too, stands so in a request."""
SECONDS = 60.0
"""Without an answer for so long, a request is given up."""
PAGE = 100
"""Tasks asked for at a time."""
MOST_PAGES = 10_000
ONCE: Any = {"max_retries": 0}
"""A request that may have been carried out is not repeated by the client: the next push looks."""

T = TypeVar("T")
P = TypeVar("P", Project, Task)


def key_from_environment() -> str:
    """Return the key; InputError where there is none, and never with what it is."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise InputError(
            f"The key of Label Studio is not set. Copy it from Account & Settings > Access Token "
            f"there, and type: export {KEY}=..."
        )
    if not key.isascii() or not key.isprintable():
        raise InputError(f"{KEY} holds characters that no key has. Copy the key anew.")
    return key


def checked_url(url: str) -> str:
    """Return the address of a server without a slash at its end.

    Raises
    ------
    InputError
        When it is no address of a web server, or carries a password.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError:
        usable, secret = False, False
    if not usable or parts.query or parts.fragment or not url.isprintable():
        raise InputError(
            "--url must be the address of a Label Studio, such as http://127.0.0.1:8080."
        )
    if secret:
        raise InputError(f"--url must hold no user or password: the key comes from {KEY}.")
    return url.strip().rstrip("/")


class Server:
    """A Label Studio server.

    Parameters
    ----------
    url : str
        As :func:`checked_url` gives it.
    key : str
    transport : httpx.BaseTransport, optional
        Carries requests; a test puts its own here.
    """

    def __init__(self, url: str, key: str, transport: "httpx.BaseTransport | None" = None) -> None:
        self.url, self._key = url, key
        try:
            with warnings.catch_warnings():  # it is written for an older pydantic, and warns
                warnings.simplefilter("ignore")
                import httpx
                from label_studio_sdk import LabelStudio
        except ImportError as error:
            raise MissingDependencyError(
                "Label Studio is asked through its client, which is not installed. Type: pip "
                "install 'starlearn[labelstudio]'; without it: starlearn export FOLDER tasks.json."
            ) from error
        from starlearn.campaign.labelstudio.transport import Guarded, plain_transport

        self._http = httpx.Client(
            transport=Guarded(transport or plain_transport(url), url),
            timeout=SECONDS,
            follow_redirects=False,  # the key goes to the address that was typed
        )
        try:
            with self._telling("the key"):
                # With a slash, so that an address with a path keeps it.
                self._client = LabelStudio(
                    base_url=f"{url}/", api_key=key, timeout=SECONDS, httpx_client=self._http
                )
        except StarlearnError:  # such as a key that has ended
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Projects

    def project(self, number: int) -> Project:
        """Return a project."""
        with self._telling(f"project {number}"):
            found = self._client.projects.get(number, request_options=ONCE)
            return self._taken(PROJECT, found)

    def project_of(self, campaign: str) -> Project | None:
        """Return the project that was made for a campaign; the oldest, None where there is none."""

        def ask(page: int) -> Any:
            return self._client.projects.list(
                page=page, page_size=PAGE, ordering="id", request_options=ONCE
            )

        with self._telling("the list of projects"):
            for project in self._paged(ask, PROJECTS):
                if campaign in (project.description or ""):
                    return project
        return None

    def make_project(self, title: str, campaign: str, config: str, per_item: int) -> Project:
        """Make a project for a campaign."""
        with self._telling("a new project"):
            made = self._client.projects.create(
                title=title[:50],
                description=f"Made by starlearn for the campaign {campaign}.",
                label_config=config,
                maximum_annotations=per_item,
                request_options=ONCE,
            )
            return self._taken(PROJECT, made)

    def set_interface(self, number: int, config: str) -> None:
        """Give a project another labelling interface."""
        with self._telling(f"the labelling interface of project {number}"):
            self._client.projects.update(number, label_config=config, request_options=ONCE)

    # Tasks and users

    def add_tasks(self, number: int, tasks: Sequence[dict[str, Any]]) -> None:
        """Send tasks to a project."""
        request: Any = list(tasks)
        with self._telling(f"new tasks for project {number}"):
            self._client.projects.import_tasks(number, request=request, request_options=ONCE)

    def tasks(self, number: int, *, annotations: bool) -> list[Task]:
        """Return all tasks of a project, page by page, with or without annotations."""
        how: dict[str, Any] = {"fields": "all"}
        if not annotations:
            how = {"fields": "task_only", "include": "id,data"}

        def ask(page: int) -> Any:
            return self._client.tasks.list(
                project=number,
                page=page,
                page_size=PAGE,
                resolve_uri=False,  # a text is no address to be signed
                request_options=ONCE,
                **how,
            )

        with self._telling(f"the tasks of project {number}"):
            return list(self._paged(ask, TASKS))

    def names(self) -> dict[int, str]:
        """Return the email or name of each user by number; empty where the key may not see them."""
        try:
            with self._telling("the list of users"):
                users = self._taken(USERS, self._client.users.list(request_options=ONCE))
        except _RefusedError:
            return {}
        return {user.id: user.email or user.username or f"user-{user.id}" for user in users}

    def _paged(self, ask: Callable[[int], Any], kind: "TypeAdapter[list[P]]") -> Iterator[P]:
        """Yield what stands on all pages, whatever the server takes for the size of a page."""
        seen: set[int] = set()
        for page in range(1, MOST_PAGES):
            try:
                pager = ask(page)
            except Exception as error:
                if page > 1 and getattr(error, "status_code", None) == 404:
                    return  # behind the last page
                raise
            fresh = [part for part in self._taken(kind, pager.items) if part.id not in seen]
            yield from fresh
            seen.update(part.id for part in fresh)
            total = getattr(pager.response, "total", getattr(pager.response, "count", None))
            if not fresh or (isinstance(total, int) and len(seen) >= total):
                return

    # Errors

    def _taken(self, kind: "TypeAdapter[T]", value: Any) -> T:
        try:
            return checked(kind, value)
        except InputError as error:
            raise ServerError(
                f"{self.url} answers what cannot be used ({error}). Is it a Label Studio of "
                "version 1.20 or newer? Nothing was changed here."
            ) from error

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Turn errors of the client into ours; what the client warns of is not for users."""
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
                f"{self.url} did not answer within {SECONDS:.0f} s when asked for {what}. Type the "
                "command again: what has arrived is not sent twice."
            ) from None
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url} cannot be reached ({self._safe(str(error))}). Is Label Studio "
                f"running there? Try: curl {self.url}/health"
            ) from None
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ServerError(
                f"{self.url} answers what its own client cannot read, when asked for {what} "
                f"({type(error).__name__}: {self._safe(str(error))}). Nothing was changed here."
            ) from None

    def _refused(self, what: str, status: int, headers: Any, body: Any) -> StarlearnError:
        said = self._safe(_spoken(body))
        if status == 401:
            return InputError(
                f"{self.url} does not accept the key in {KEY} (401: {said}). Copy it anew from "
                f"Account & Settings > Access Token, and type: export {KEY}=..."
            )
        if status == 403:
            return _RefusedError(
                f"{self.url}: the user of this key may not see or change {what} (403: {said}). Ask "
                "for the rights, or take the key of somebody who has them."
            )
        if status == 404:
            return InputError(
                f"{self.url} does not find {what}, or not for the user of this key (404: {said}). "
                "Say which project: --project NUMBER; or make one: starlearn push FOLDER --new."
            )
        if 300 <= status < 400:
            target = self._safe(str((headers or {}).get("location", "another address")))
            return InputError(
                f"{self.url} sends on to {target}. Give --url as it is there, so that the key goes "
                "where you say."
            )
        if status < 300:
            return ServerError(
                f"{self.url} does not answer as a Label Studio does, when asked for {what} "
                f"({said}). Check --url."
            )
        return ServerError(
            f"{self.url} refused {what} ({status}: {said}). Nothing was lost here; look at the "
            "server's log, and type the command again."
        )

    def _safe(self, text: str) -> str:
        """Cut a text of the server short, and never with the key in it."""
        return " ".join(SECRET.sub(r"\1 ***", text.replace(self._key, "***")).split())[:300]


class _RefusedError(InputError):
    """A user without the right to something."""


def _spoken(body: Any) -> str:
    if not isinstance(body, dict):
        return str(body)
    said = [str(body.get("detail") or "")]
    wrong = body.get("validation_errors")
    return ": ".join(filter(None, [*said, str(wrong) if wrong else ""])) or str(body)
