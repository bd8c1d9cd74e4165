-- Version 3.

-- ── Workers ───────────────────────────────────────────────────────────────────────────────────────────────────────
-- Several processes may work on one run: one owns it (plans, queues, ends it), the others join.
ALTER TABLE run ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;           -- higher goes first
ALTER TABLE run ADD COLUMN due INTEGER NOT NULL DEFAULT 0;                -- not before this instant
ALTER TABLE run ADD COLUMN stop TEXT;                                     -- JSON [status, reason]: all who work on it shall stop
ALTER TABLE run ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;             -- owners that died at this attempt
ALTER TABLE run ADD COLUMN code TEXT NOT NULL DEFAULT '';                 -- digest of the flow's module, as its owner loaded it
ALTER TABLE item ADD COLUMN trials INTEGER NOT NULL DEFAULT 0;            -- times it was begun with nothing beside it
-- ── What a memo answers, and what is asked again on purpose ────────────────────────────────────────────────────────
-- Beside each memo, what its fingerprint was made of: keyed digests, so that a later miss can be explained. A memo of an
-- older release has none of it and is found by its fingerprint alone.
ALTER TABLE memo ADD COLUMN agent TEXT NOT NULL DEFAULT '';
ALTER TABLE memo ADD COLUMN parts TEXT NOT NULL DEFAULT '{}';             -- JSON: {part: digest}
ALTER TABLE memo ADD COLUMN loose TEXT NOT NULL DEFAULT '';               -- fingerprint without the limits of the schema
ALTER TABLE memo ADD COLUMN answer TEXT NOT NULL DEFAULT '';              -- keyed digest of the body
ALTER TABLE memo ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
CREATE INDEX memo_by_agent ON memo (subject, agent, made);
DROP INDEX memo_by_subject;

-- Every schema that a memo was accepted by, so that a later one can be seen to be only stricter.
CREATE TABLE reply_schema (
  digest TEXT PRIMARY KEY,                                                -- as in the parts of memos
  schema TEXT NOT NULL                                                    -- JSON
) WITHOUT ROWID;

-- What a person decided about a run's steps: asked again though there is a memo, or asked on another route.
CREATE TABLE steer (
  run   TEXT NOT NULL REFERENCES run (id),
  item  TEXT NOT NULL,                    -- the item's source id; '' is every item
  agent TEXT NOT NULL,                    -- '' is every agent
  again TEXT NOT NULL DEFAULT '',         -- enters the fingerprint
  route TEXT NOT NULL DEFAULT '',         -- where to ask what has no memo; '' is the agent's own
  PRIMARY KEY (run, item, agent)
) WITHOUT ROWID;

-- What sent an item to quarantine: handoff | document | request | upstream | budget | workflow.
ALTER TABLE item ADD COLUMN kind TEXT NOT NULL DEFAULT '';

-- Processes that take queued runs (`twolane work`). A row whose owner is dead is swept by the next one.
CREATE TABLE worker (
  owner TEXT PRIMARY KEY,
  began INTEGER NOT NULL
) WITHOUT ROWID;
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
-- ── Processes ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- Who takes part. A process advances its beat every second; one whose beat stands still is dead or frozen, and whoever
-- acts on that deletes its row in the same transaction. A process without its row commits nothing any more.
CREATE TABLE process (
  name TEXT PRIMARY KEY,                                                 -- the owner in reservation, lease, run, lane_member
  host TEXT NOT NULL,
  beat INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- ── Schedules ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- What workers know of each `[schedule.NAME]`. No tick of before `since` counts.
CREATE TABLE schedule (
  name  TEXT PRIMARY KEY,
  cron  TEXT NOT NULL,                    -- as the worker that began last has it; workers that have another stand back
  since INTEGER NOT NULL                  -- when this cron was first seen
) WITHOUT ROWID;

-- Each tick that a worker looked at: one row, and so at most one run, whoever is killed.
CREATE TABLE tick (
  schedule TEXT NOT NULL REFERENCES schedule (name),
  at       INTEGER NOT NULL,              -- the instant it stands for
  status   TEXT NOT NULL,                 -- starting -> started | failed; or skipped
  owner    TEXT NOT NULL,                 -- the worker that has its run started
  trials   INTEGER NOT NULL,              -- times that was begun
  run      TEXT REFERENCES run (id),      -- started: set in the transaction that releases the run
  reason   TEXT NOT NULL DEFAULT '',      -- why it was skipped or failed
  PRIMARY KEY (schedule, at)
) WITHOUT ROWID;
CREATE INDEX tick_starting ON tick (schedule, at) WHERE status = 'starting';
