"""Failpoints: named lines at which a test kills the process, as a power cut would."""

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
"""The failpoints of a round, in the order in which it passes them. Tests kill at each of them."""

RESTORE_FAILPOINTS = ("restore_written", "restore_moved", "restore_renamed")
"""The failpoints of a restore."""

VARIABLE = "STARLEARN_FAILPOINT"


def failpoint(name: str) -> None:
    """End the process without any clean-up if the environment names this failpoint."""
    if os.environ.get(VARIABLE) == name:
        os._exit(137)
