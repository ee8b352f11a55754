"""Changes of a campaign's settings: only those that labels and scores do not depend on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from starlearn.campaign import rounds
from starlearn.campaign.event_log import log_of
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.store import now
from starlearn.errors import InputError


@dataclass(frozen=True)
class SettingChange:
    """One setting that was changed after the campaign was created."""

    setting: str
    """As in "training.learning_rate"."""
    before: Any
    after: Any
    round: int
    """The newest round at that time, 0 before the first."""
    at: str
    """Time in UTC, for people to read."""


def changes_of(campaign: CampaignFolder) -> list[SettingChange]:
    """Return all changes, oldest first."""
    return [SettingChange(**change) for change in json.loads(campaign.meta.get("changes", "[]"))]


def save_settings(campaign: CampaignFolder, settings: str) -> None:
    """Store a learner's settings, and record how they differ from those before.

    `settings` is the output of `learner_settings.to_json`. The campaign's lock is held.
    """
    found = rounds.current(campaign.store)
    at, newest = now(), found.id if found else 0
    before = json.loads(campaign.meta["learner"])
    new = [
        SettingChange(name, old, value, newest, at)
        for name, old, value in _differences(before, json.loads(settings))
    ]
    recorded = [asdict(change) for change in [*changes_of(campaign), *new]]
    with campaign.store.transaction():
        campaign.store.set_meta(learner=settings, changes=json.dumps(recorded, ensure_ascii=False))


def require_unused(campaign: CampaignFolder, choice: str) -> None:
    """Raise InputError when a label of the campaign is this choice."""
    responses = log_of(campaign.store).responses()
    using = {event.item for event in responses if event.answer == choice}
    if using:
        raise InputError(
            f"{choice!r:.60} is the answer to {len(using)} items, so it cannot be removed. Change "
            "these answers first."
        )


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in after:
        old, new = before.get(name), after[name]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
