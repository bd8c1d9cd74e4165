"""The tree under the ledger: RFC 6962 with SHA-256, its proofs and their checks.

A leaf is hashed with the prefix 0x00, a node with 0x01, so that neither can pass for the other. A tree of any size is
built by pairing neighbours on each level; a last one without a neighbour moves up unchanged. That is the same tree as
the recursive definition of RFC 6962 section 2.1, and makes every proof a walk from a leaf to the root.

Nothing here reads or writes: hashes come in, hashes go out. Making a proof with a hash that is not 32 bytes is the
caller's mistake and raises ValueError; checking a stranger's proof never raises, it says False.

Sources: RFC 6962 section 2.1 (tree and proofs), RFC 9162 sections 2.1.3.2 and 2.1.4.2 (the two checks).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

HASH_BYTES = 32
"""Length of every hash in the tree."""

EMPTY_ROOT = sha256(b"").digest()
"""Root of the tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry, taken over its bytes exactly as they are stored."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above two neighbours."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A growing tree that remembers only the roots of its perfect subtrees: at most one hash per bit of its size.

    `push` costs one node hash on average and no look-up. The range lives in memory; whoever persists leaves stores
    `to_bytes()` in the same transaction and, when that fails, goes back to the `copy()` taken before.

    Invariant: `_peaks` holds the perfect subtrees from left to right, one for each bit set in `_size`, largest first.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []

    @property
    def size(self) -> int:
        """How many leaves were pushed."""
        return self._size

    def push(self, leaf: bytes) -> None:
        """Append one leaf, given as its `leaf_hash`.

        Raises:
            ValueError: the hash is not 32 bytes long; nothing was appended.
        """
        if len(leaf) != HASH_BYTES:
            raise ValueError(f"a leaf hash has {HASH_BYTES} bytes, this one {len(leaf)}")
        peaks = self._peaks
        node = leaf
        carry = self._size
        # Adding one to a binary number: each trailing 1 is a finished neighbour to merge with. Written out instead of
        # calling node_hash, because the ledger's writer spends most of its hashing time here.
        while carry & 1:
            node = sha256(b"\x01" + peaks.pop() + node).digest()
            carry >>= 1
        peaks.append(node)
        self._size += 1

    def root(self) -> bytes:
        """The root over all leaves so far; `EMPTY_ROOT` before the first."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node

    def copy(self) -> CompactRange:
        """An independent range of the same state."""
        twin = CompactRange()
        twin._size = self._size
        twin._peaks = self._peaks.copy()
        return twin

    def to_bytes(self) -> bytes:
        """The state for storage: the size as 8 bytes, big-endian, then each subtree root from left to right."""
        return self._size.to_bytes(8, "big") + b"".join(self._peaks)

    @classmethod
    def from_bytes(cls, state: bytes) -> CompactRange:
        """The range that `to_bytes` wrote.

        Raises:
            ValueError: the length does not fit the size, so these bytes are cut or foreign.
        """
        size = int.from_bytes(state[:8], "big")
        expected = 8 + HASH_BYTES * size.bit_count()
        if len(state) != expected:
            raise ValueError(f"a range of {size} leaves has {expected} bytes, these are {len(state)}")
        grown = cls()
        grown._size = size
        grown._peaks = [state[at : at + HASH_BYTES] for at in range(8, expected, HASH_BYTES)]
        return grown

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompactRange):
            return NotImplemented
        return self._size == other._size and self._peaks == other._peaks

    __hash__ = None  # type: ignore[assignment]  # it grows, so it cannot be a key

    def __repr__(self) -> str:
        return f"CompactRange(size={self._size}, root={self.root().hex()[:12]}…)"


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes, in their order.

    Raises:
        ValueError: a hash is not 32 bytes long.
    """
    tree = CompactRange()
    for leaf in leaf_hashes:
        tree.push(leaf)
    return tree.root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The neighbours on the way from leaf `index` to the root, lowest first: the audit path of RFC 6962.

    Hashes the whole tree once. At most one hash per level; none for a tree of one leaf.

    Raises:
        ValueError: there is no leaf `index`, or a hash is not 32 bytes long.
    """
    if not 0 <= index < len(leaf_hashes):
        raise ValueError(f"no leaf {index} in a tree of {len(leaf_hashes)}")
    proof = []
    for level in _levels(leaf_hashes):
        neighbour = index ^ 1
        if neighbour < len(level):
            proof.append(level[neighbour])
        index >>= 1
    return proof


def consistency_proof(leaf_hashes: Sequence[bytes], size1: int) -> list[bytes]:
    """What shows that the tree of the first `size1` leaves is a beginning of the tree of all of them.

    Hashes the whole tree once. Between equal sizes there is nothing to prove and verifiers disagree about an empty
    proof, so none is made: compare the roots instead. Nor is there one from the empty tree, which begins every tree.

    Raises:
        ValueError: `size1` is not between 1 and one less than the tree's size, or a hash is not 32 bytes long.
    """
    if not 1 <= size1 < len(leaf_hashes):
        raise ValueError(f"no consistency proof from size {size1} to size {len(leaf_hashes)}")
    proof = []
    at = size1 - 1
    climbing = True
    for level in _levels(leaf_hashes):
        # First up to the largest perfect subtree that ends the old tree. It opens the proof, unless it is the whole
        # old tree: then the verifier holds it already, as the old root.
        if climbing and at & 1 == 0:
            climbing = False
            if at:
                proof.append(level[at])
        if not climbing and at ^ 1 < len(level):
            proof.append(level[at ^ 1])
        at >>= 1
    return proof


def verify_inclusion(leaf: bytes, proof: Sequence[bytes], *, index: int, size: int, root: bytes) -> bool:
    """Whether `proof` shows the leaf hash `leaf` at position `index` of the tree with this size and root.

    False for anything else, whatever the input: a proof too long or too short, a hash that is not 32 bytes long, an
    index outside the tree.
    """
    if not 0 <= index < size or not _are_hashes((leaf, root, *proof)):
        return False
    node, at, last = leaf, index, size - 1
    for neighbour in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(neighbour, node)
            while at & 1 == 0 and at:
                at >>= 1
                last >>= 1
        else:
            node = node_hash(node, neighbour)
        at >>= 1
        last >>= 1
    return last == 0 and node == root


def verify_consistency(proof: Sequence[bytes], *, size1: int, root1: bytes, size2: int, root2: bytes) -> bool:
    """Whether `proof` shows that the tree (size1, root1) is a beginning of the tree (size2, root2).

    Equal sizes are consistent when their roots are equal and the proof is empty: nothing is hashed there, so the roots
    may have any length. False for the empty old tree, since such a proof would say nothing, and for anything malformed.
    """
    if size1 < 1 or size2 < size1:
        return False
    if size1 == size2:
        return not proof and root1 == root2
    if not proof or not _are_hashes((root1, root2, *proof)):
        return False
    at, last = size1 - 1, size2 - 1
    while at & 1:
        at >>= 1
        last >>= 1
    # `at` is now the largest perfect subtree that ends the old tree. Where that is the whole old tree, its hash is the
    # old root; otherwise the proof opens with it.
    rest = iter(proof)
    old = new = next(rest) if at else root1
    for neighbour in rest:
        if last == 0:
            return False
        if at & 1 or at == last:
            old = node_hash(neighbour, old)
            new = node_hash(neighbour, new)
            while at & 1 == 0 and at:
                at >>= 1
                last >>= 1
        else:
            new = node_hash(new, neighbour)
        at >>= 1
        last >>= 1
    return last == 0 and old == root1 and new == root2


def _are_hashes(candidates: Iterable[bytes]) -> bool:
    return all(len(candidate) == HASH_BYTES for candidate in candidates)


def _levels(leaf_hashes: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    """Every level of the tree that has neighbours, leaves first; the root's own level is left out."""
    if not _are_hashes(leaf_hashes):
        raise ValueError(f"every leaf hash has {HASH_BYTES} bytes")
    level = leaf_hashes
    while len(level) > 1:
        yield level
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) & 1:
            above.append(level[-1])
        level = above
