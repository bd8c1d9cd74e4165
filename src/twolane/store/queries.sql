-- Every question the house asks its store. One named block each; the line under the name says what it answers.

-- name: get_meta
-- The value kept under a name (schema version, pseudonymous id of the store).
SELECT value FROM meta WHERE name = :name;

-- name: set_meta
-- Keep a value under a name.
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: epoch
-- How often a switch, a key or a budget has changed.
SELECT n FROM epoch WHERE id = 1;

-- ── Ledger ──

-- name: tree
-- The frontier of the tree over all entries.
SELECT size, frontier, root FROM tree WHERE id = 1;

-- name: set_tree
-- Advance the frontier.
INSERT INTO tree (id, size, frontier, root) VALUES (1, :size, :frontier, :root)
ON CONFLICT (id) DO UPDATE SET size = excluded.size, frontier = excluded.frontier, root = excluded.root;

-- name: append_entries
-- Add leaves (a JSON list of texts) from a position on, with their hashes (32 bytes each, in one).
INSERT INTO entry (position, leaf, hash)
SELECT :first + key, value, substr(:hashes, key * 32 + 1, 32) FROM json_each(:leaves);

-- name: entries
-- Leaves in order, a page at a time; as bytes, so that one that is no longer UTF-8 can be named.
SELECT position, CAST(leaf AS BLOB) AS leaf, hash FROM entry WHERE position >= :first ORDER BY position LIMIT :count;

-- name: last_position
-- Where the newest leaf stands.
SELECT position FROM entry ORDER BY position DESC LIMIT 1;

-- name: count_entries
-- How many leaves there are.
SELECT count(*) AS entries FROM entry;

-- name: entries_of_run
-- A run's own entries of one kind, in order.
SELECT position, leaf FROM entry WHERE run = :run AND kind = :kind ORDER BY position;

-- name: chain
-- The head of a run's chain.
SELECT seq, prev FROM chain WHERE run = :run;

-- name: chains
-- Every run's chain head.
SELECT run, seq, prev FROM chain;

-- name: set_chain
-- Advance a run's chain.
INSERT INTO chain (run, seq, prev) VALUES (:run, :seq, :prev)
ON CONFLICT (run) DO UPDATE SET seq = excluded.seq, prev = excluded.prev;

-- name: steps_of_run
-- The public view, for one run.
SELECT * FROM trace_steps WHERE run = :run ORDER BY leaf;

-- name: steps_since
-- The public view, newest first.
SELECT * FROM trace_steps ORDER BY leaf DESC LIMIT :count;

-- name: spent_since
-- What was spent from a day to another, for a budget that is set later than its period began.
SELECT coalesce(sum(cost_pico), 0) AS pico, coalesce(sum(input_tokens + output_tokens), 0) AS tokens,
       coalesce(sum(calls), 0) AS calls, coalesce(sum(total_us), 0) AS us,
       coalesce(sum(accelerator_us), 0) AS accelerator_us
FROM day_total
WHERE day >= :since AND day <= :until AND tenant = coalesce(:tenant, tenant) AND api_key = coalesce(:api_key, api_key)
  AND workflow = coalesce(:workflow, workflow) AND upstream = coalesce(:upstream, upstream);

-- name: spent_by_run
-- What a run has spent.
SELECT coalesce(sum(cost_pico), 0) AS pico, coalesce(sum(input_tokens + output_tokens), 0) AS tokens,
       coalesce(sum(calls), 0) AS calls, coalesce(sum(total_us), 0) AS us,
       coalesce(sum(accelerator_us), 0) AS accelerator_us
FROM run_total WHERE run = :run;

-- name: spent_by_item
-- What an item of a run has spent.
SELECT coalesce(sum(CAST(json_extract(leaf, '$.cost_pico') AS INTEGER)), 0) AS pico,
       coalesce(sum(CAST(json_extract(leaf, '$.input_tokens') AS INTEGER)
                    + CAST(json_extract(leaf, '$.output_tokens') AS INTEGER)), 0) AS tokens,
       coalesce(sum(CASE WHEN json_extract(leaf, '$.status') = 'unreached' THEN 0 ELSE 1 END), 0) AS calls,
       coalesce(sum(CAST(json_extract(leaf, '$.total_us') AS INTEGER)), 0) AS us,
       coalesce(sum(CAST(json_extract(leaf, '$.accelerator_us') AS INTEGER)), 0) AS accelerator_us
FROM entry
WHERE run = :run AND item = (SELECT subject FROM item WHERE run = :run AND name = :item)
  AND kind = 'step' AND json_extract(leaf, '$.status') <> 'reused';

-- ── Subjects and bodies ──

-- name: subject
-- What can be erased, by its pseudonym.
SELECT id, wrapped FROM subject WHERE id = :id;

-- name: add_subject
-- A new erasable thing; an old one stays as it is.
INSERT INTO subject (id, tenant, name, wrapped, created) VALUES (:id, :tenant, :name, :wrapped, :created)
ON CONFLICT (id) DO NOTHING;

-- name: add_body
-- Keep a sealed body; its id.
INSERT INTO body (subject, sealed) VALUES (:subject, :sealed) RETURNING id;

-- name: body
-- A sealed body with what unwraps its key.
SELECT b.sealed, s.id AS subject, s.wrapped FROM body b JOIN subject s ON s.id = b.subject WHERE b.id = :id;

-- name: size_of_body
-- How much is stored of a body.
SELECT length(sealed) AS bytes FROM body WHERE id = :id;

-- ── Money ──

-- name: budget
-- The limit of a scope.
SELECT scope, period, pico, tokens, calls, us, accelerator_us, source, since FROM budget WHERE scope = :scope;

-- name: budgets
-- Every limit.
SELECT scope, period, pico, tokens, calls, us, accelerator_us, source, since FROM budget ORDER BY scope;

-- name: set_budget
-- Set a scope's limit; the later change wins.
INSERT INTO budget (scope, period, pico, tokens, calls, us, accelerator_us, source, since)
VALUES (:scope, :period, :pico, :tokens, :calls, :us, :accelerator_us, :source, :since)
ON CONFLICT (scope) DO UPDATE
SET period = excluded.period, pico = excluded.pico, tokens = excluded.tokens, calls = excluded.calls, us = excluded.us,
    accelerator_us = excluded.accelerator_us, source = excluded.source, since = excluded.since;

