-- Version 4.

-- ── Budgets in five dimensions ────────────────────────────────────────────────────────────────────────────────────
-- Beside money and tokens: calls (attempts that left the house), microseconds in flight, and microseconds of
-- accelerators. NULL in `budget` is no limit.
ALTER TABLE budget ADD COLUMN calls INTEGER;
ALTER TABLE budget ADD COLUMN us INTEGER;
ALTER TABLE budget ADD COLUMN accelerator_us INTEGER;

ALTER TABLE spending ADD COLUMN spent_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spending ADD COLUMN held_calls INTEGER NOT NULL DEFAULT 0 CHECK (held_calls >= 0);
ALTER TABLE spending ADD COLUMN spent_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spending ADD COLUMN held_us INTEGER NOT NULL DEFAULT 0 CHECK (held_us >= 0);
ALTER TABLE spending ADD COLUMN spent_accelerator_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spending ADD COLUMN held_accelerator_us INTEGER NOT NULL DEFAULT 0 CHECK (held_accelerator_us >= 0);
-- A window that knows nothing of calls and time is opened again, with what the record says of them.
DELETE FROM spending WHERE held_pico = 0 AND held_tokens = 0;

ALTER TABLE reservation ADD COLUMN calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservation ADD COLUMN us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservation ADD COLUMN accelerator_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservation ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]';     -- JSON: its chain, for budgets set meanwhile

ALTER TABLE lease ADD COLUMN calls INTEGER NOT NULL DEFAULT 0 CHECK (calls >= 0);
ALTER TABLE lease ADD COLUMN us INTEGER NOT NULL DEFAULT 0 CHECK (us >= 0);
ALTER TABLE lease ADD COLUMN accelerator_us INTEGER NOT NULL DEFAULT 0 CHECK (accelerator_us >= 0);

ALTER TABLE doubt ADD COLUMN calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE doubt ADD COLUMN us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE doubt ADD COLUMN accelerator_us INTEGER NOT NULL DEFAULT 0;

-- What was in doubt, once a person has said what the provider charged for it.
CREATE TABLE reconciled (
  scope          TEXT NOT NULL,
  window         TEXT NOT NULL,
  day            TEXT NOT NULL,
  pico           INTEGER NOT NULL,
  tokens         INTEGER NOT NULL,
  calls          INTEGER NOT NULL,
  us             INTEGER NOT NULL,
  accelerator_us INTEGER NOT NULL,
  PRIMARY KEY (scope, window, day)
) WITHOUT ROWID;

-- ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────
-- 1: its holder acts for a person, who may trip and reset the switches of its tenant.
ALTER TABLE api_key ADD COLUMN operator INTEGER NOT NULL DEFAULT 0;
-- The business process of a key's calls, where their requests name none; '' is none.
ALTER TABLE api_key ADD COLUMN workflow TEXT NOT NULL DEFAULT '';

-- ── Unit economics ────────────────────────────────────────────────────────────────────────────────────────────────
-- Figures of roll-ups that an older release did not keep: NULL in its rows, and in whatever is added to one of them.
ALTER TABLE day_total ADD COLUMN accepted INTEGER;         -- calls that ended well: a handoff passed, an answer was whole
ALTER TABLE day_total ADD COLUMN unpriced INTEGER;         -- calls whose cost nobody knows
ALTER TABLE day_total ADD COLUMN retries INTEGER;          -- calls that were not their step's first
ALTER TABLE day_total ADD COLUMN retries_pico INTEGER;
ALTER TABLE day_total ADD COLUMN refused_pico INTEGER;
ALTER TABLE day_total ADD COLUMN failed_pico INTEGER;      -- failed, killed or cancelled
ALTER TABLE day_total ADD COLUMN doubt_pico INTEGER;       -- a crash hid their end: the bound
ALTER TABLE day_total ADD COLUMN reused_pico INTEGER;      -- what the answers that memos gave once cost
ALTER TABLE day_total ADD COLUMN routed INTEGER;           -- calls whose route has a heavy upstream with a price
ALTER TABLE day_total ADD COLUMN routed_pico INTEGER;      -- what these saved against it: its price for the same tokens, less theirs
ALTER TABLE day_total ADD COLUMN items INTEGER;            -- items that were done; in a row without agent and upstream
ALTER TABLE day_total ADD COLUMN quarantined INTEGER;      -- items that went to quarantine
ALTER TABLE day_total ADD COLUMN accelerator_us INTEGER NOT NULL DEFAULT 0;

-- A run's figures also by day, upstream and model. The day of older rows is not known: ''.
ALTER TABLE run_total RENAME TO run_total_3;
CREATE TABLE run_total (
  run TEXT NOT NULL, day TEXT NOT NULL, agent TEXT NOT NULL, upstream TEXT NOT NULL, model TEXT NOT NULL,
  calls INTEGER NOT NULL, reused INTEGER NOT NULL, refused INTEGER NOT NULL, failed INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_pico INTEGER NOT NULL, total_us INTEGER NOT NULL,
  accepted INTEGER, unpriced INTEGER, retries INTEGER, retries_pico INTEGER, refused_pico INTEGER, failed_pico INTEGER,
  doubt_pico INTEGER, reused_pico INTEGER, routed INTEGER, routed_pico INTEGER, items INTEGER, quarantined INTEGER,
  accelerator_us INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (run, day, agent, upstream, model)
) WITHOUT ROWID;
INSERT INTO run_total (day, run, agent, upstream, model, calls, reused, refused, failed, input_tokens, output_tokens,
                       cost_pico, total_us)
SELECT '', run, agent, '', '', calls, reused, refused, failed, input_tokens, output_tokens, cost_pico, total_us
FROM run_total_3;
DROP TABLE run_total_3;

-- What was paid for, by what one of it cost: quantity × unit_pico = cost_pico, but where that is not known (unit_pico 0).
CREATE TABLE charge_total (
  day TEXT NOT NULL, tenant TEXT NOT NULL, api_key TEXT NOT NULL, workflow TEXT NOT NULL, agent TEXT NOT NULL, lane TEXT NOT NULL,
  upstream TEXT NOT NULL, model TEXT NOT NULL,
  price     TEXT NOT NULL,                -- id of the price, as in the leaf; '' where it has none
  kind      TEXT NOT NULL,                -- as rules.economics.parts names it; or tokens: all kinds together
  unit_pico INTEGER NOT NULL,
  quantity  INTEGER NOT NULL,
  cost_pico INTEGER NOT NULL,
  PRIMARY KEY (day, tenant, api_key, workflow, agent, lane, upstream, model, price, kind, unit_pico)
) WITHOUT ROWID;
INSERT INTO charge_total
SELECT day, tenant, api_key, workflow, agent, lane, upstream, model, '', 'tokens', 0, input_tokens + output_tokens, cost_pico
FROM day_total WHERE cost_pico > 0;
