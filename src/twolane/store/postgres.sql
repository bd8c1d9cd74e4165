-- What PostgreSQL needs in other words than `queries.sql` and the schema: each block stands for the one of its name there.

-- name: json_extract
-- The member of a leaf as text; NULL where there is none. Made before version 1. PostgreSQL's text holds no NUL.
CREATE FUNCTION json_extract(document TEXT, path TEXT) RETURNS TEXT LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN replace(document, '\u0000', '\ufffd')::json ->> substr(path, 3);

-- name: trace_steps
-- Parses each leaf once.
CREATE VIEW trace_steps AS
SELECT
  l.step, e.run, coalesce(s.name, e.item) AS item, l.agent, l.workflow, l.tenant, l.lane, l.attempt, l.op AS kind,
  l.upstream, l.model, l.input_tokens, l.output_tokens, l.cache_read_tokens, l.cache_write_tokens, l.reasoning_tokens,
  l.cost_pico, l.currency, l.queued_us, l.ttft_us, l.total_us, l.status, l.reason, l.input_digest, l.output_digest,
  e.position AS leaf
FROM entry e
LEFT JOIN subject s ON s.id = e.item
CROSS JOIN LATERAL json_to_record(replace(e.leaf, '\u0000', '\ufffd')::json) AS l (
  step TEXT, agent TEXT, workflow TEXT, tenant TEXT, lane TEXT, attempt BIGINT, op TEXT, upstream TEXT, model TEXT,
  input_tokens BIGINT, output_tokens BIGINT, cache_read_tokens BIGINT, cache_write_tokens BIGINT,
  reasoning_tokens BIGINT, cost_pico BIGINT, currency TEXT, queued_us BIGINT, ttft_us BIGINT, total_us BIGINT,
  status TEXT, reason TEXT, input_digest TEXT, output_digest TEXT
)
WHERE e.kind = 'step';

-- name: append_entries
-- Add leaves (a JSON list of texts) from a position on, with their hashes (32 bytes each, in one).
INSERT INTO entry (position, leaf, hash)
SELECT :first + at - 1, leaf, substr(:hashes::bytea, (at::int - 1) * 32 + 1, 32)
FROM json_array_elements_text(:leaves::json) WITH ORDINALITY AS each (leaf, at);

-- name: entries
-- Leaves in order, a page at a time, as bytes.
SELECT position, convert_to(leaf, 'UTF8') AS leaf, hash FROM entry WHERE position >= :first ORDER BY position LIMIT :count;

-- name: step
-- The public view, for one step of one tenant: found by its own index first.
SELECT t.* FROM entry e JOIN trace_steps t ON t.leaf = e.position
WHERE e.kind = 'step' AND json_extract(e.leaf, '$.step') = :step AND t.tenant = :tenant;
