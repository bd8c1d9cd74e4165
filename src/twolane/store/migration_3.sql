-- Version 3.

-- ── Processes ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- Who takes part. A process advances its beat every second; one whose beat stands still is dead or frozen, and whoever
-- acts on that deletes its row in the same transaction. A process without its row commits nothing any more.
CREATE TABLE process (
  name TEXT PRIMARY KEY,                                                 -- the owner in reservation, lease, run, lane_member
  host TEXT NOT NULL,
  beat INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
