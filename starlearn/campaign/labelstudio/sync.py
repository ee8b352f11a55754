"""Push of a batch to a Label Studio server, and pull of its annotations; both can be repeated."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.chronology import statement_of
from starlearn.campaign.event_log import log_of
from starlearn.campaign.importing import ImportResult
from starlearn.campaign.labelstudio import confirmed
from starlearn.campaign.labelstudio.client import (
    LabelStudioServer,
    checked_url,
    key_from_environment,
)
from starlearn.campaign.labelstudio.conversion import (
    Prediction,
    computed_predictions,
    import_annotations,
    items_to_send,
    stored_predictions,
    task_of,
)
from starlearn.campaign.labelstudio.interface import extended, interface
from starlearn.campaign.labelstudio.payload import LabelStudioTask, Project
from starlearn.errors import InputError, ServerError, StarlearnError
from starlearn.storage.lock import Lock

META = "labelstudio"
"""Setting of the label store with address and project. The key is never stored."""
PIECE_TASKS, PIECE_BYTES = 100, 8 * 1024**2
"""Largest number of tasks and of bytes per request."""
PREDICTIONS = ("stored", "computed", "none")
PUSH_LOCK = ".push.lock"
"""Name of the lock file that keeps two pushes from sending the same tasks."""
Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class ProjectLink:
    """Server and project of a campaign's tasks."""

    url: str
    project: int


LINK = TypeAdapter(ProjectLink)


@dataclass(frozen=True)
class PushResult:
    """Counts of one push."""

    link: ProjectLink
    n_new: int
    """Tasks that were sent."""
    n_same: int
    """Tasks that were in the project before."""
    n_predictions: int
    """Sent tasks with an answer of the model."""


def link_of(campaign: Campaign) -> ProjectLink | None:
    """Return server and project of the last push; None before the first push."""
    known = campaign.meta.get(META)
    if known is None:
        return None
    try:
        link = LINK.validate_json(known)
        return ProjectLink(checked_url(link.url), link.project)
    except (ValidationError, InputError):
        raise campaign.store.corrupt(f"the setting {META!r} cannot be read") from None


def push(
    campaign: Campaign,
    url: str | None = None,
    *,
    project: int | None = None,
    new: bool = False,
    predictions: str = "stored",
    round_id: int | None = None,
    confirm: Confirm | None = None,
) -> PushResult:
    """Send the items that need responses to Label Studio, except those that are there.

    Address and project default to those of the last push; without one, to the project that was made
    for this campaign, or a new one. `predictions` shows annotators the model's answers from the
    query ("stored"), those of the newest adapter ("computed"), or "none", so that no annotator is
    influenced by a model. After a ServerError, the next push sends only what is missing.

    The key is sent to an address that only the campaign names after this user has given the address
    as `url` once on this machine, or `confirm(address)` returns True. The campaign's lock is not
    held during requests, so that labelling goes on.
    """
    if new and project is not None:
        raise InputError("Use either the number of a project or a new project, not both.")
    address = _address(campaign, url, confirm, "push")
    with Lock(campaign.folder / PUSH_LOCK).held("push"):
        with campaign.holding("push"):
            number, items = items_to_send(campaign, round_id)
        known = _predictions(campaign, number, items, predictions)
        config = interface(items[0].fields, campaign.choices)
        with closing(LabelStudioServer(address, key_from_environment())) as server:
            found = _project(campaign, server, project, new, config)
            link = ProjectLink(server.url, found.id)
            _remember(campaign, link, "push")
            extension = extended(found.label_config or "", items[0].fields, campaign.choices)
            if extension is not None:
                server.set_interface(found.id, extension)
            there = _ids(campaign, server.tasks(found.id, annotations=False))
            sent = [item for item in items if item.id not in there]
            tasks = [task_of(campaign, number, item, known.get(item.id)) for item in sent]
            _send(campaign, server, found.id, tasks)
    n_predictions = sum("predictions" in task for task in tasks)
    return PushResult(link, len(sent), len(items) - len(sent), n_predictions)


def pull(
    campaign: Campaign,
    url: str | None = None,
    *,
    project: int | None = None,
    relabel: Mapping[str, str] | None = None,
    confirm: Confirm | None = None,
) -> ImportResult:
    """Store the annotations of a Label Studio project: all of them, or none; each once.

    Address and project default to those of the last push. `relabel` maps spellings to choices, and
    `confirm` is used as by :func:`push`.
    """
    number = project or _known_project(campaign, url)
    address = _address(campaign, url, confirm, "pull")
    with closing(LabelStudioServer(address, key_from_environment())) as server:
        tasks = server.tasks(number, annotations=True)
        names = server.names()
    done = import_annotations(
        campaign,
        tasks,
        f"Project {number} of {address}",
        "Correct them in Label Studio and pull again.",
        names=names,
        server=address,
        relabel=relabel,
    )
    gone = _gone(campaign, number, tasks)
    if gone:
        done.notes.append(
            f"{gone} annotations that were pulled earlier are no longer in Label Studio. Their "
            "responses are kept."
        )
    _remember(campaign, ProjectLink(address, number), "pull")
    return done


