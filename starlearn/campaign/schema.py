"""The label store's SQL: tables, settings of the connection, and migrations."""

from collections.abc import Callable
from typing import Any

from starlearn.campaign.integrity import checksum

Execute = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]

APPLICATION_ID = 0x53544152
"""Marks the database as a label store: the letters STAR in its header."""

VERSION = 2
"""Version of the schema; a database holds its own as `user_version`."""

PRAGMAS: dict[str, tuple[str, object]] = {
    # First, so that even the change of the journal mode is synced.
    "synchronous": ("EXTRA", 3),
    "journal_mode": ("DELETE", "delete"),
    "foreign_keys": ("ON", 1),
    "busy_timeout": ("10000", 10000),
    "trusted_schema": ("OFF", 0),
    "cell_size_check": ("ON", 1),
    "mmap_size": ("0", 0),
    "fullfsync": ("ON", 1),
}
"""The setting of each pragma, and the value that SQLite must report. With DELETE and EXTRA no label
is lost in a simulated power cut at any operation. With FULL the last label can be lost."""

PRAGMAS_OF_A_COPY = {name: PRAGMAS[name] for name in ("trusted_schema", "cell_size_check")}
"""Settings of a connection to a copy in memory, which has no journal and is never synced."""

TABLES = (
    """CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE item (
        id TEXT PRIMARY KEY,
        content TEXT NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE round (
        id INTEGER PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN
            ('scoring', 'issued', 'labelled', 'training', 'published', 'failed')),
        n INTEGER NOT NULL CHECK (n >= 0),
        seen INTEGER NOT NULL,
        params TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        taught INTEGER,
        adapter TEXT,
        manifest TEXT,
        record TEXT NOT NULL DEFAULT '{}',
        error TEXT,
        began TEXT NOT NULL,
        changed TEXT NOT NULL,
        batch INTEGER NOT NULL DEFAULT 0,
        crc INTEGER NOT NULL DEFAULT 0,
        CHECK (state <> 'published' OR (adapter IS NOT NULL AND manifest IS NOT NULL))
    ) STRICT""",
    """CREATE TABLE issued (
        round INTEGER NOT NULL REFERENCES round (id),
        item TEXT NOT NULL REFERENCES item (id),
        place INTEGER NOT NULL,
        score REAL,
        reason TEXT NOT NULL,
        PRIMARY KEY (round, item),
        UNIQUE (round, place)
    ) STRICT""",
    "CREATE INDEX issued_item ON issued (item)",
    """CREATE TABLE event (
        seq INTEGER PRIMARY KEY,
        uuid TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('label', 'skip', 'flag', 'undo')),
        item TEXT NOT NULL REFERENCES item (id),
        annotator TEXT NOT NULL CHECK (annotator <> ''),
        answer TEXT,
        note TEXT,
        undoes INTEGER UNIQUE REFERENCES event (seq),
        round INTEGER NOT NULL REFERENCES round (id),
        ms INTEGER,
        at TEXT NOT NULL,
        crc INTEGER NOT NULL,
        CHECK ((kind = 'label') = (answer IS NOT NULL)),
        CHECK ((kind = 'undo') = (undoes IS NOT NULL))
    ) STRICT""",
    "CREATE INDEX event_item ON event (item, annotator)",
    "CREATE INDEX event_annotator ON event (annotator)",
    # The current response of each annotator to each item, without those that were undone.
    """CREATE VIEW word AS SELECT * FROM event WHERE seq IN (
        SELECT max(seq) FROM event WHERE kind <> 'undo' AND NOT EXISTS
            (SELECT 1 FROM event AS later WHERE later.undoes = event.seq)
        GROUP BY item, annotator)""",
    *(
        f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'append-only'); END"
        for table in ("event", "item", "issued")
        for action in ("UPDATE", "DELETE")
    ),
)

ROUND = (
    "id, state, n, seen, params, attempt, taught, adapter, manifest, record, error, began, "
    "changed, batch"
)
"""Columns of a round that its checksum covers. `batch` is the checksum of its issued items."""

ISSUED = "SELECT item, place, score, reason FROM issued WHERE round = ? ORDER BY place"


def seal_batch(execute: Execute, round_id: int) -> None:
    """Write the checksum of a round's issued items; `seal_round` must follow."""
    batch = checksum(*execute(ISSUED, (round_id,)))
    execute("UPDATE round SET batch = ? WHERE id = ?", (batch, round_id))


def seal_round(execute: Execute, round_id: int) -> None:
    """Write the checksum of a round; call it in the transaction that changed the round."""
    (row,) = execute(f"SELECT {ROUND} FROM round WHERE id = ?", (round_id,))  # noqa: S608 - our own
    execute("UPDATE round SET crc = ? WHERE id = ?", (checksum(*row), round_id))


def _seal_rounds(execute: Execute) -> None:
    for (round_id,) in execute("SELECT id FROM round", ()):
        seal_batch(execute, round_id)
        seal_round(execute, round_id)


MIGRATIONS: dict[int, tuple[str | Callable[[Execute], None], ...]] = {
    1: (
        "ALTER TABLE round ADD COLUMN batch INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE round ADD COLUMN crc INTEGER NOT NULL DEFAULT 0",
        _seal_rounds,
    )
}
"""Statements and functions that migrate a database from a version to the next one."""
