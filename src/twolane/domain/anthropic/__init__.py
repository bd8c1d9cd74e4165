"""Requests in Anthropic's words and in OpenAI's: each told in the other's.

What the other side has no word for is dealt with in one of three ways, and the tables below say which:

- dropped, where only the manner of an answer changes (`top_k`, `cache_control`, `seed`, `logprobs` …);
- passed on as it came, where the meaning would change (a server tool, a file by address): an upstream that does not
  know it refuses it in its own words, which is honest;
- refused with `Untellable`, where nothing could be passed on (`n` above 1, `functions`).

| Anthropic → OpenAI | |
|---|---|
| `system`, `messages` | messages; several blocks of `system` are joined by line ends |
| `tool_use`, `tool_result` | `tool_calls`, messages of role `tool`; pictures in a result follow in the user's turn |
| `thinking`, `redacted_thinking` blocks | dropped: only who signed them can read them |
| `stop_sequences`, `metadata.user_id`, `top_p`, `temperature` | `stop`, `user`, as they are |
| `tools`, `tool_choice`, `disable_parallel_tool_use` | `tools`, `tool_choice`, `parallel_tool_calls` |
| `output_config.format`, `output_format` | a JSON Schema reply |
| `top_k`, `thinking`, `output_config.effort`, `service_tier`, `cache_control` and all others | dropped |

| OpenAI → Anthropic | |
|---|---|
| messages of role `system`, `developer` | `system`, wherever they stood (as Anthropic's own compatible endpoint does) |
| `stop`, `user` or `safety_identifier`, `top_p` | `stop_sequences`, `metadata.user_id`, as it is |
| `temperature` | at most 1 |
| `tools`, `tool_choice`, `parallel_tool_calls` | `tools`, `tool_choice`, `disable_parallel_tool_use` |
| `reasoning_effort` | `output_config.effort` |
| `response_format` `json_object` | words |
| `top_k`, `thinking` | as they are: Anthropic's own, given by clients that know whom they ask |
| `n` above 1, `functions`, `function_call`, sound | refused |
| `seed`, `logprobs`, `logit_bias`, penalties, `metadata`, `service_tier` and all others | dropped |

Sources: the types of anthropic 2.11.0 and openai 3.52.0; Anthropic's page on OpenAI SDK compatibility.

An answer goes through three forms. `Chunker` reads an upstream's events and writes chunks, with the event itself beside
them where a client of the same dialect waits. `Teller` reads chunks and writes events. `whole_message` puts events back
together. No I/O, no clock.
"""
