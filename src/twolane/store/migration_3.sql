-- Version 3.

-- ── Workers ───────────────────────────────────────────────────────────────────────────────────────────────────────
-- Several processes may work on one run: one owns it (plans, queues, ends it), the others join.
ALTER TABLE run ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;           -- higher goes first
ALTER TABLE run ADD COLUMN due INTEGER NOT NULL DEFAULT 0;                -- not before this instant
ALTER TABLE run ADD COLUMN stop TEXT;                                     -- JSON [status, reason]: all who work on it shall stop
ALTER TABLE run ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;             -- owners that died at this attempt
ALTER TABLE run ADD COLUMN code TEXT NOT NULL DEFAULT '';                 -- digest of the flow's module, as its owner loaded it
ALTER TABLE item ADD COLUMN trials INTEGER NOT NULL DEFAULT 0;            -- times it was begun with nothing beside it