-- name: spending
-- What is spent and held in a window.
SELECT spent_pico, spent_tokens, spent_calls, spent_us, spent_accelerator_us,
       held_pico, held_tokens, held_calls, held_us, held_accelerator_us
FROM spending WHERE scope = :scope AND window = :window;

-- name: any_spending
-- Was any budget ever held against?
SELECT 1 FROM spending LIMIT 1;

-- name: windows
-- The windows of the scopes of a chain.
SELECT scope, window FROM spending WHERE scope IN (SELECT value FROM json_each(:scopes));

-- name: begin_spending
-- Open a window with what was spent in it before the budget was set.
INSERT INTO spending (scope, window, spent_pico, spent_tokens, spent_calls, spent_us, spent_accelerator_us)
VALUES (:scope, :window, :pico, :tokens, :calls, :us, :accelerator_us)
ON CONFLICT (scope, window) DO NOTHING;

-- name: change_spending
-- Add what a group of works has held, let go and spent.
UPDATE spending
SET spent_pico = spent_pico + :spent_pico, held_pico = held_pico + :held_pico,
    spent_tokens = spent_tokens + :spent_tokens, held_tokens = held_tokens + :held_tokens,
    spent_calls = spent_calls + :spent_calls, held_calls = held_calls + :held_calls,
    spent_us = spent_us + :spent_us, held_us = held_us + :held_us,
    spent_accelerator_us = spent_accelerator_us + :spent_accelerator_us,
    held_accelerator_us = held_accelerator_us + :held_accelerator_us
WHERE scope = :scope AND window = :window;

-- name: add_reservation
-- Remember a hold until it ends.
INSERT INTO reservation (step, owner, pico, tokens, calls, us, accelerator_us, windows, scopes, entry)
VALUES (:step, :owner, :pico, :tokens, :calls, :us, :accelerator_us, :windows, :scopes, :entry);

-- name: change_reservation
-- A hold that got more of what it holds, or in further windows.
UPDATE reservation
SET pico = :pico, tokens = :tokens, calls = :calls, us = :us, accelerator_us = :accelerator_us, windows = :windows
WHERE step = :step;

-- name: reservation
-- One hold.
SELECT step, owner, pico, tokens, calls, us, accelerator_us, windows FROM reservation WHERE step = :step;

-- name: end_reservations
-- Holds end exactly once: the rows of these steps go, and their figures come back.
DELETE FROM reservation WHERE step IN (SELECT value FROM json_each(:steps))
RETURNING step, pico, tokens, calls, us, accelerator_us, windows;

-- name: reservations
-- Every hold, for recovery and for whoever asks what is in flight.
SELECT step, owner, pico, tokens, calls, us, accelerator_us, windows, scopes, entry FROM reservation ORDER BY step;

-- name: owners
-- Processes that hold something.
SELECT owner FROM reservation UNION SELECT owner FROM lease;

-- name: remove_budget
-- Lift a scope's limit.
DELETE FROM budget WHERE scope = :scope;

-- name: forget_meta
-- Forget what was kept under a name.
DELETE FROM meta WHERE name = :name;

-- name: all_spending
-- Every window of every budget.
SELECT scope, window, spent_pico, spent_tokens, spent_calls, spent_us, spent_accelerator_us,
       held_pico, held_tokens, held_calls, held_us, held_accelerator_us
FROM spending ORDER BY scope, window;

-- ── Leases of money ──

-- name: lease
-- A process's block of a window.
SELECT pico, tokens, calls, us, accelerator_us FROM lease WHERE scope = :scope AND window = :window AND owner = :owner;

-- name: leases
-- Every block.
SELECT scope, window, owner, pico, tokens, calls, us, accelerator_us, wanted FROM lease ORDER BY scope, window, owner;

-- name: leased
-- What lies in blocks of a window, in every process.
SELECT coalesce(sum(pico), 0) AS pico, coalesce(sum(tokens), 0) AS tokens, coalesce(sum(calls), 0) AS calls,
       coalesce(sum(us), 0) AS us, coalesce(sum(accelerator_us), 0) AS accelerator_us
FROM lease
WHERE scope = :scope AND window = :window;

-- name: add_lease
-- A new block.
INSERT INTO lease (scope, window, owner, pico, tokens, calls, us, accelerator_us)
VALUES (:scope, :window, :owner, :pico, :tokens, :calls, :us, :accelerator_us);

-- name: set_lease
-- What a block came to.
UPDATE lease
SET pico = :pico, tokens = :tokens, calls = :calls, us = :us, accelerator_us = :accelerator_us
WHERE scope = :scope AND window = :window AND owner = :owner;

-- name: end_lease
-- An empty block goes.
DELETE FROM lease WHERE scope = :scope AND window = :window AND owner = :owner;

-- name: want_leases
-- Ask the other processes for what is free of their blocks.
UPDATE lease SET wanted = 1 WHERE scope = :scope AND window = :window AND owner <> :owner AND wanted = 0;

-- name: wanted_leases
-- A process's blocks that somebody asks for.
SELECT scope, window FROM lease WHERE owner = :owner AND wanted = 1;

-- name: unanswered
-- Has everybody who was asked given back what was free?
SELECT 1 FROM lease WHERE scope = :scope AND window = :window AND owner <> :owner AND wanted = 1 LIMIT 1;

-- name: answer_wanted
-- All that was free of a block is given back.
UPDATE lease SET wanted = 0 WHERE scope = :scope AND window = :window AND owner = :owner;

-- name: add_doubt
-- A block settled whole after a crash.
INSERT INTO doubt (scope, window, day, pico, tokens, calls, us, accelerator_us)
VALUES (:scope, :window, :day, :pico, :tokens, :calls, :us, :accelerator_us)
ON CONFLICT (scope, window, day) DO UPDATE
SET pico = doubt.pico + excluded.pico, tokens = doubt.tokens + excluded.tokens, calls = doubt.calls + excluded.calls,
    us = doubt.us + excluded.us, accelerator_us = doubt.accelerator_us + excluded.accelerator_us;

