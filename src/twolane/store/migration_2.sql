-- Version 2.

-- ── Epoch ─────────────────────────────────────────────────────────────────────────────────────────────────────────
-- Counts the changes of what every request is judged by (switches, keys, budgets), so that a process can tell from one
-- number whether what it remembers of them still holds.
CREATE TABLE epoch (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  n  INTEGER NOT NULL
);
INSERT INTO epoch (id, n) VALUES (1, 0);
CREATE TRIGGER switch_insert_epoch AFTER INSERT ON switch BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER switch_update_epoch AFTER UPDATE ON switch BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER switch_delete_epoch AFTER DELETE ON switch BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER api_key_insert_epoch AFTER INSERT ON api_key BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER api_key_update_epoch AFTER UPDATE ON api_key BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER api_key_delete_epoch AFTER DELETE ON api_key BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER budget_insert_epoch AFTER INSERT ON budget BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER budget_update_epoch AFTER UPDATE ON budget BEGIN UPDATE epoch SET n = n + 1; END;
CREATE TRIGGER budget_delete_epoch AFTER DELETE ON budget BEGIN UPDATE epoch SET n = n + 1; END;

-- ── Leases of money ───────────────────────────────────────────────────────────────────────────────────────────────
-- What of `spending.held_*` lies in a process's hands as a block: money it may still reserve in memory, money it has
-- reserved there, and money spent whose record is on its way. A row goes when it is empty; one whose owner is dead is
-- settled whole, as in doubt.
CREATE TABLE lease (
  scope  TEXT NOT NULL,
  window TEXT NOT NULL,
  owner  TEXT NOT NULL,                                                  -- the process that holds it
  pico   INTEGER NOT NULL CHECK (pico >= 0),
  tokens INTEGER NOT NULL CHECK (tokens >= 0),
  wanted INTEGER NOT NULL DEFAULT 0,                                     -- 1: somebody was refused; give back what is free
  PRIMARY KEY (scope, window, owner)
) WITHOUT ROWID;
CREATE INDEX lease_by_owner ON lease (owner);

-- Blocks that were settled in doubt: spent on their budget, and known to no step.
CREATE TABLE doubt (
  scope  TEXT NOT NULL,
  window TEXT NOT NULL,
  day    TEXT NOT NULL,
  pico   INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  PRIMARY KEY (scope, window, day)
) WITHOUT ROWID;

-- ── Probes ────────────────────────────────────────────────────────────────────────────────────────────────────────
-- What `doctor upstream NAME` found, each time it was asked.
CREATE TABLE probe (
  upstream TEXT NOT NULL,
  probed   INTEGER NOT NULL,              -- when
  model    TEXT NOT NULL,                 -- the upstream's own name of it, at that time
  findings TEXT NOT NULL,                 -- JSON: [[what, yes | no | unknown, in words], …]
  calls    INTEGER NOT NULL,              -- what it took
  tokens   INTEGER NOT NULL,
  pico     INTEGER,                       -- NULL where the upstream is unpriced
  PRIMARY KEY (upstream, probed)
) WITHOUT ROWID;

-- One step by the id that its client was told.
CREATE INDEX entry_by_step ON entry (json_extract(leaf, '$.step')) WHERE kind = 'step';
-- ── Lanes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
-- How many slots of a lane each living process holds; the rates go with them. The sum never passes what is configured.
-- Only the owner lowers its `holds`; whoever finds free slots may raise them. The rows of the dead are swept by others.
CREATE TABLE lane_member (
  upstream TEXT NOT NULL,
  lane     TEXT NOT NULL,
  owner    TEXT NOT NULL,                                                -- the process, as in reservation
  holds    INTEGER NOT NULL DEFAULT 0 CHECK (holds >= 0),
  wants    INTEGER NOT NULL DEFAULT 0,                                   -- what its own calls could use, when it last lacked some
  loan     INTEGER NOT NULL DEFAULT 0,                                   -- what it would borrow for its batch calls
  turn     INTEGER NOT NULL DEFAULT 0,                                   -- grows with every grant in the lane
  PRIMARY KEY (upstream, lane, owner)
) WITHOUT ROWID;

-- When a share of a lane was last given up, microseconds: whoever takes one within a minute finds its rates used.
CREATE TABLE lane_left (
  upstream TEXT NOT NULL,
  lane     TEXT NOT NULL,
  at_us    INTEGER NOT NULL,
  PRIMARY KEY (upstream, lane)
) WITHOUT ROWID;
