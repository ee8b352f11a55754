"""Order of responses: by the time at which they were given, also where they were imported later."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlearn.campaign.event_log import Event

PREFIX = "labelstudio"
"""Start of the uuid of a response that was given in Label Studio."""

Origin = tuple[int | None, int, datetime]
"""Project, number and time of creation of an annotation, which all of its states share."""

Place = tuple[Any, ...]
"""A key that sorts the events of one log by time."""

START = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Statement:
    """One state of an annotation in Label Studio, as the uuid of its response records it."""

    project: int | None
    annotation: int
    created: datetime
    updated: datetime

    @property
    def origin(self) -> Origin:
        """The annotation."""
        return self.project, self.annotation, self.created

    @property
    def uuid(self) -> str:
        """The uuid of the response, equal for a server and its export."""
        created, updated = (
            time.astimezone(UTC).isoformat() for time in (self.created, self.updated)
        )
        return f"{PREFIX}|{self.project}|{self.annotation}|{created}|{updated}"


def statement_of(uuid: str) -> Statement | None:
    """Return the statement that a uuid records; None for a response that was given here.

    A sixth part, after the time of the change, is ignored: it distinguishes a response that was
    stored again under another annotator.

    Examples
    --------
    >>> time = "2026-01-01T00:00:00+00:00"
    >>> statement_of(f"labelstudio|1|11|{time}|{time}").annotation
    11
    """
    parts = uuid.split("|")
    if parts[0] != PREFIX or len(parts) not in (5, 6):
        return None
    created, updated = _time(parts[3]), _time(parts[4])
    try:
        project = None if parts[1] == "None" else int(parts[1])
        number = int(parts[2])
    except ValueError:
        return None
    if created is None or updated is None:
        return None
    return Statement(project, number, created, updated)


class Chronology:
    """Gives each event of a log its place in time; call `place` for all events, oldest first.

    A response from Label Studio has the time of the annotation's last change. A response that is
    given here comes after everything that the log held then, whatever the clocks say.
    """

    def __init__(self) -> None:
        self._newest = START

    def place(self, event: "Event") -> Place:
        """Return the place of the next event; for Label Studio's, any order of imports gives it."""
        statement = statement_of(event.uuid) if event.kind != "undo" else None
        if statement is None:
            self._newest = max(self._newest, _time(event.at) or START)
            return self._newest, 1, event.seq
        self._newest = max(self._newest, statement.updated)
        # Of changes at the same time, the one of the newer annotation is the later one.
        return statement.updated, 0, statement.created, statement.annotation, event.uuid, event.seq


def in_order(log: Iterable["Event"]) -> list["Event"]:
    """Return the events of a log by the time at which they were given, oldest first."""
    chronology = Chronology()
    places = [(chronology.place(event), event) for event in log]
    return [event for _, event in sorted(places, key=lambda found: found[0])]


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if found.tzinfo is None else found