-- name: doubt
-- What of a window's spending is known to no step: in doubt, or reconciled.
SELECT coalesce(sum(pico), 0) AS pico, coalesce(sum(tokens), 0) AS tokens, coalesce(sum(calls), 0) AS calls,
       coalesce(sum(us), 0) AS us, coalesce(sum(accelerator_us), 0) AS accelerator_us
FROM (
  SELECT pico, tokens, calls, us, accelerator_us FROM doubt WHERE scope = :scope AND window = :window
  UNION ALL
  SELECT pico, tokens, calls, us, accelerator_us FROM reconciled WHERE scope = :scope AND window = :window
) AS each;

-- name: doubts
-- What is in doubt, by window and day.
SELECT scope, window, day, pico, tokens, calls, us, accelerator_us FROM doubt ORDER BY scope, window, day;

-- name: end_doubt
-- It is in doubt no longer.
DELETE FROM doubt WHERE scope = :scope AND window = :window AND day = :day;

-- name: add_reconciled
-- What it came to.
INSERT INTO reconciled (scope, window, day, pico, tokens, calls, us, accelerator_us)
VALUES (:scope, :window, :day, :pico, :tokens, :calls, :us, :accelerator_us)
ON CONFLICT (scope, window, day) DO UPDATE
SET pico = reconciled.pico + excluded.pico, tokens = reconciled.tokens + excluded.tokens,
    calls = reconciled.calls + excluded.calls, us = reconciled.us + excluded.us,
    accelerator_us = reconciled.accelerator_us + excluded.accelerator_us;

-- name: doubt_since
-- The same since a day, for a window that is opened later: the most that any window of the scope has.
SELECT coalesce(max(pico), 0) AS pico, coalesce(max(tokens), 0) AS tokens, coalesce(max(calls), 0) AS calls,
       coalesce(max(us), 0) AS us, coalesce(max(accelerator_us), 0) AS accelerator_us
FROM (
  SELECT sum(pico) AS pico, sum(tokens) AS tokens, sum(calls) AS calls, sum(us) AS us,
         sum(accelerator_us) AS accelerator_us
  FROM (
    SELECT window, day, pico, tokens, calls, us, accelerator_us FROM doubt WHERE scope = :scope
    UNION ALL
    SELECT window, day, pico, tokens, calls, us, accelerator_us FROM reconciled WHERE scope = :scope
  ) AS both_kinds
  WHERE day >= :since GROUP BY window
) AS each;

-- part: figures
-- What is added up of steps.
calls, reused, refused, failed, input_tokens, output_tokens, cost_pico, total_us, accepted, unpriced, retries,
retries_pico, refused_pico, failed_pico, doubt_pico, reused_pico, routed, routed_pico, items, quarantined,
accelerator_us

-- part: values
-- What is to be added.
:calls, :reused, :refused, :failed, :input_tokens, :output_tokens, :cost_pico, :total_us, :accepted, :unpriced,
:retries, :retries_pico, :refused_pico, :failed_pico, :doubt_pico, :reused_pico, :routed, :routed_pico, :items,
:quarantined, :accelerator_us

-- part: added
-- The same, added to a row that is there.
calls = t.calls + excluded.calls, reused = t.reused + excluded.reused,
refused = t.refused + excluded.refused, failed = t.failed + excluded.failed,
input_tokens = t.input_tokens + excluded.input_tokens, output_tokens = t.output_tokens + excluded.output_tokens,
cost_pico = t.cost_pico + excluded.cost_pico, total_us = t.total_us + excluded.total_us,
accepted = t.accepted + excluded.accepted, unpriced = t.unpriced + excluded.unpriced,
retries = t.retries + excluded.retries, retries_pico = t.retries_pico + excluded.retries_pico,
refused_pico = t.refused_pico + excluded.refused_pico, failed_pico = t.failed_pico + excluded.failed_pico,
doubt_pico = t.doubt_pico + excluded.doubt_pico, reused_pico = t.reused_pico + excluded.reused_pico,
routed = t.routed + excluded.routed, routed_pico = t.routed_pico + excluded.routed_pico,
items = t.items + excluded.items, quarantined = t.quarantined + excluded.quarantined,
accelerator_us = t.accelerator_us + excluded.accelerator_us

-- name: add_to_day
-- Count steps in their day.
INSERT INTO day_total AS t (day, tenant, api_key, workflow, agent, lane, upstream, model, {figures})
VALUES (:day, :tenant, :api_key, :workflow, :agent, :lane, :upstream, :model, {values})
ON CONFLICT (day, tenant, api_key, workflow, agent, lane, upstream, model) DO UPDATE SET {added};

-- name: add_to_run
-- Count steps in their run.
INSERT INTO run_total AS t (day, run, agent, upstream, model, {figures})
VALUES (:day, :run, :agent, :upstream, :model, {values})
ON CONFLICT (run, day, agent, upstream, model) DO UPDATE SET {added};

-- name: add_charge
-- Count what was paid for.
INSERT INTO charge_total (day, tenant, api_key, workflow, agent, lane, upstream, model, price, kind, unit_pico,
                          quantity, cost_pico)
VALUES (:day, :tenant, :api_key, :workflow, :agent, :lane, :upstream, :model, :price, :kind, :unit_pico, :quantity,
        :cost_pico)
ON CONFLICT (day, tenant, api_key, workflow, agent, lane, upstream, model, price, kind, unit_pico) DO UPDATE
SET quantity = charge_total.quantity + excluded.quantity, cost_pico = charge_total.cost_pico + excluded.cost_pico;

-- name: totals_of_run
-- A run's figures by agent. Items are told in the row without an agent.
SELECT agent, sum(calls) AS calls, sum(reused) AS reused, sum(refused) AS refused, sum(failed) AS failed,
       sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cost_pico) AS cost_pico,
       coalesce(sum(doubt_pico), 0) AS doubt_pico, sum(total_us) AS total_us
