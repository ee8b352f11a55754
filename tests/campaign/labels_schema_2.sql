-- A label store of schema 2 with two events, as it was written; it stays as it is.
PRAGMA application_id = 1398030674;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE event (
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
    ) STRICT;
INSERT INTO "event" VALUES(1,'db6987ccc41e4fd2bddb040dc0970bef','label','i0','ann','red',NULL,NULL,1,NULL,'2026-12-01T01:53:53.719+00:00',570209833);
INSERT INTO "event" VALUES(2,'39933811c38a486c9ec255b61c0a9839','skip','i1','ann',NULL,NULL,NULL,1,NULL,'2026-12-01T01:53:53.720+00:00',3774835401);
CREATE TABLE issued (
        round INTEGER NOT NULL REFERENCES round (id),
        item TEXT NOT NULL REFERENCES item (id),
        place INTEGER NOT NULL,
        score REAL,
        reason TEXT NOT NULL,
        PRIMARY KEY (round, item),
        UNIQUE (round, place)
    ) STRICT;
INSERT INTO "issued" VALUES(1,'i0',0,0.5,'why');
INSERT INTO "issued" VALUES(1,'i1',1,0.5,'why');
CREATE TABLE item (
        id TEXT PRIMARY KEY,
        content TEXT NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT;
INSERT INTO "item" VALUES('i0','{"text":"t"}',3917433379);
INSERT INTO "item" VALUES('i1','{"text":"t"}',1913430263);
CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('campaign','c0',291848846);
INSERT INTO "meta" VALUES('tables','910215205',536590643);
CREATE TABLE round (
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
    ) STRICT;
INSERT INTO "round" VALUES(1,'issued',2,0,'{}',0,NULL,NULL,NULL,'{}',NULL,'2026-12-01T01:53:53.704+00:00','2026-12-01T01:53:53.718+00:00',1553882828,1820205713);
CREATE INDEX issued_item ON issued (item);
CREATE INDEX event_item ON event (item, annotator);
CREATE INDEX event_annotator ON event (annotator);
CREATE VIEW word AS SELECT * FROM event WHERE seq IN (
        SELECT max(seq) FROM event WHERE kind <> 'undo' AND NOT EXISTS
            (SELECT 1 FROM event AS later WHERE later.undoes = event.seq)
        GROUP BY item, annotator);
CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER item_no_update BEFORE UPDATE ON item BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER item_no_delete BEFORE DELETE ON item BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER issued_no_update BEFORE UPDATE ON issued BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER issued_no_delete BEFORE DELETE ON issued BEGIN SELECT RAISE(ABORT, 'append-only'); END;
COMMIT;
