"""Push a batch to a Label Studio server and pull what was said: both may be done again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlearn.campaign import events
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.importing import Imported
from starlearn.campaign.labelstudio.client import Server, checked_url, key_from_environment
from starlearn.campaign.labelstudio.conversion import (
    UUID,
    Prediction,
    computed_predictions,
    open_batch,
    origin_of,
    stored_predictions,
    take_in,
    task_of,
)
from starlearn.campaign.labelstudio.interface import extended, interface
from starlearn.campaign.labelstudio.payload import Project, Task
from starlearn.errors import InputError, ServerError, StarlearnError

if TYPE_CHECKING:
    import httpx

META = "labelstudio"
"""Where the store keeps the address and the project; never the key."""
PIECE_TASKS, PIECE_BYTES = 100, 8 * 1024**2
"""Tasks and bytes that are sent at a time."""
PREDICTIONS = ("stored", "computed", "none")


@dataclass(frozen=True)
class Link:
    """Where a campaign's tasks are."""

    url: str
    project: int


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    link: Link
    round: int
    n_new: int
    """Tasks sent now."""
    n_same: int
    """Tasks that were there already."""
    n_predictions: int
    """Tasks, of those sent now, that bring an answer of the model."""


def link_of(campaign: Campaign) -> Link | None:
    """Return where a campaign was pushed to last; None before the first push."""
    known = campaign.meta.get(META)
    return None if known is None else Link(**json.loads(known))


def push(
    campaign: Campaign,
    url: str | None = None,
    *,
    project: int | None = None,
    new: bool = False,
    predictions: str = "stored",
    round_id: int | None = None,
    transport: "httpx.BaseTransport | None" = None,
) -> Pushed:
    """Send the items that wait for a word to Label Studio, those that are there already excepted.

    Parameters
    ----------
    campaign : Campaign
    url : str, optional
        Of the server; by default that of the last push.
    project : int, optional
        An existing project. By default that of the last push, or one that is made; of one that was
        made and whose number was lost on the way, the number is found again.
    new : bool
        Make a project, whatever there is.
    predictions : {"stored", "computed", "none"}
        What the model answered when it chose the batch, what the newest adapter answers now, or
        nothing, so that no annotator is led by a model.
    round_id : int, optional
        By default the newest round.
    transport : httpx.BaseTransport, optional
        For tests.

    Raises
    ------
    InputError
        When nothing waits for a word, key or address are wrong, or the project does not fit.
    ServerError
        When the server is down or refuses; what has arrived is found by the next push.
    """
    if new and project is not None:
        raise InputError("Give the number of a project, or ask for a new one; not both.")
    with campaign.holding("push"):
        number, items = open_batch(campaign, round_id)
        known = _predictions(campaign, number, items, predictions)
        config = interface(items[0].fields, campaign.choices)
        with _server(campaign, url, transport) as server:
            found = _project(campaign, server, project, new, config)
            link = Link(server.url, found.id)
            _remember(campaign, link)
            _fit(campaign, server, found, items)
            there = _ids(campaign, server.tasks(found.id, annotations=False))
            sent = [item for item in items if item.id not in there]
            tasks = [task_of(campaign, number, item, known.get(item.id)) for item in sent]
            _send(campaign, server, found.id, tasks)
    n_predictions = sum("predictions" in task for task in tasks)
    return Pushed(link, number, len(sent), len(items) - len(sent), n_predictions)