FROM run_total WHERE run = :run GROUP BY agent HAVING sum(calls) + sum(reused) + sum(cost_pico) > 0 ORDER BY agent;

-- name: all_run_totals
-- Every run's cost and calls, for the check against the ledger.
SELECT run, sum(calls) AS calls, sum(cost_pico) AS cost_pico FROM run_total GROUP BY run;

-- name: all_day_totals
-- Every day's cost and calls, for the same.
SELECT day, tenant, api_key, workflow, agent, lane, upstream, model, calls, cost_pico FROM day_total;

-- name: charged_by_day
-- What was paid for, day by day, for the same.
SELECT day, sum(cost_pico) AS cost_pico FROM charge_total GROUP BY day;

-- ── Unit economics ──

-- part: sums
-- What is told of costs. Where not all rows are `known`, some are of an older release, and sums of what it did not keep
-- say nothing.
sum(t.calls) AS calls, sum(t.reused) AS reused, sum(t.refused) AS refused, sum(t.failed) AS failed,
sum(t.input_tokens) AS input_tokens, sum(t.output_tokens) AS output_tokens, sum(t.cost_pico) AS cost_pico,
sum(t.accepted) AS accepted, sum(t.unpriced) AS unpriced, sum(t.retries) AS retries, sum(t.retries_pico) AS
retries_pico, sum(t.refused_pico) AS refused_pico, sum(t.failed_pico) AS failed_pico, sum(t.doubt_pico) AS doubt_pico,
sum(t.reused_pico) AS reused_pico, sum(t.routed) AS routed, sum(t.routed_pico) AS routed_pico, sum(t.items) AS items,
sum(t.quarantined) AS quarantined,
count(*) AS "rows", count(t.accepted) AS known

-- name: costs
-- Figures by whatever `by_…` says (1 or 0), the dearest first.
SELECT CASE WHEN :by_day = 1 THEN t.day ELSE '' END AS "day",
       CASE WHEN :by_tenant = 1 THEN t.tenant ELSE '' END AS "tenant",
       CASE WHEN :by_key = 1 THEN t.api_key ELSE '' END AS "key",
       CASE WHEN :by_workflow = 1 THEN t.workflow ELSE '' END AS "workflow",
       '' AS "run",
       CASE WHEN :by_agent = 1 THEN t.agent ELSE '' END AS "agent",
       CASE WHEN :by_lane = 1 THEN t.lane ELSE '' END AS "lane",
       CASE WHEN :by_upstream = 1 THEN t.upstream ELSE '' END AS "upstream",
       CASE WHEN :by_model = 1 THEN t.model ELSE '' END AS "model",
       {sums}
FROM day_total t
WHERE t.day >= :since AND t.day <= :until AND t.tenant = coalesce(:tenant, t.tenant)
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
ORDER BY cost_pico DESC, 1, 2, 3, 4, 5, 6, 7, 8, 9
LIMIT :count;

-- name: costs_total
-- The same of all together, or of one lane.
SELECT {sums}
FROM day_total t
WHERE t.day >= :since AND t.day <= :until AND t.tenant = coalesce(:tenant, t.tenant) AND t.lane = coalesce(:lane, t.lane);

-- name: costs_of_runs
-- The same of the dearest runs. They are found first: of a hundred thousand, only their figures are read.
SELECT CASE WHEN :by_day = 1 THEN t.day ELSE '' END AS "day",
       CASE WHEN :by_tenant = 1 THEN coalesce(r.tenant, '') ELSE '' END AS "tenant",
       '' AS "key",
       CASE WHEN :by_workflow = 1 THEN coalesce(r.workflow, '') ELSE '' END AS "workflow",
       CASE WHEN :by_run = 1 THEN t.run ELSE '' END AS "run",
       CASE WHEN :by_agent = 1 THEN t.agent ELSE '' END AS "agent",
       CASE WHEN :by_lane = 1 THEN 'batch' ELSE '' END AS "lane",
       CASE WHEN :by_upstream = 1 THEN t.upstream ELSE '' END AS "upstream",
       CASE WHEN :by_model = 1 THEN t.model ELSE '' END AS "model",
       {sums}
FROM run_total t LEFT JOIN run r ON r.id = t.run
WHERE t.day >= :since AND t.day <= :until AND t.run IN (
  SELECT run FROM (
    SELECT run, sum(cost_pico) AS cost FROM run_total
    WHERE day >= :since AND day <= :until AND (coalesce(:tenant, '') = '' OR run IN (SELECT id FROM run WHERE tenant = :tenant))
    GROUP BY run ORDER BY cost DESC, run LIMIT :count
  ) AS dearest
)
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
ORDER BY cost_pico DESC, 1, 2, 3, 4, 5, 6, 7, 8, 9
LIMIT :count;

-- name: charges
-- What was paid for, by day and by what it cost.
SELECT * FROM charge_total
WHERE day >= :since AND day <= :until
ORDER BY day, tenant, api_key, workflow, agent, lane, upstream, model, price, kind, unit_pico;

-- ── Switches ──

-- name: switches
-- Every tripped switch.
SELECT scope, cause, actor, tripped FROM switch ORDER BY tripped;

-- name: trip
-- Trip a switch; one that is tripped stays as it is.
INSERT INTO switch (scope, cause, actor, tripped) VALUES (:scope, :cause, :actor, :tripped)
ON CONFLICT (scope) DO NOTHING;

-- name: reset
-- Reset a switch.
DELETE FROM switch WHERE scope = :scope;

-- name: acknowledgements
-- Which processes closed something for a switch, and when, from the position of its trip on.
SELECT json_extract(leaf, '$.process') AS process, CAST(json_extract(leaf, '$.steps') AS INTEGER) AS steps,
       CAST(json_extract(leaf, '$.at_us') AS INTEGER) AS at_us
FROM entry WHERE position >= :first AND kind = 'closed' AND json_extract(leaf, '$.scope') = :scope ORDER BY position;

