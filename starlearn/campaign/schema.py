"""The label store's SQL: tables, settings of the connection, and migrations."""

APPLICATION_ID = 0x53544152
"""Marks the database as a label store: the letters STAR in its header."""

VERSION = 1
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

MIGRATIONS: dict[int, tuple[str, ...]] = {}
"""Statements that migrate a database from a version to the next one."""
