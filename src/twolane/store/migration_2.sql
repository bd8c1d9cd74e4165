-- Version 2.

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