-- name: closed_by
-- The steps that a switch closed, with what they could have cost and what they did; `known_after` and `priced` count
-- those of which that is known.
SELECT count(*) AS steps,
       coalesce(sum(CAST(json_extract(leaf, '$.bound_pico') AS INTEGER)), 0) AS bound,
       coalesce(sum(CAST(json_extract(leaf, '$.cost_pico') AS INTEGER)), 0) AS cost,
       coalesce(sum(CAST(json_extract(leaf, '$.tokens_after') AS INTEGER)), 0) AS after,
       count(json_extract(leaf, '$.bound_pico')) AS priced,
       count(json_extract(leaf, '$.tokens_after')) AS known_after
FROM entry WHERE position >= :first AND kind = 'step' AND json_extract(leaf, '$.closed_by') = :scope;

-- ── Runs ──

-- name: add_run
-- A new run.
INSERT INTO run (id, tenant, flow, workflow, status, options, created, priority, due)
VALUES (:id, :tenant, :flow, :workflow, 'writing', :options, :created, :priority, :due);

-- name: queue_run
-- writing -> queued: all its items and its budget are there.
UPDATE run SET status = 'queued' WHERE id = :id;

-- name: run
-- One run.
SELECT * FROM run WHERE id = :id;

-- name: runs
-- Runs, newest first.
SELECT r.*, (SELECT count(*) FROM item i WHERE i.run = r.id) AS items,
       (SELECT coalesce(sum(t.cost_pico), 0) FROM run_total t WHERE t.run = r.id) AS cost_pico
FROM run r ORDER BY r.created DESC LIMIT :count;

-- name: runs_to_work_on
-- Runs that a worker may take or join: those that are due, by priority, then oldest first. `left` items are queued.
SELECT r.id, r.flow, r.status, r.owner,
       (SELECT count(*) FROM item i WHERE i.run = r.id AND i.status = 'queued') AS "left"
FROM run r WHERE r.status IN ('queued', 'running') AND r.due <= :now
ORDER BY r.priority DESC, r.created;
-- name: runs_of_workflow
-- A tenant's latest runs of a workflow, newest first.
SELECT id FROM run WHERE tenant = :tenant AND workflow = :workflow ORDER BY created DESC LIMIT :count;

-- name: accepted_steps
-- A run's steps whose answers were accepted, in order, each with the step that paid for it.
SELECT item, json_extract(leaf, '$.agent') AS agent, position,
       coalesce(json_extract(leaf, '$.of'), json_extract(leaf, '$.step')) AS paid_by
FROM entry WHERE run = :run AND kind = 'step' AND json_extract(leaf, '$.status') IN ('ok', 'reused') ORDER BY position;

-- name: begin_run
-- queued | stopped | failed | done -> running, as a new attempt; running, but its owner is dead or has left -> the same
-- attempt goes on.
UPDATE run SET attempt = attempt + CASE WHEN status = 'running' THEN 0 ELSE 1 END,
               deaths = CASE WHEN status = 'running' THEN deaths + 1 ELSE 0 END,
               stop = CASE WHEN status = 'running' THEN stop ELSE NULL END,
               status = 'running', reason = '', owner = :owner, code = :code,
               started = coalesce(started, :now), began = :now, ended = NULL
WHERE id = :id AND owner = :known_owner AND status <> 'writing';

-- name: leave_run
-- running -> running, but without an owner: the next worker goes on with the same attempt.
UPDATE run SET owner = '', seconds = seconds + :seconds WHERE id = :id AND owner = :owner;
-- name: requeue_run
-- stopped | failed | done | queued | running, but its owner is dead -> queued.
UPDATE run SET status = 'queued', reason = '', owner = ''
WHERE id = :id;

-- name: add_worker
-- A process takes queued runs from now on.
INSERT INTO worker (owner, began) VALUES (:owner, :began);

-- name: drop_worker
-- It does so no longer, or is dead.
DELETE FROM worker WHERE owner = :owner;

-- name: workers
-- Processes that take queued runs, or died at it.
SELECT owner, began FROM worker ORDER BY began;

-- name: next_attempt
-- The chunks of this attempt are through, but items are left.
UPDATE run SET attempt = attempt + 1 WHERE id = :id AND owner = :owner;

-- name: ask_stop
-- Ask whoever works on a run to stop; the first reason counts.
UPDATE run SET stop = :stop WHERE id = :id AND status = 'running' AND stop IS NULL;

-- name: forget_stop
-- A person wants it to go on, whatever its workers were told before they died.
UPDATE run SET stop = NULL, deaths = 0 WHERE id = :id;

-- name: stop_run
-- queued | running, but nobody runs it -> stopped.
UPDATE run SET status = 'stopped', reason = :reason, ended = :now, owner = '' WHERE id = :id;

-- name: stop_queued_run
-- queued -> stopped.
UPDATE run SET status = 'stopped', reason = :reason, ended = :now WHERE id = :id AND status = 'queued';

-- name: fail_run
-- queued, or running for the dead: its workers cannot do it -> failed.
UPDATE run SET status = 'failed', reason = :reason, ended = :now, owner = ''
WHERE id = :id AND status IN ('queued', 'running') AND owner = :owner;

-- name: killed_since
-- Steps of a run that a switch closed, from a position of the ledger on.
SELECT count(*) AS steps FROM entry
WHERE run = :run AND position >= :first AND kind = 'step' AND json_extract(leaf, '$.status') = 'killed';

-- name: end_run
-- running -> done | stopped | failed.
UPDATE run SET status = :status, reason = :reason, ended = :now, seconds = seconds + :seconds, owner = ''
WHERE id = :id AND owner = :owner;

-- name: set_forecast
-- What the pilot said.
UPDATE run SET forecast = :forecast WHERE id = :id;

-- name: add_item
-- An item of a run, in the run's order.
INSERT INTO item (run, position, name, subject, source, status, problems, kind)
VALUES (:run, :position, :name, :subject, :source, :status, :problems, :kind);

-- name: items
-- A stretch of a run's items.
SELECT * FROM item WHERE run = :run AND position >= :first AND position <= :last ORDER BY position;

-- name: item
-- One item of a run, by its source id.
SELECT * FROM item WHERE run = :run AND name = :name;

-- name: is_queued
-- Is an item still to be worked on?
SELECT 1 FROM item WHERE run = :run AND position = :position AND status = 'queued';

