"""Authors of annotations: which accounts of Label Studio are one annotator of the campaign."""

import re
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from starlearn.campaign import events
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.chronology import Origin, Statement, statement_of
from starlearn.campaign.events import Event
from starlearn.campaign.labelstudio.payload import Annotation, LabelStudioTask, Part, User
from starlearn.campaign.responses import checked_name

USERS = "labelstudio_users"
"""Setting of the label store with the users of each server, by its address. An export does not name
its server, so users of exports are kept by project."""

UNKNOWN_USER = "label-studio"
"""Annotator of an annotation whose account was deleted; others on the item have a number."""
NUMBERED = re.compile(r"user-(\d+)")
UNKNOWN = re.compile(rf"{UNKNOWN_USER}(-\d+)?")

Note = tuple[LabelStudioTask, Annotation, Statement]


class ServerUsers(Part):
    """Users of one server, or of the exports of one project."""

    projects: frozenset[int]
    names: dict[int, str]
    """Names of their annotators by number."""


KNOWN = TypeAdapter(dict[str, ServerUsers])


class Authors:
    """Annotators of the annotations of one server, or of one export.

    An annotation keeps its author when it is changed, and when its author's account is deleted. An
    account has the name under which the campaign knows one of its annotations; otherwise the name
    that the source gives, or that an earlier source of the same project gave; otherwise its
    number. Each annotation of a deleted account has an annotator of its own.

    Parameters
    ----------
    campaign : Campaign
        Its lock must be held until the annotations are stored.
    notes : sequence of (task, annotation, statement)
        The annotations of the source that belong to the campaign.
    names : mapping
        Names by number, where the source knows them.
    server : str
        Address of the source; empty for an export, which does not name it.
    """

    def __init__(
        self,
        campaign: Campaign,
        notes: Sequence[Note],
        names: Mapping[int, str],
        server: str = "",
    ) -> None:
        self.campaign, self.server = campaign, server
        self._known = _known_users(campaign)
        self._projects = {task.project for task, _, _ in notes}
        if server in self._known:
            self._projects |= self._known[server].projects
        self._used: set[tuple[int | None, int]] = set()
        log = events.events(campaign.store)
        undone = {event.undoes for event in log}
        self._stored = [
            (event, statement)
            for event in log
            if event.kind != "undo" and event.seq not in undone
            if (statement := statement_of(event.uuid)) is not None
        ]
        self._by_origin: dict[Origin, str] = {}
        self._origins: dict[tuple[str, str], Origin] = {}
        for event, statement in self._stored:
            before = self._by_origin.get(statement.origin, UNKNOWN_USER)
            if _certainty(event.annotator) >= _certainty(before):
                self._by_origin[statement.origin] = event.annotator
            self._origins.setdefault((event.item, event.annotator), statement.origin)
        self._names = names
        self._shown: dict[tuple[int | None, int], str] = {}
        """Names by project and number that the annotations show."""
        for task, note, statement in notes:
            number, name = _account(note)
            stored = self._by_origin.get(statement.origin, UNKNOWN_USER)
            if number is not None and _certainty(stored) == 2:
                self._shown[task.project, number] = stored
            elif number is not None and name is not None:
                self._shown.setdefault((task.project, number), name)

    def author(self, item: str, note: Annotation, statement: Statement) -> str:
        """Return the annotator of an annotation; InputError for a name that cannot be used."""
        found = self._by_origin.get(statement.origin)
        number, _ = _account(note)
        if number is not None and (found is None or _certainty(found) < 2):
            found = self._name(statement.project, number)
        elif found is None:
            found = self._vacant(item, statement.origin)
        self._by_origin[statement.origin] = found
        if number is not None:
            self._used.add((statement.project, number))
        return found

    def moves(self) -> list[tuple[Event, str]]:
        """Return stored responses of annotators who are now known better, with their names."""
        found = []
        for event, statement in self._stored:
            name = self._by_origin[statement.origin]
            numbered = NUMBERED.fullmatch(name)
            if numbered and statement.project in self._projects:
                self._used.add((statement.project, int(numbered[1])))
                name = self._name(statement.project, int(numbered[1]))
            elif name == UNKNOWN_USER:  # an earlier version gave it to all of an item's
                name = self._vacant(event.item, statement.origin)
            self._by_origin[statement.origin] = name
            if name != event.annotator:
                found.append((event, name))
        return found

    def remember(self) -> None:
        """Store the names of the annotators, for exports that know only their numbers."""
        known = dict(self._known)
        for project, number in sorted(self._used, key=str):
            name = self._shown.get((project, number), self._names.get(number))
            if project is None or name is None:
                continue
            source = self.server or f"project {project}"
            users = known.get(source, ServerUsers(projects=frozenset(), names={}))
            known[source] = ServerUsers(
                projects=users.projects | {project}, names=users.names | {number: name}
            )
        if known != self._known:
            with self.campaign.store.transaction():
                self.campaign.store.set_meta(**{USERS: KNOWN.dump_json(known).decode()})

    def _name(self, project: int | None, number: int) -> str:
        name = self._shown.get((project, number), self._names.get(number))
        if name is None:
            found = {
                users.names[number]
                for source, users in self._known.items()
                if number in users.names
                if source == self.server
                or (project in users.projects and not (self.server and "://" in source))
            }
            # Two servers can each have a user of this number in a project of this number.
            name = found.pop() if len(found) == 1 else f"user-{number}"
        return checked_name(name)

    def _vacant(self, item: str, origin: Origin) -> str:
        """Return a name that no other annotation of an unknown author has on this item."""
        name, number = UNKNOWN_USER, 1
        while self._origins.setdefault((item, name), origin) != origin:
            number += 1
            name = f"{UNKNOWN_USER}-{number}"
        return name


def is_numbered(annotator: str) -> bool:
    """Whether an annotator is a user of Label Studio of whom only the number is known."""
    return NUMBERED.fullmatch(annotator) is not None


def _certainty(annotator: str) -> int:
    """Return 0 for an unknown author, 1 for a number, 2 for a name."""
    if UNKNOWN.fullmatch(annotator):
        return 0
    return 1 if NUMBERED.fullmatch(annotator) else 2


def _account(note: Annotation) -> tuple[int | None, str | None]:
    """Return number and name of the account of an annotation."""
    if isinstance(note.completed_by, User):
        return note.completed_by.id, note.completed_by.name
    return note.completed_by, None


def _known_users(campaign: Campaign) -> dict[str, ServerUsers]:
    try:
        return KNOWN.validate_json(campaign.meta.get(USERS, "{}"))
    except ValidationError:
        raise campaign.store.corrupt(f"the setting {USERS!r} cannot be read") from None