def pull(
    campaign: Campaign,
    url: str | None = None,
    *,
    project: int | None = None,
    relabel: Mapping[str, str] | None = None,
    transport: "httpx.BaseTransport | None" = None,
) -> Imported:
    """Store what annotators said in Label Studio, all of it or nothing; each word once.

    Parameters
    ----------
    campaign : Campaign
    url, project : optional
        By default those of the last push.
    relabel : mapping, optional
        Spellings in annotations and the choices that they mean.
    transport : httpx.BaseTransport, optional
        For tests.

    Raises
    ------
    InputError
        When it is not known where to look, or an annotation cannot be used.
    ServerError
        When the server is down, refuses, or answers what cannot be used.
    """
    number = project or _known_project(campaign, url)
    with _server(campaign, url, transport) as server:
        tasks = server.tasks(number, annotations=True)
        names = server.names()
    where = f"Project {number} of {server.url}"
    remedy = "Correct them in Label Studio, or say what they mean with --relabel, and pull again."
    done = take_in(campaign, tasks, where, remedy, names, relabel)
    gone = _gone(campaign, number, tasks)
    if gone:
        done.notes.append(
            f"{gone} annotations that were pulled earlier are no longer in Label Studio; what they "
            "said is kept."
        )
    if not names:
        done.notes.append("The key may not see the names of users: they are called user-NUMBER.")
    if link_of(campaign) != Link(server.url, number):
        with campaign.holding("pull"):
            _remember(campaign, Link(server.url, number))
    return done


def _server(
    campaign: Campaign, url: str | None, transport: "httpx.BaseTransport | None"
) -> AbstractContextManager[Server]:
    known = link_of(campaign)
    if url is None and known is None:
        raise InputError(
            "It is not known where Label Studio is. Say it once: --url http://127.0.0.1:8080"
        )
    address = checked_url(url) if url is not None else known.url if known else ""
    return Server(address, key_from_environment(), transport)


def _known_project(campaign: Campaign, url: str | None) -> int:
    known = link_of(campaign)
    if known is None or (url is not None and checked_url(url) != known.url):
        raise InputError(
            "It is not known which project to pull from. Say it: --url ADDRESS --project NUMBER; "
            f"or push a batch first: starlearn push {campaign.folder} --url ADDRESS"
        )
    return known.project


def _project(
    campaign: Campaign, server: Server, project: int | None, new: bool, config: str
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


def _remember(campaign: Campaign, link: Link) -> None:
    with campaign.store.transaction():
        campaign.store.set_meta(**{META: json.dumps(asdict(link))})


def _fit(campaign: Campaign, server: Server, found: Project, items: Sequence[BatchItem]) -> None:
    """Add to a project's interface what it lacks, such as a choice that was added since."""
    better = extended(found.label_config or "", items[0].fields, campaign.choices)
    if better is not None:
        server.set_interface(found.id, better)


def _predictions(
    campaign: Campaign, round_id: int, items: Sequence[BatchItem], which: str
) -> dict[str, Prediction]:
    if which not in PREDICTIONS:
        raise InputError(f"predictions must be one of {', '.join(PREDICTIONS)}; got {which!r:.40}.")
    if which == "computed":
        return computed_predictions(campaign, items)
    return stored_predictions(campaign, round_id) if which == "stored" else {}


def _ids(campaign: Campaign, tasks: Sequence[Task]) -> set[Any]:
    return {
        key
        for task in tasks
        if task.data.get("campaign") == campaign.id and isinstance(key := task.data.get("id"), str)
    }


def _send(campaign: Campaign, server: Server, project: int, tasks: list[dict[str, Any]]) -> None:
    """Send tasks piece by piece, and look whether all of them have arrived."""
    confirmed = 0
    try:
        for piece in _pieces(tasks):
            server.add_tasks(project, piece)
            confirmed += len(piece)
    except StarlearnError as error:
        raise type(error)(
            f"{error} {confirmed} of {len(tasks)} tasks are known to be in project {project}; the "
            "next push sends only what is missing."
        ) from error
    if not tasks:
        return
    there = _ids(campaign, server.tasks(project, annotations=False))
    missing = [task for task in tasks if task["data"]["id"] not in there]
    if missing:
        raise ServerError(
            f"{server.url} took {len(tasks)} tasks, and {len(missing)} of them are not in project "
            f"{project} yet. Look there in a while; the next push sends only what is missing."
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


def _gone(campaign: Campaign, project: int, tasks: Sequence[Task]) -> int:
    """Count standing words of a project whose annotation is no longer there."""
    there = {origin_of(task, note) for task in tasks for note in task.annotations or ()}
    words = events.standing(events.events(campaign.store))
    ours = [word.uuid for word in words if word.uuid.startswith(f"{UUID}|{project}|")]
    return sum(uuid.rpartition("|")[0] not in there for uuid in ours)