-- name: newest_step_of
-- The newest step that gave an answer among the items of a stretch that are still queued; -1 where there is none.
SELECT coalesce(max(e.position), -1) AS position FROM item i JOIN entry e ON e.run = i.run AND e.item = i.subject
WHERE i.run = :run AND i.position >= :first AND i.position <= :last AND i.status = 'queued'
  AND e.kind = 'step' AND json_extract(e.leaf, '$.status') = 'ok';

-- name: count_items
-- How many of a run's items are in each state.
SELECT status, count(*) AS items FROM item WHERE run = :run GROUP BY status;

-- name: positions
-- Where a run's items of one status lie.
SELECT position FROM item WHERE run = :run AND status = :status ORDER BY position;

-- name: names_of_items
-- A run's items of one status, by their source ids.
SELECT name FROM item WHERE run = :run AND status = :status ORDER BY position;

-- name: subjects_of_items
-- A run's items of one status, by their pseudonyms.
SELECT subject FROM item WHERE run = :run AND status = :status ORDER BY position;

-- name: outputs_of_run
-- The results of a run's items.
SELECT name, output FROM item WHERE run = :run AND status = 'done' ORDER BY position;

-- name: finish_item
-- queued -> done.
UPDATE item SET status = 'done', output = :output, agent = '', problems = NULL, reply = NULL
WHERE run = :run AND position = :position;

-- name: quarantine_item
-- queued -> quarantined.
UPDATE item SET status = 'quarantined', agent = :agent, problems = :problems, reply = :reply, kind = :kind
WHERE run = :run AND position = :position AND status = 'queued';

-- name: release_item
-- quarantined -> queued.
UPDATE item SET status = 'queued', trials = 0
WHERE run = :run AND name = :name AND status = 'quarantined' AND source IS NOT NULL;

-- name: requeue_items
-- quarantined -> queued, all of a run that can be read.
UPDATE item SET status = 'queued', trials = 0 WHERE run = :run AND status = 'quarantined' AND source IS NOT NULL;

-- name: set_trials
-- How often an item was begun with nothing beside it.
UPDATE item SET trials = :trials WHERE run = :run AND position = :position;

-- name: requeue_all_items
-- done | quarantined -> queued, all of a run that can be read.
UPDATE item SET status = 'queued', output = NULL
WHERE run = :run AND status IN ('done', 'quarantined') AND source IS NOT NULL;

-- name: copy_items
-- A stretch of a run's items for another run that begins anew; what can't be read stays in quarantine.
INSERT INTO item (run, position, name, subject, source, status, problems, kind)
SELECT :run, position, name, subject, source,
       CASE WHEN source IS NULL THEN 'quarantined' ELSE 'queued' END,
       CASE WHEN source IS NULL THEN problems ELSE NULL END, CASE WHEN source IS NULL THEN kind ELSE '' END
FROM item WHERE run = :of AND position >= :first AND position <= :last;

-- name: copy_steers
-- What was decided about a run's steps, for another run of the same items.
INSERT INTO steer (run, item, agent, again, route)
SELECT :run, item, agent, again, route FROM steer WHERE run = :of;

-- name: quarantined
-- Items that wait for a person; of one run, or of all.
SELECT i.run, i.name, i.subject, i.agent, i.problems, i.reply, i.source, i.kind FROM item i JOIN run r ON r.id = i.run
WHERE i.status = 'quarantined' AND i.run = coalesce(:run, i.run) ORDER BY r.created, i.position;

-- name: refused_steps
-- An item's steps whose replies were refused, newest first.
SELECT step, agent, upstream, model, attempt, cost_pico, reason, leaf FROM trace_steps
WHERE run = :run AND item = :item AND status = 'refused' ORDER BY leaf DESC;

-- name: memos
-- Accepted outputs by their fingerprints.
SELECT m.fingerprint AS "key", m.body, m.step, m.input_tokens, m.output_tokens, m.cost_pico, m.total_us, b.sealed,
       s.id AS subject, s.wrapped
FROM memo m JOIN body b ON b.id = m.body JOIN subject s ON s.id = m.subject
WHERE m.fingerprint IN (SELECT value FROM json_each(:keys));

-- name: add_memo
-- Keep an accepted output. One that is there already no longer passes its agent's validators: it is replaced.
INSERT INTO memo (fingerprint, subject, body, step, input_tokens, output_tokens, cost_pico, total_us,
                  agent, parts, loose, answer, made)
VALUES (:fingerprint, :subject, :body, :step, :input_tokens, :output_tokens, :cost_pico, :total_us,
        :agent, :parts, :loose, :answer, :made)
ON CONFLICT (fingerprint) DO UPDATE
SET subject = excluded.subject, body = excluded.body, step = excluded.step, input_tokens = excluded.input_tokens,
    output_tokens = excluded.output_tokens, cost_pico = excluded.cost_pico, total_us = excluded.total_us,
    agent = excluded.agent, parts = excluded.parts, loose = excluded.loose, answer = excluded.answer,
    made = excluded.made;

-- name: memos_of_agent
-- What an agent answered for an item, newest first: what it was asked, and for whom its answer is sealed.
SELECT m.fingerprint, m.parts, m.loose, m.body, m.step, m.input_tokens, m.output_tokens, m.cost_pico, m.total_us
FROM memo m WHERE m.subject = :subject AND m.agent = :agent ORDER BY m.made DESC LIMIT :count;

-- name: memos_of_subject
-- Every agent's answers for an item, without their content.
SELECT agent, step, answer, cost_pico, made FROM memo WHERE subject = :subject AND agent <> '' ORDER BY made;

-- name: answer_of_step
-- The digest of the answer that a step paid for, while it is kept.
SELECT m.answer FROM trace_steps t JOIN memo m ON m.subject = t.item AND m.step = t.step WHERE t.step = :step;

-- name: add_reply_schema
-- Keep a schema under its digest.
INSERT INTO reply_schema (digest, schema) VALUES (:digest, :schema) ON CONFLICT (digest) DO NOTHING;

-- name: reply_schemas
-- Every schema that was kept.
SELECT digest, schema FROM reply_schema;

