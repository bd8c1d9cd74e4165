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
