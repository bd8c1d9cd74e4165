-- Twolane's store, version 1. One file holds the work, the money and the record of both.
-- Amounts are picounits of the store's currency; instants are microseconds of Unix time (UTC).

CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- ── Ledger ────────────────────────────────────────────────────────────────────────────────────────────────────────
-- A leaf is canonical JSON, stored and hashed verbatim, never rewritten. Positions are gapless from 0.
CREATE TABLE entry (
  position INTEGER PRIMARY KEY,
  leaf     TEXT NOT NULL,
  hash     BLOB NOT NULL,                                                -- SHA-256(0x00 || leaf), RFC 6962
  kind     TEXT NOT NULL GENERATED ALWAYS AS (json_extract(leaf, '$.kind')) VIRTUAL,
  run      TEXT GENERATED ALWAYS AS (json_extract(leaf, '$.run')) VIRTUAL,
  item     TEXT GENERATED ALWAYS AS (json_extract(leaf, '$.item')) VIRTUAL
);
CREATE INDEX entry_by_run ON entry (run, item, position) WHERE run IS NOT NULL;

-- The frontier of the tree over all entries, advanced in the transaction that appends them.
CREATE TABLE tree (
  id       INTEGER PRIMARY KEY CHECK (id = 1),
  size     INTEGER NOT NULL,
  frontier BLOB NOT NULL,
  root     BLOB NOT NULL
);

-- Each run's chain inside the tree: an auditor who is given one run sees that nothing in between is missing.
CREATE TABLE chain (
  run  TEXT PRIMARY KEY,
  seq  INTEGER NOT NULL,                                                 -- entries so far
  prev TEXT NOT NULL                                                     -- leaf hash of the latest, hex
) WITHOUT ROWID;

-- ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────
-- What can be erased: one item of one tenant. Its key is wrapped by the master key that lies beside the store.
CREATE TABLE subject (
  id      TEXT PRIMARY KEY,                                              -- keyed pseudonym of tenant and item id
  tenant  TEXT NOT NULL,
  name    TEXT NOT NULL,                                                 -- the item id as people know it
  wrapped BLOB NOT NULL,                                                 -- nonce || AES-GCM(key || salt)
  created INTEGER NOT NULL
) WITHOUT ROWID;

-- Item texts, memo values, refused replies, reports: everything with content, encrypted under its subject's key.
CREATE TABLE body (
  id      INTEGER PRIMARY KEY,
  subject TEXT NOT NULL REFERENCES subject (id),
  sealed  BLOB NOT NULL                                                  -- nonce || AES-GCM(body)
);
CREATE INDEX body_by_subject ON body (subject);

-- ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────────────
-- A hard limit for a scope over a period. NULL is no limit in that dimension.
CREATE TABLE budget (
  scope  TEXT PRIMARY KEY,
  period TEXT NOT NULL,                                                  -- day | month | total, UTC
  pico   INTEGER,
  tokens INTEGER,
  source TEXT NOT NULL,                                                  -- file | command: the later change wins
  since  INTEGER NOT NULL
) WITHOUT ROWID;

-- What was spent and is held against a budget in one window of its period ('2026-11-21', '2026-11', 'total').
CREATE TABLE spending (
  scope         TEXT NOT NULL,
  window        TEXT NOT NULL,
  spent_pico    INTEGER NOT NULL DEFAULT 0,
  held_pico     INTEGER NOT NULL DEFAULT 0 CHECK (held_pico >= 0),
  spent_tokens  INTEGER NOT NULL DEFAULT 0,
  held_tokens   INTEGER NOT NULL DEFAULT 0 CHECK (held_tokens >= 0),
  PRIMARY KEY (scope, window)
) WITHOUT ROWID;

-- A hold of an upper bound on every budget of the chain. Ended exactly once, by deleting the row in the transaction
-- that appends the step's entry. A row whose owner is dead is settled at its bound, as in doubt.
CREATE TABLE reservation (
  step    TEXT PRIMARY KEY,                                              -- held -> (gone)
  owner   TEXT NOT NULL,                                                 -- the process that holds it
  pico    INTEGER NOT NULL,
  tokens  INTEGER NOT NULL,
  windows TEXT NOT NULL,                                                 -- JSON: [[scope, window], …]
  entry   TEXT NOT NULL                                                  -- JSON: the fields its entry will have in doubt
) WITHOUT ROWID;

-- Roll-ups, advanced in the step's transaction: no report scans the ledger.
CREATE TABLE day_total (
  day TEXT NOT NULL, tenant TEXT NOT NULL, api_key TEXT NOT NULL, workflow TEXT NOT NULL, agent TEXT NOT NULL, lane TEXT NOT NULL,
  upstream TEXT NOT NULL, model TEXT NOT NULL,
  calls INTEGER NOT NULL, reused INTEGER NOT NULL, refused INTEGER NOT NULL, failed INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_pico INTEGER NOT NULL, total_us INTEGER NOT NULL,
  PRIMARY KEY (day, tenant, api_key, workflow, agent, lane, upstream, model)
) WITHOUT ROWID;

CREATE TABLE run_total (
  run TEXT NOT NULL, agent TEXT NOT NULL,
  calls INTEGER NOT NULL, reused INTEGER NOT NULL, refused INTEGER NOT NULL, failed INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_pico INTEGER NOT NULL, total_us INTEGER NOT NULL,
  PRIMARY KEY (run, agent)
) WITHOUT ROWID;