-- name: reply_schema_count
-- How many were kept so far.
SELECT count(*) AS "count" FROM reply_schema;

-- name: steer
-- Have an agent asked again, or on another route; for one item of a run, or ('') for all of them.
INSERT INTO steer (run, item, agent, again, route) VALUES (:run, :item, :agent, :again, :route)
ON CONFLICT (run, item, agent) DO UPDATE
SET again = CASE WHEN excluded.again = '' THEN steer.again ELSE excluded.again END,
    route = CASE WHEN excluded.route = '' THEN steer.route ELSE excluded.route END;

-- name: forget_again
-- What was said of single items no longer counts: the agent is asked again for all of them.
UPDATE steer SET again = '' WHERE run = :run AND agent = :agent AND item <> '';

-- name: steered
-- What was decided about one item of a run; what is said of all items comes first.
SELECT agent, again, route FROM steer WHERE run = :run AND item IN ('', :item) ORDER BY item;

-- ── Keys ──

-- name: add_key
-- A new API key.
INSERT INTO api_key (id, tenant, name, digest, models, workflow, operator, created)
VALUES (:id, :tenant, :name, :digest, :models, :workflow, :operator, :created);

-- name: key_by_digest
-- The key behind a digest, unless revoked.
SELECT id, tenant, name, models, workflow, operator FROM api_key WHERE digest = :digest AND revoked IS NULL;

-- name: keys
-- Every key ever made, without anything secret.
SELECT id, tenant, name, models, workflow, operator, created, revoked FROM api_key ORDER BY created;

-- name: revoke_key
-- Take a key back.
UPDATE api_key SET revoked = :now WHERE tenant = :tenant AND name = :name AND revoked IS NULL;

-- name: count_keys
-- How many keys were ever made: after the first, loopback alone opens nothing.
SELECT count(*) AS keys FROM api_key;

-- name: paid_by_item
-- What each item of a run cost, and how often it left the house.
SELECT item, count(*) AS calls, coalesce(sum(CAST(json_extract(leaf, '$.total_us') AS INTEGER)), 0) AS total_us,
       coalesce(sum(CAST(json_extract(leaf, '$.cost_pico') AS INTEGER)), 0) AS cost_pico
FROM entry WHERE run = :run AND kind = 'step' AND json_extract(leaf, '$.status') NOT IN ('reused', 'unreached') GROUP BY item;

-- name: upstreams_of_run
-- Where a run's steps were answered.
SELECT DISTINCT json_extract(leaf, '$.upstream') AS upstream FROM entry WHERE run = :run AND kind = 'step';

-- ── Probes and the own API ──

-- name: add_probe
-- Keep what a probe found.
INSERT INTO probe (upstream, probed, model, findings, calls, tokens, pico)
VALUES (:upstream, :probed, :model, :findings, :calls, :tokens, :pico);

-- name: last_probe
-- What the newest probe of an upstream found.
SELECT upstream, probed, model, findings, calls, tokens, pico FROM probe
WHERE upstream = :upstream ORDER BY probed DESC LIMIT 1;

-- name: step
-- The public view, for one step of one tenant.
SELECT * FROM trace_steps WHERE step = :step AND tenant = :tenant;
-- ── Lanes ──

-- name: lane_members
-- Who holds slots, on every upstream and lane.
SELECT upstream, lane, owner, holds, wants, loan, turn FROM lane_member ORDER BY upstream, lane, owner;

-- name: members_of_lane
-- Who holds slots of one lane.
SELECT owner, holds, wants, loan, turn FROM lane_member WHERE upstream = :upstream AND lane = :lane;

-- name: change_member
-- Take part in a lane, or say anew what is wanted; `back` slots are given up.
INSERT INTO lane_member (upstream, lane, owner, wants, loan) VALUES (:upstream, :lane, :owner, :wants, :loan)
ON CONFLICT (upstream, lane, owner) DO UPDATE
SET holds = lane_member.holds - :back, wants = excluded.wants, loan = excluded.loan;

-- name: grant_slots
-- Give a member free slots.
UPDATE lane_member SET holds = holds + :more, turn = :turn
WHERE upstream = :upstream AND lane = :lane AND owner = :owner;

-- name: drop_member
-- A process leaves a lane, or is dead.
DELETE FROM lane_member WHERE upstream = :upstream AND lane = :lane AND owner = :owner;

-- name: lane_left
-- When a share of a lane was last given up.
SELECT at_us FROM lane_left WHERE upstream = :upstream AND lane = :lane;

-- name: set_lane_left
-- A share of a lane is given up.
INSERT INTO lane_left (upstream, lane, at_us) VALUES (:upstream, :lane, :at_us)
ON CONFLICT (upstream, lane) DO UPDATE SET at_us = excluded.at_us;

-- ── Memory of a run ──

-- name: memory
-- The newest value under a name, with what opens it.
SELECT m.version, m.body, b.sealed, s.id AS subject, s.wrapped
FROM memory m JOIN body b ON b.id = m.body JOIN subject s ON s.id = b.subject
WHERE m.tenant = :tenant AND m.run = :run AND m.owner = :owner AND m.name = :name;

-- name: add_memory
-- The first value under a name; none is written where somebody was faster.
INSERT INTO memory (tenant, run, owner, name, version, body) VALUES (:tenant, :run, :owner, :name, :version, :body)
ON CONFLICT (tenant, run, owner, name) DO NOTHING;

-- name: set_memory
-- Compare and set: a new value, unless it is no longer the one that was read.
UPDATE memory SET version = :version, body = :body
WHERE tenant = :tenant AND run = :run AND owner = :owner AND name = :name AND version = :known;

-- name: drop_body
-- A body that nobody refers to.
DELETE FROM body WHERE id = :body;

-- name: drop_unread_body
-- A value of a memory that is no longer the newest goes, unless an item has read it.
DELETE FROM body WHERE id = :body AND NOT EXISTS (SELECT 1 FROM memory_read r WHERE r.body = :body);

-- name: memory_update
-- What an update came to, once it is made.
SELECT version FROM memory_update WHERE fingerprint = :fingerprint;