def _address(campaign: Campaign, url: str | None, confirm: Confirm | None, command: str) -> str:
    """Return the address to which the key may be sent; InputError where nobody has confirmed it."""
    if url is not None:
        address = checked_url(url)
    else:
        known = link_of(campaign)
        if known is None:
            raise InputError(
                "The address of Label Studio is unknown. Give it once: --url http://127.0.0.1:8080"
            )
        address = known.url
        if confirmed.is_confirmed(address):
            return address
        if confirm is None or not confirm(address):
            words = ["starlearn", command, str(campaign.folder), "--url", address]
            raise InputError(
                f"The campaign names the server {address!a}, which you have not confirmed on this "
                "machine. Your key was not sent: whoever runs that server could use it. If you "
                f"trust the server, type: {shlex.join(words)}"
            )
    confirmed.remember(address)
    return address


def _known_project(campaign: Campaign, url: str | None) -> int:
    known = link_of(campaign)
    if known is None or (url is not None and checked_url(url) != known.url):
        raise InputError(
            "The project to pull from is unknown. Give it: --url ADDRESS --project NUMBER; "
            f"or push a batch first: starlearn push {campaign.folder} --url ADDRESS"
        )
    return known.project


def _project(
    campaign: Campaign, server: LabelStudioServer, project: int | None, new: bool, config: str
) -> Project:
    known = link_of(campaign)
    if project is None and not new:
        if known is not None and known.url == server.url:
            project = known.project
        else:
            made = server.project_of(campaign.id)
            project = made.id if made is not None else None
    if project is not None and not new:
        return server.project(project)
    title = f"starlearn {campaign.folder.name}"
    return server.make_project(title, campaign.id, config, campaign.options["per_item"])


def _remember(campaign: Campaign, link: ProjectLink, command: str) -> None:
    if link != link_of(campaign):
        with campaign.holding(command), campaign.store.transaction():
            campaign.store.set_meta(**{META: json.dumps(asdict(link))})


def _predictions(
    campaign: Campaign, round_id: int, items: Sequence[BatchItem], which: str
) -> dict[str, Prediction]:
    if which not in PREDICTIONS:
        raise InputError(f"predictions must be one of {', '.join(PREDICTIONS)}; got {which!r:.40}.")
    if which == "computed":
        return computed_predictions(campaign, items)
    return stored_predictions(campaign, round_id) if which == "stored" else {}


def _ids(campaign: Campaign, tasks: Sequence[LabelStudioTask]) -> set[Any]:
    return {
        key
        for task in tasks
        if task.data.get("campaign") == campaign.id and isinstance(key := task.data.get("id"), str)
    }


def _send(
    campaign: Campaign, server: LabelStudioServer, project: int, tasks: list[dict[str, Any]]
) -> None:
    """Send tasks in pieces, and check that all of them have arrived."""
    confirmed = 0
    try:
        for piece in _pieces(tasks):
            server.add_tasks(project, piece)
            confirmed += len(piece)
    except StarlearnError as error:
        raise type(error)(
            f"{error} At least {confirmed} of {len(tasks)} tasks are in project {project}. The "
            "next push sends only what is missing."
        ) from error
    if not tasks:
        return
    there = _ids(campaign, server.tasks(project, annotations=False))
    missing = [task for task in tasks if task["data"]["id"] not in there]
    if missing:
        raise ServerError(
            f"{server.url} accepted {len(tasks)} tasks, but {len(missing)} of them are not in "
            f"project {project} yet. Check again later. The next push sends only what is missing."
        )


def _pieces(tasks: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    piece: list[dict[str, Any]] = []
    size = 0
    for task in tasks:
        length = len(json.dumps(task))
        if piece and (len(piece) == PIECE_TASKS or size + length > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(task)
        size += length
    if piece:
        yield piece


def _gone(campaign: Campaign, project: int, tasks: Sequence[LabelStudioTask]) -> int:
    """Count current responses from a project whose annotations were deleted there."""
    there = {
        (note.id, note.created_at or note.updated_at)
        for task in tasks
        for note in task.annotations or ()
    }
    found = [statement_of(event.uuid) for event in log_of(campaign.store).responses()]
    return sum(
        (statement.annotation, statement.created) not in there
        for statement in found
        if statement is not None and statement.project == project
    )