-- ── Switches ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- The durable row is the truth. Only a person resets it, by deleting the row (the ledger keeps both).
CREATE TABLE switch (
  scope   TEXT PRIMARY KEY,
  cause   TEXT NOT NULL,
  actor   TEXT NOT NULL,
  tripped INTEGER NOT NULL
) WITHOUT ROWID;

-- ── Batch ─────────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE run (
  id       TEXT PRIMARY KEY,
  tenant   TEXT NOT NULL,
  flow     TEXT NOT NULL,                                                -- as it was named: module:function or a name
  workflow TEXT NOT NULL,
  status   TEXT NOT NULL,                 -- writing -> queued -> running -> done | stopped | failed; the last three -> running
  reason   TEXT NOT NULL DEFAULT '',      -- why it stopped or failed
  owner    TEXT NOT NULL DEFAULT '',      -- the process that runs it now
  attempt  INTEGER NOT NULL DEFAULT 0,    -- starts and resumes so far
  options  TEXT NOT NULL,                 -- JSON: parameters of the flow, folder of the reports, seed
  forecast TEXT,                          -- JSON, once its pilot has run
  created  INTEGER NOT NULL,
  started  INTEGER,
  began    INTEGER,                       -- this attempt
  ended    INTEGER,
  seconds  REAL NOT NULL DEFAULT 0        -- time at work over all attempts
) WITHOUT ROWID;
CREATE INDEX run_by_created ON run (created);

CREATE TABLE item (
  run      TEXT NOT NULL REFERENCES run (id),
  position INTEGER NOT NULL,              -- in the run's seeded order
  name     TEXT NOT NULL,                 -- the source id
  subject  TEXT NOT NULL REFERENCES subject (id),
  source   INTEGER REFERENCES body (id),  -- the document; NULL where it could not be read
  status   TEXT NOT NULL,                 -- queued -> done | quarantined; quarantined -> queued when released
  output   INTEGER REFERENCES body (id),  -- the workflow's result
  agent    TEXT NOT NULL DEFAULT '',      -- quarantined: whose reply was refused
  problems INTEGER REFERENCES body (id),  -- quarantined: why, as JSON [[pointer, text], …]; it may quote the document
  reply    INTEGER REFERENCES body (id),  -- quarantined: the refused reply
  PRIMARY KEY (run, position),
  UNIQUE (run, name)
) WITHOUT ROWID;
CREATE INDEX item_by_status ON item (run, status);

-- fingerprint -> accepted output. Never a failure.
CREATE TABLE memo (
  fingerprint TEXT PRIMARY KEY,           -- keyed per tenant
  subject     TEXT NOT NULL REFERENCES subject (id),
  body        INTEGER NOT NULL REFERENCES body (id),
  step        TEXT NOT NULL,              -- the step that paid for it
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_pico INTEGER, total_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX memo_by_subject ON memo (subject);

-- ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE api_key (
  id      TEXT PRIMARY KEY,
  tenant  TEXT NOT NULL,
  name    TEXT NOT NULL,
  digest  TEXT NOT NULL,                  -- HMAC-SHA256 of the secret under the pepper
  models  TEXT NOT NULL,                  -- JSON list; [] is all
  created INTEGER NOT NULL,
  revoked INTEGER,
  UNIQUE (tenant, name)
) WITHOUT ROWID;
CREATE UNIQUE INDEX api_key_by_digest ON api_key (digest);

-- ── trace_steps: a public contract ────────────────────────────────────────────────────────────────────────────────
-- One row per attempt that left the house or was answered from a memo; and per attempt that an intent announced, or that
-- found nobody, which never left (status unreached, no call). Every figure is read from the leaf itself.
CREATE VIEW trace_steps AS
SELECT
  json_extract(e.leaf, '$.step')               AS step,
  e.run                                        AS run,
  coalesce(s.name, e.item)                     AS item,
  json_extract(e.leaf, '$.agent')              AS agent,
  json_extract(e.leaf, '$.workflow')           AS workflow,
  json_extract(e.leaf, '$.tenant')             AS tenant,
  json_extract(e.leaf, '$.lane')               AS lane,
  json_extract(e.leaf, '$.attempt')            AS attempt,
  json_extract(e.leaf, '$.op')                 AS kind,
  json_extract(e.leaf, '$.upstream')           AS upstream,
  json_extract(e.leaf, '$.model')              AS model,
  json_extract(e.leaf, '$.input_tokens')       AS input_tokens,
  json_extract(e.leaf, '$.output_tokens')      AS output_tokens,
  json_extract(e.leaf, '$.cache_read_tokens')  AS cache_read_tokens,
  json_extract(e.leaf, '$.cache_write_tokens') AS cache_write_tokens,
  json_extract(e.leaf, '$.reasoning_tokens')   AS reasoning_tokens,
  CAST(json_extract(e.leaf, '$.cost_pico') AS INTEGER) AS cost_pico,
  json_extract(e.leaf, '$.currency')           AS currency,
  json_extract(e.leaf, '$.queued_us')          AS queued_us,
  json_extract(e.leaf, '$.ttft_us')            AS ttft_us,
  json_extract(e.leaf, '$.total_us')           AS total_us,
  json_extract(e.leaf, '$.status')             AS status,
  json_extract(e.leaf, '$.reason')             AS reason,
  json_extract(e.leaf, '$.input_digest')       AS input_digest,
  json_extract(e.leaf, '$.output_digest')      AS output_digest,
  e.position                                   AS leaf
FROM entry e LEFT JOIN subject s ON s.id = e.item
WHERE e.kind = 'step';
