"""The tree against its definition, and against what others' implementations say."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.merkle import (
    EMPTY_ROOT,
    CompactRange,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

leaves = st.integers(1, 70).map(lambda size: [leaf_hash(b"%d" % at) for at in range(size)])


# The definition of RFC 6962 section 2.1, as it is written there.


def split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def defined_root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    at = split(len(hashes))
    return sha256(b"\x01" + defined_root(hashes[:at]) + defined_root(hashes[at:])).digest()


def defined_path(hashes: list[bytes], index: int) -> list[bytes]:
    if len(hashes) == 1:
        return []
    at = split(len(hashes))
    if index < at:
        return [*defined_path(hashes[:at], index), defined_root(hashes[at:])]
    return [*defined_path(hashes[at:], index - at), defined_root(hashes[:at])]


def defined_subproof(hashes: list[bytes], size1: int, *, is_whole_old_tree: bool) -> list[bytes]:
    if size1 == len(hashes):
        return [] if is_whole_old_tree else [defined_root(hashes)]
    at = split(len(hashes))
    if size1 <= at:
        return [
            *defined_subproof(hashes[:at], size1, is_whole_old_tree=is_whole_old_tree),
            defined_root(hashes[at:]),
        ]
    return [*defined_subproof(hashes[at:], size1 - at, is_whole_old_tree=False), defined_root(hashes[:at])]


@given(leaves)
def test_the_root_is_the_defined_one(hashes: list[bytes]) -> None:
    assert root(hashes) == defined_root(hashes)


@given(leaves, st.data())
def test_an_inclusion_proof_is_the_defined_path_and_holds(hashes: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(hashes) - 1))
    proof = inclusion_proof(hashes, index)
    assert proof == defined_path(hashes, index)
    assert verify_inclusion(hashes[index], proof, index=index, size=len(hashes), root=root(hashes))


@given(leaves.filter(lambda hashes: len(hashes) > 1), st.data())
def test_a_consistency_proof_is_the_defined_one_and_holds(hashes: list[bytes], data: st.DataObject) -> None:
    size1 = data.draw(st.integers(1, len(hashes) - 1))
    proof = consistency_proof(hashes, size1)
    assert proof == defined_subproof(hashes, size1, is_whole_old_tree=True)
    assert verify_consistency(proof, size1=size1, root1=root(hashes[:size1]), size2=len(hashes), root2=root(hashes))


@given(leaves, st.data())
def test_no_altered_inclusion_proof_holds(hashes: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(hashes) - 1))
    proof, head = inclusion_proof(hashes, index), root(hashes)
    foreign = leaf_hash(b"foreign")
    size = len(hashes)
    assert not verify_inclusion(foreign, proof, index=index, size=size, root=head)
    assert not verify_inclusion(hashes[index], [*proof, foreign], index=index, size=size, root=head)
    other = data.draw(st.integers(-2, 2 * size).filter(lambda at: at != index))
    assert not verify_inclusion(hashes[index], proof, index=other, size=size, root=head)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not verify_inclusion(hashes[index], proof[:-1], index=index, size=size, root=head)
        swapped = [*proof[:at], foreign, *proof[at + 1 :]]
        assert not verify_inclusion(hashes[index], swapped, index=index, size=size, root=head)
        short = [*proof[:at], proof[at][:31], *proof[at + 1 :]]
        assert not verify_inclusion(hashes[index], short, index=index, size=size, root=head)


@given(leaves.filter(lambda hashes: len(hashes) > 1), st.data())
def test_a_rewritten_past_is_never_consistent(hashes: list[bytes], data: st.DataObject) -> None:
    size1 = data.draw(st.integers(1, len(hashes) - 1))
    at = data.draw(st.integers(0, size1 - 1))
    rewritten = [*hashes[:at], leaf_hash(b"rewritten"), *hashes[at + 1 :]]
    old, new = root(hashes[:size1]), root(rewritten)
    size2 = len(hashes)
    for proof in (consistency_proof(hashes, size1), consistency_proof(rewritten, size1)):
        assert not verify_consistency(proof, size1=size1, root1=old, size2=size2, root2=new)
    honest = consistency_proof(hashes, size1)
    assert not verify_consistency(honest[:-1], size1=size1, root1=old, size2=size2, root2=root(hashes))
    assert not verify_consistency([*honest, old], size1=size1, root1=old, size2=size2, root2=root(hashes))


@given(st.integers(0, 300), st.integers(0, 70))
def test_a_stored_range_grows_on_as_if_it_had_never_been_stored(before: int, after: int) -> None:
    hashes = [leaf_hash(b"%d" % at) for at in range(before + after)]
    grown = CompactRange()
    for leaf in hashes[:before]:
        grown.push(leaf)
    again, twin = CompactRange.from_bytes(grown.to_bytes()), grown.copy()
    assert again == grown == twin
    for leaf in hashes[before:]:
        again.push(leaf)
    assert (again.size, again.root()) == (before + after, root(hashes))
    assert (grown.size, grown.root()) == (before, root(hashes[:before])), "the copies are independent"
    assert len(again.to_bytes()) == 8 + 32 * (before + after).bit_count()


@given(st.integers(0, 40), st.integers(-9, 40).filter(bool))
def test_a_cut_or_padded_range_is_refused(size: int, change: int) -> None:
    grown = CompactRange()
    for at in range(size):
        grown.push(leaf_hash(b"%d" % at))
    state = grown.to_bytes()
    damaged = state[:change] if change < 0 else state + bytes(change)
    with pytest.raises(ValueError, match="a range of"):
        CompactRange.from_bytes(damaged)


def test_the_known_roots_of_the_certificate_transparency_tree() -> None:
    """The eight leaves that every implementation of RFC 6962 is tested with."""
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashes = [leaf_hash(bytes.fromhex(entry)) for entry in entries]
    assert root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root(hashes[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(hashes).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_leaf_and_node_cannot_be_taken_for_each_other() -> None:
    left, right = leaf_hash(b"left"), leaf_hash(b"right")
    assert node_hash(left, right) != leaf_hash(left + right)
    assert node_hash(left, right) != node_hash(right, left)


def test_what_cannot_be_proved_is_refused() -> None:
    hashes = [leaf_hash(b"%d" % at) for at in range(5)]
    for index in (-1, 5):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(hashes, index)
    for size1 in (-1, 0, 5, 6):
        with pytest.raises(ValueError, match="no consistency proof"):
            consistency_proof(hashes, size1)


def test_hashes_of_another_length_are_refused() -> None:
    good, bad = leaf_hash(b"good"), b"bad"
    with pytest.raises(ValueError, match="32 bytes"):
        root([good, bad])
    with pytest.raises(ValueError, match="32 bytes"):
        inclusion_proof([good, bad], 0)
    with pytest.raises(ValueError, match="32 bytes"):
        consistency_proof([good, bad], 1)
    grown = CompactRange()
    with pytest.raises(ValueError, match="32 bytes"):
        grown.push(bad)
    assert (grown.size, grown.root()) == (0, EMPTY_ROOT)
    assert not verify_inclusion(b"", [], index=0, size=1, root=b"")


# Vectors of others; see ../shared/data/audit/README.md for their origin.


def unbase64(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def proof_vectors(folder: Path) -> list[dict[str, Any]]:  # Any: parsed JSON
    found = [json.loads(path.read_bytes()) for path in sorted(folder.rglob("*.json"))]
    assert len(found) == 98
    return found


def test_inclusion_vectors_are_judged_as_published(shared: Path) -> None:
    for vector in proof_vectors(shared / "data/audit/rfc6962-proofs/inclusion"):
        holds = verify_inclusion(
            unbase64(vector["leafHash"]),
            [unbase64(neighbour) for neighbour in vector["proof"] or []],
            index=vector["leafIdx"],
            size=vector["treeSize"],
            root=unbase64(vector["root"]),
        )
        assert holds is not vector["wantErr"], vector["desc"]


def test_consistency_vectors_are_judged_as_published(shared: Path) -> None:
    for vector in proof_vectors(shared / "data/audit/rfc6962-proofs/consistency"):
        holds = verify_consistency(
            [unbase64(neighbour) for neighbour in vector["proof"] or []],
            size1=vector["size1"],
            root1=unbase64(vector["root1"]),
            size2=vector["size2"],
            root2=unbase64(vector["root2"]),
        )
        assert holds is not vector["wantErr"], vector["desc"]


def test_a_tree_of_1000_entries_has_the_published_roots_and_proofs(shared: Path) -> None:
    tree = json.loads(gzip.decompress((shared / "data/audit/tree-1000.json.gz").read_bytes()))
    hashes = [leaf_hash(unbase64(entry)) for entry in tree["entries"]]
    roots = [unbase64(text) for text in tree["roots"]]
    grown = CompactRange()
    assert grown.root() == roots[0]
    for leaf, expected in zip(hashes, roots[1:], strict=True):
        grown.push(leaf)
        assert grown.root() == expected
    for vector in tree["inclusion"]:
        index, size, proof = vector["i"], vector["n"], [unbase64(text) for text in vector["p"]]
        assert inclusion_proof(hashes[:size], index) == proof
        assert verify_inclusion(hashes[index], proof, index=index, size=size, root=roots[size])
    for vector in tree["consistency"]:
        size1, size2, proof = vector["m"], vector["n"], [unbase64(text) for text in vector["p"]]
        if size1 < size2:
            assert consistency_proof(hashes[:size2], size1) == proof
        assert verify_consistency(proof, size1=size1, root1=roots[size1], size2=size2, root2=roots[size2])


@pytest.mark.parametrize("size", range(1, 16))
def test_the_tiles_of_a_published_log_have_its_signed_roots(shared: Path, size: int) -> None:
    log = shared / "data/audit/tlog-tiles-16"
    bundle, entries = (log / f"tile/entries/000.p/{size}").read_bytes(), []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        entries.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    hashes = [leaf_hash(entry) for entry in entries]
    assert b"".join(hashes) == (log / f"tile/0/000.p/{size}").read_bytes()
    _origin, signed_size, signed_root, *_ = (log / f"checkpoint.{size}").read_text().splitlines()
    assert int(signed_size) == size == len(hashes)
    assert root(hashes) == binascii.a2b_base64(signed_root)
