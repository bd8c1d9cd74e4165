"""What happens when step 7 of 10 fails? Ten agents, one after another; the seventh's reply does not fit its schema.

    python examples/step7of10.py

Nothing real is called: a scripted upstream answers each agent and counts what reaches it. The exit code is 0 only if
everything that is printed holds.
"""

from __future__ import annotations

import asyncio
import json

from pydantic import BaseModel

from twolane import Agent, Document, Item, Platform, Prompt, Workflow, agent, workflow
from twolane.domain.records import ModelCall
from twolane.rules.merkle import consistency_proof, verify_consistency
from twolane.testing import Rehearsal, Reply

NAMES = ("reader", "parties", "scope", "prices", "terms", "risks", "limits", "rules", "advice", "letter")
SEVENTH = NAMES[6]
CONTRACTS = [Document(f"contract-{number}", f"The liability is limited to {number} EUR.") for number in (1, 2, 3)]
BAD = "contract-2"


class Note(BaseModel):
    text: str


def make(name: str, words: str = "") -> Agent[[Document, Note], Note]:
    def prompt(contract: Document, before: Note) -> Prompt:
        return Prompt(f"You are {name}.{words}", f"So far: {before.text}", context=(contract,), max_tokens=100)

    return agent(returns=Note, name=name)(prompt)


def chain(agents: list[Agent[[Document, Note], Note]]) -> Workflow:
    @workflow(version="1", name="ten-steps")
    async def ten_steps(contract: Document, do: Item) -> Note:
        note = Note(text="nothing")
        for each in agents:
            note = await do(each, contract, note)
        return note

    return ten_steps


def answer(name: str) -> Reply:
    """What an agent's upstream says. The seventh's says nonsense about one contract until its prompt is mended."""

    def reply(call: ModelCall) -> str:
        system, documents = call.messages[0].content, call.messages[1].content
        if name == SEVENTH and BAD in documents and "as JSON" not in system:
            return "Limited, I would say."
        return json.dumps({"text": f"{name} has read it"})

    return reply


class Tree:
    """The ledger's tree at a moment: its size, its root, and every leaf's hash."""

    def __init__(self, platform: Platform) -> None:
        kept = platform.kernel.store.one("tree")
        assert kept is not None
        self.size, self.root = kept["size"], bytes(kept["root"])
        rows = platform.kernel.store.all("entries", first=0, count=self.size)
        self.hashes, self.leaves = [bytes(row["hash"]) for row in rows], [json.loads(row["leaf"]) for row in rows]


async def main() -> None:
    before = [make(name) for name in NAMES]
    mended = [make(name, " Answer as JSON." if name == SEVENTH else "") for name in NAMES]
    rehearsal = Rehearsal({name: answer(name) for name in NAMES})
    async with rehearsal as platform:
        first = await platform.run(chain(before), CONTRACTS)
        asked, old = {name: rehearsal.requests(name) for name in NAMES}, Tree(platform)
        print(f"run: {first.items['done']} contracts done, {first.items['quarantined']} in quarantine")
        print(f"  calls of steps 1 to 10: {list(asked.values())} (step 7: asked, refused, asked once more, refused)")
        assert first.items == {"total": 3, "done": 2, "quarantined": 1}
        assert list(asked.values()) == [3, 3, 3, 3, 3, 3, 4, 2, 2, 2]

        plan = await platform.plan_run(first.run, quarantined=True, flow=chain(mended))
        print(f"plan after the fix: {plan.reused} reused, {plan.calls} called (3 of them if step 7 says something new)")
        assert [plan.agents[name].reused for name in NAMES[:6]] == [1] * 6
        assert plan.agents[SEVENTH].why == {"its last reply was refused": 1}

        await platform.prepare_resume(first.run, quarantined=True)
        second = await platform.work(first.run, flow=chain(mended))
        now, new = {name: rehearsal.requests(name) for name in NAMES}, Tree(platform)
        fresh = [now[name] - asked[name] for name in NAMES]
        reused = [second.by_agent[name]["reused"] for name in NAMES[:6]]
        print(f"resumed: {second.items['done']} contracts done")
        print(f"  calls of steps 1 to 6: {sum(fresh[:6])}, reused: {reused}")
        print(f"  calls of steps 7 to 10: {fresh[6:]}")
        assert second.items == {"total": 3, "done": 3, "quarantined": 0}
        assert (fresh, reused) == ([0] * 6 + [1] * 4, [1] * 6)

        proof = consistency_proof(new.hashes, old.size)
        holds = verify_consistency(proof, size1=old.size, root1=old.root, size2=new.size, root2=new.root)
        refused = [at for at, leaf in enumerate(old.leaves) if leaf.get("status") == "refused"]
        kept = [at for at in refused if new.hashes[at] == old.hashes[at] and new.leaves[at] == old.leaves[at]]
        print(f"ledger: {old.size} entries, now {new.size}; the old tree is a beginning of the new one: {holds}")
        print(f"  its refused entries (two replies, a handoff): {len(refused)}, still there unchanged: {len(kept)}")
        print(f"  the whole ledger verifies: {platform.verify().ok}")
        assert holds
        assert len(kept) == len(refused) == 3
        assert platform.verify().ok


if __name__ == "__main__":
    asyncio.run(main())
