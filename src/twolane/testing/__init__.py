"""Kit for users' own tests: a platform over a throw-away store, with scripted upstreams in place of real ones.

```python
async with Rehearsal(planner=['{"topics": ["price"]}'], verifier='{"breaches": "none"}') as platform:
    summary = await platform.run(audit, [Document("a", "The price is 5 EUR.")], budget="$1")
assert summary.status == "done"
```
"""

from __future__ import annotations

from twolane.testing.rehearsal import Rehearsal, Reply

__all__ = ["Rehearsal", "Reply"]
