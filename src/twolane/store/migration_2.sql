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
