-- Version 3.

-- ── Memory of a run ───────────────────────────────────────────────────────────────────────────────────────────────
-- What the items of a run know together, or one item by itself, under a name. Only the newest value is kept, and those
-- that somebody has read; of the others the ledger has the digests.
CREATE TABLE memory (
  tenant  TEXT NOT NULL,
  run     TEXT NOT NULL REFERENCES run (id),
  owner   TEXT NOT NULL,                  -- '' for all items of the run, else the subject of the one it belongs to
  name    TEXT NOT NULL,
  version INTEGER NOT NULL,               -- from 1; every update is one more
  body    INTEGER NOT NULL REFERENCES body (id),
  PRIMARY KEY (tenant, run, owner, name)
);

-- Updates that were made: each exactly once, whoever is killed and begins again.
CREATE TABLE memory_update (
  fingerprint TEXT PRIMARY KEY,           -- of tenant, run, item, memory, function and arguments; keyed
  tenant      TEXT NOT NULL,
  run         TEXT NOT NULL REFERENCES run (id),
  owner       TEXT NOT NULL,
  name        TEXT NOT NULL,
  version     INTEGER NOT NULL            -- what it came to
);

-- What an item has read: begun again, it reads the same.
CREATE TABLE memory_read (
  tenant  TEXT NOT NULL,
  run     TEXT NOT NULL REFERENCES run (id),
  owner   TEXT NOT NULL,
  name    TEXT NOT NULL,
  reader  TEXT NOT NULL,                  -- the subject of the item that read
  after   TEXT NOT NULL,                  -- digest of the updates it had made by then; '' for none
  version INTEGER NOT NULL,               -- 0: nothing was there
  body    INTEGER REFERENCES body (id),
  PRIMARY KEY (tenant, run, owner, name, reader, after)
);
CREATE INDEX memory_read_by_body ON memory_read (body);
