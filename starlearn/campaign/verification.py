"""Verification of a whole label store: every row that has a checksum is read from the disk."""

import json

from starlearn.campaign import rounds
from starlearn.campaign.event_log import log_of
from starlearn.campaign.store import Store

SETTINGS = ("learner", "pool", "options", "first")
"""Settings of every campaign, as JSON."""


def verify(store: Store) -> None:
    """Read settings, events, items, rounds and batches; CampaignCorruptError if one is damaged.

    Rows that were in memory are read again.
    """
    with store.mutex:
        store.kept.clear()
        meta = store.meta()
        if not meta.get("campaign"):
            raise store.corrupt("the setting 'campaign' is missing")
        for name in SETTINGS:
            try:
                json.loads(meta[name])
            except (KeyError, ValueError) as error:
                raise store.corrupt(f"the setting {name!r} is missing or is not JSON") from error
        log_of(store)
        rounds.contents(store)
        for found in rounds.rounds(store):
            rounds.batch_of(store, found.id)
