"""Push of a batch to a Label Studio server, and pull of its annotations; both can be repeated."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from starlearn.campaign import events
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.importing import ImportResult
from starlearn.campaign.labelstudio.client import (
    LabelStudioServer,
    checked_url,
    key_from_environment,
)
from starlearn.campaign.labelstudio.conversion import (
    UUID,
    Prediction,
    computed_predictions,
    import_annotations,
    items_to_send,
    origin_of,
    stored_predictions,
    task_of,
)
from starlearn.campaign.labelstudio.interface import extended, interface
from starlearn.campaign.labelstudio.payload import LabelStudioTask, Project
from starlearn.errors import InputError, ServerError, StarlearnError

META = "labelstudio"
"""Setting of the label store with address and project. The key is never stored."""
PIECE_TASKS, PIECE_BYTES = 100, 8 * 1024**2
"""Largest number of tasks and of bytes per request."""
PREDICTIONS = ("stored", "computed", "none")


@dataclass(frozen=True)
class ProjectLink:
    """Server and project of a campaign's tasks."""

    url: str
    project: int


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
    return None if known is None else ProjectLink(**json.loads(known))


def push(
    campaign: Campaign,
    url: str | None = None,
    *,
    project: int | None = None,
    new: bool = False,
    predictions: str = "stored",
    round_id: int | None = None,
) -> PushResult:
    """Send the items that need responses to Label Studio, except those that are there.

    Address and project default to those of the last push; without one, to the project that was made
    for this campaign, or a new one. `predictions` shows annotators the model's answers from the
    query ("stored"), those of the newest adapter ("computed"), or "none", so that no annotator is
    influenced by a model. After a ServerError, the next push sends only what is missing.
    """
    if new and project is not None:
        raise InputError("Use either the number of a project or a new project, not both.")
    with campaign.holding("push"):
        number, items = items_to_send(campaign, round_id)
        known = _predictions(campaign, number, items, predictions)
        config = interface(items[0].fields, campaign.choices)
        with closing(_server(campaign, url)) as server:
            found = _project(campaign, server, project, new, config)
            link = ProjectLink(server.url, found.id)
            _remember(campaign, link)
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
) -> ImportResult:
    """Store the annotations of a Label Studio project: all of them, or none; each once.

    Address and project default to those of the last push. `relabel` maps spellings to choices.
    """
    number = project or _known_project(campaign, url)
    with closing(_server(campaign, url)) as server:
        tasks = server.tasks(number, annotations=True)
        names = server.names()
    where = f"Project {number} of {server.url}"
    remedy = "Correct them in Label Studio and pull again."
    done = import_annotations(campaign, tasks, where, remedy, names, relabel)
    gone = _gone(campaign, number, tasks)
    if gone:
        done.notes.append(
            f"{gone} annotations that were pulled earlier are no longer in Label Studio. Their "
            "responses are kept."
        )
    if not names:
        done.notes.append("The key cannot read the names of users: they are called user-NUMBER.")
    if link_of(campaign) != ProjectLink(server.url, number):
        with campaign.holding("pull"):
            _remember(campaign, ProjectLink(server.url, number))
    return done


def _server(campaign: Campaign, url: str | None) -> LabelStudioServer:
    known = link_of(campaign)
    if url is None and known is None:
        raise InputError(
            "The address of Label Studio is unknown. Give it once: --url http://127.0.0.1:8080"
        )
    address = checked_url(url) if url is not None else known.url if known else ""
    return LabelStudioServer(address, key_from_environment())


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


def _remember(campaign: Campaign, link: ProjectLink) -> None:
    with campaign.store.transaction():
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
    there = {origin_of(task, note) for task in tasks for note in task.annotations or ()}
    responses = events.current_responses(events.events(campaign.store))
    ours = [event.uuid for event in responses if event.uuid.startswith(f"{UUID}|{project}|")]
    return sum(uuid.rpartition("|")[0] not in there for uuid in ours)
