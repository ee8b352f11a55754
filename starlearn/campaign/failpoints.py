"""Failpoints: named places at which a test lets the process die, as a power cut would."""

import os

FAILPOINTS = (
    "create_snapshot_written",
    "create_store_written",
    "create_renamed",
    "query_marked",
    "query_scored",
    "query_scores_written",
    "query_issued",
    "label_written",
    "label_committed",
    "teach_backed_up",
    "teach_marked",
    "teach_trained",
    "publish_began",
    "publish_written",
    "publish_synced",
    "publish_manifest_written",
    "publish_checked",
    "publish_renamed",
    "publish_parent_synced",
    "publish_recorded",
    "teach_exported",
)
"""Every failpoint there is. Tests kill at each of them."""

VARIABLE = "STARLEARN_FAILPOINT"


def failpoint(name: str) -> None:
    """Die here, without any clean-up, when the environment asks for it; otherwise do nothing."""
    if os.environ.get(VARIABLE) == name:
        os._exit(137)