-- name: add_memory_update
-- An update is made.
INSERT INTO memory_update (fingerprint, tenant, run, owner, name, version)
VALUES (:fingerprint, :tenant, :run, :owner, :name, :version);

-- name: memory_read
-- What an item has read under a name, after the updates it had made by then.
SELECT version, body FROM memory_read
WHERE tenant = :tenant AND run = :run AND owner = :owner AND name = :name AND reader = :reader AND after = :after;

-- name: add_memory_read
-- An item has read.
INSERT INTO memory_read (tenant, run, owner, name, reader, after, version, body)
VALUES (:tenant, :run, :owner, :name, :reader, :after, :version, :body);

-- ── Processes ──

-- name: add_process
-- A process takes part from now on.
INSERT INTO process (name, host) VALUES (:name, :host);

-- name: process
-- Is a process's row still there?
SELECT host FROM process WHERE name = :name;

-- name: processes
-- Every process's beat.
SELECT name, beat FROM process;

-- name: beat
-- A process says that it lives.
UPDATE process SET beat = beat + 1 WHERE name = :name;

-- name: bury
-- A process is dead, or leaves: from here on nothing of it is committed.
DELETE FROM process WHERE name = :name;

-- ── Schedules ──

-- name: schedules
-- What is known of each schedule: from when it counts, and its newest tick that is not after `now`.
SELECT s.name, s.cron, s.since, (SELECT max(t.at) FROM tick t WHERE t.schedule = s.name AND t.at <= :now) AS handled
FROM schedule s;

-- name: see_schedule
-- A schedule is there, or has another cron from now on.
INSERT INTO schedule (name, cron, since) VALUES (:name, :cron, :since)
ON CONFLICT (name) DO UPDATE SET cron = excluded.cron, since = excluded.since;

-- name: add_tick
-- A tick is taken: its run is being started, or it is skipped.
INSERT INTO tick (schedule, at, status, owner, trials, reason) VALUES (:schedule, :at, :status, :owner, 1, :reason);

-- name: busy_tick
-- Of a schedule's latest ticks, the newest whose run is being started, waits or is at work.
SELECT t.at, t.run
FROM (SELECT at, status, run FROM tick WHERE schedule = :schedule AND status IN ('starting', 'started')
      ORDER BY at DESC LIMIT 20) AS t
LEFT JOIN run r ON r.id = t.run
WHERE t.status = 'starting' OR r.status IN ('queued', 'running')
ORDER BY t.at DESC LIMIT 1;

-- name: starting_ticks
-- Ticks whose runs are being started.
SELECT schedule, at, owner, trials FROM tick WHERE status = 'starting' ORDER BY schedule, at;

-- name: retake_tick
-- starting -> starting: begun once more, by the same worker or because it is dead.
UPDATE tick SET owner = :owner, trials = trials + 1
WHERE schedule = :schedule AND at = :at AND status = 'starting' AND owner = :known_owner AND trials = :known_trials;

-- name: start_tick
-- starting -> started: by one run only.
UPDATE tick SET status = 'started', run = :run WHERE schedule = :schedule AND at = :at AND status = 'starting';

-- name: fail_tick
-- starting -> failed.
UPDATE tick SET status = 'failed', reason = :reason WHERE schedule = :schedule AND at = :at AND status = 'starting';

-- name: forget_ticks
-- Of what is older than `before` and than a schedule's newest thousand ticks: those that came to nothing, and all but
-- the latest 20 that were started.
DELETE FROM tick WHERE schedule = :schedule AND at < :before
  AND at < (SELECT at FROM tick WHERE schedule = :schedule ORDER BY at DESC LIMIT 1 OFFSET 999)
  AND (status IN ('skipped', 'failed')
       OR status = 'started' AND at < (SELECT at FROM tick WHERE schedule = :schedule AND status = 'started'
                                       ORDER BY at DESC LIMIT 1 OFFSET 19));

-- name: last_ticks
-- Each schedule's newest tick, and the newest run that one of its ticks started.
SELECT t.schedule, t.at, t.status, t.reason,
       (SELECT u.run FROM tick u WHERE u.schedule = t.schedule AND u.run IS NOT NULL ORDER BY u.at DESC LIMIT 1) AS run
FROM schedule s
JOIN tick t ON t.schedule = s.name AND t.at = (SELECT max(n.at) FROM tick n WHERE n.schedule = s.name);

-- ── Telemetry ──

-- name: totals
-- What steps came to by lane and upstream, from a day on and before another; of one tenant, or of all.
SELECT lane, upstream, sum(calls) AS calls, sum(reused) AS reused, sum(refused) AS refused, sum(failed) AS failed,
       sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cost_pico) AS cost_pico
FROM day_total WHERE day >= :since AND day < :until AND tenant = coalesce(:tenant, tenant) GROUP BY lane, upstream;

-- name: spent_by_tenant
-- What tenants spent in that time.
SELECT tenant, sum(cost_pico) AS cost_pico FROM day_total
WHERE day >= :since AND day < :until AND tenant = coalesce(:tenant, tenant) GROUP BY tenant;

-- name: wide_budgets
-- Every limit but those of runs and items.
SELECT * FROM budget WHERE substr(scope, 1, 4) <> 'run:' AND substr(scope, 1, 5) <> 'item:';

-- name: spending_of_budgets
-- What is spent and held of them in their current windows.
SELECT s.* FROM budget b JOIN spending s ON s.scope = b.scope
  AND s.window = CASE b.period WHEN 'day' THEN :day WHEN 'month' THEN :month ELSE 'total' END
WHERE substr(b.scope, 1, 4) <> 'run:' AND substr(b.scope, 1, 5) <> 'item:';

-- name: count_runs
-- Runs by status; of one tenant, or of all.
SELECT status, count(*) AS runs FROM run WHERE tenant = coalesce(:tenant, tenant) GROUP BY status;

-- name: count_live_items
-- Items of runs that are queued or at work, by status; of one tenant, or of all.
SELECT i.status, count(*) AS items FROM run r JOIN item i ON i.run = r.id
WHERE r.status IN ('queued', 'running') AND r.tenant = coalesce(:tenant, r.tenant) GROUP BY i.status;
