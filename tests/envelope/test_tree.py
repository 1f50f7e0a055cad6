"""The Merkle tree against a naive one that follows the RFC's definitions word by word, and
against known roots.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.envelope import merkle_tree as tree
from cipherbox.errors import CipherBoxError

# The leaves that Certificate Transparency's tests use, and the roots of the first n of them.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
MOST = 70


def naive_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def split(count: int) -> int:
    k = 1
    while k * 2 < count:
        k *= 2
    return k


class Kept:
    """What a store keeps: the subtrees each leaf completes."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.edge, self.rows, self.reads = tree.RightEdge(), dict[int, list[bytes]](), 0
        for leaf in leaves:
            done = self.edge.append(tree.leaf_hash(leaf))
            self.rows[self.edge.size] = done

    def read(self, nodes: list[tree.Node]) -> list[bytes]:
        self.reads += len(nodes)
        return [self.rows[tree.completed_by(node)][node[0]] for node in nodes]


def test_the_roots_are_those_everybody_knows() -> None:
    kept = Kept([])
    assert kept.edge.root() == tree.EMPTY_ROOT
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        kept.edge.append(tree.leaf_hash(leaf))
        assert kept.edge.root().hex() == root


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=MOST), st.data())
def test_proofs_are_those_of_the_definitions(leaves: list[bytes], data: st.DataObject) -> None:
    kept = Kept(leaves)
    new = data.draw(st.integers(1, len(leaves)))
    old = data.draw(st.integers(1, new))
    index = data.draw(st.integers(0, new - 1))
    roots = naive_root(leaves[:old]), naive_root(leaves[:new])
    assert tree.root_at(new, kept.read) == roots[1]
    assert tree.RightEdge(new, kept.read(tree.edge_nodes(new))).root() == roots[1]
    path = tree.inclusion_proof(index, new, kept.read)
    assert list(path) == naive_path(index, leaves[:new])
    assert tree.root_from_path(tree.leaf_hash(leaves[index]), index, new, path) == roots[1]
    proof = tree.consistency_proof(old, new, kept.read)
    assert list(proof) == naive_subproof(old, leaves[:new], True)
    assert tree.is_consistent(old, roots[0], new, roots[1], proof)
    for at in range(len(proof)):
        wrong = [*proof[:at], bytes(32), *proof[at + 1 :]]
        assert not tree.is_consistent(old, roots[0], new, roots[1], wrong)
    for other in ([*proof, bytes(32)], list(proof[:-1])):
        if list(proof) != other:
            assert not tree.is_consistent(old, roots[0], new, roots[1], other)
    assert not tree.is_consistent(old, bytes(32), new, roots[1], proof)
    assert not tree.is_consistent(old, roots[0], new, bytes(32), proof)


def test_every_pair_of_sizes_is_consistent_and_no_other_proof_fits() -> None:
    sizes = 20  # with edges of several heights, which pairs drawn at random seldom have
    leaves = [bytes([n]) for n in range(sizes)]
    kept, roots = Kept(leaves), [naive_root(leaves[:size]) for size in range(1, sizes + 1)]
    for new in range(1, sizes + 1):
        assert tree.consistency_proof(0, new, kept.read) == ()
        for old in range(1, new + 1):
            proof = tree.consistency_proof(old, new, kept.read)
            assert tree.is_consistent(old, roots[old - 1], new, roots[new - 1], proof)
            if 1 < old < new:
                wrong = tree.is_consistent(old - 1, roots[old - 1], new, roots[new - 1], proof)
                assert not wrong


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=MOST), st.data())
def test_a_changed_leaf_is_never_consistent(leaves: list[bytes], data: st.DataObject) -> None:
    old = data.draw(st.integers(1, len(leaves)))
    at = data.draw(st.integers(0, old - 1))
    changed = [*leaves]
    changed[at] += b"x"
    kept = Kept(changed)
    proof = tree.consistency_proof(old, len(leaves), kept.read)
    assert not tree.is_consistent(
        old, naive_root(leaves[:old]), len(leaves), kept.edge.root(), proof
    )


@given(
    st.integers(0, MOST),
    st.integers(0, MOST),
    st.lists(st.binary(min_size=32, max_size=32), max_size=8),
)
def test_bytes_at_random_prove_nothing_and_raise_nothing(
    old: int, new: int, path: list[bytes]
) -> None:
    assert not tree.is_consistent(old, b"a" * 32, new, b"b" * 32, path)


def test_the_path_of_the_next_leaf_needs_no_read() -> None:
    kept = Kept([])
    for number in range(40):
        path, leaf = kept.edge.path(), tree.leaf_hash(bytes([number]))
        kept.rows[number + 1] = kept.edge.append(leaf)
        assert path == tree.inclusion_proof(number, number + 1, kept.read)


def test_the_path_of_the_last_leaf_is_the_tree_before_it() -> None:
    edge = tree.RightEdge()
    for number in range(40):
        assert tree.root_before(edge.path()) == edge.root()
        edge.append(tree.leaf_hash(bytes([number])))


def test_proofs_and_reads_are_logarithmic() -> None:
    kept = Kept([n.to_bytes(2, "big") for n in range(5000)])
    for old, new in ((1, 5000), (2500, 5000), (4095, 4999), (4999, 5000)):
        kept.reads = 0
        assert len(tree.consistency_proof(old, new, kept.read)) <= 26
        assert len(tree.inclusion_proof(old, new, kept.read)) <= 13
        assert kept.reads <= 60


def test_what_lies_outside_is_refused() -> None:
    kept = Kept(LEAVES)
    for call in (
        lambda: tree.inclusion_proof(8, 8, kept.read),
        lambda: tree.inclusion_proof(-1, 8, kept.read),
        lambda: tree.consistency_proof(9, 8, kept.read),
        lambda: tree.merkle_root([]),
        lambda: tree.RightEdge(3, [bytes(32)]),
        lambda: tree.root_from_path(bytes(32), 8, 8, ()),
    ):
        with pytest.raises(CipherBoxError):
            call()
    assert not tree.is_consistent(8, bytes(32), 7, bytes(32), ())


def test_the_root_of_a_tree_without_leaves_is_the_hash_of_nothing() -> None:
    assert tree.root_at(0, lambda ranges: []) == hashlib.sha256(b"").digest()


def test_every_tree_begins_with_the_empty_one_and_none_with_a_larger() -> None:
    roots = [tree.merkle_root([tree.leaf_hash(bytes([n])) for n in range(size)]) for size in (1, 2)]
    assert tree.is_consistent(0, tree.EMPTY_ROOT, 2, roots[1], ())
    assert tree.is_consistent(0, tree.EMPTY_ROOT, 0, tree.EMPTY_ROOT, ())
    assert not tree.is_consistent(0, roots[0], 2, roots[1], ())
    assert not tree.is_consistent(0, tree.EMPTY_ROOT, 2, roots[1], (bytes(32),))
    assert not tree.is_consistent(2, roots[1], 1, roots[0], ())
    assert not tree.is_consistent(-1, tree.EMPTY_ROOT, 1, roots[0], ())
