"""The Merkle tree of RFC 9162, section 2.1: hashes, proofs of inclusion and of consistency, and an
append in O(log n).

A perfect subtree is named (level, index): its 2^level leaves begin at leaf index * 2^level.  A log
stores the hash of each perfect subtree once, with the leaf that completes it (`RightEdge.append`
returns those).  Every proof then consists of O(log n) of them, which `Nodes` reads.

Pure functions of hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from cipherbox.errors import InvalidRequest, MalformedEnvelope

Node = tuple[int, int]  # level, index
# reads the hashes of perfect subtrees, in order
Nodes = Callable[[Sequence[Node]], Sequence[bytes]]
EMPTY_ROOT = hashlib.sha256().digest()
HASH_BYTES = 32
MOST_STEPS = 126  # of a proof: twice the depth of a tree of 2^63 leaves
_sha256 = hashlib.sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf's bytes."""
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over its two children."""
    return _sha256(b"\x01" + left + right).digest()


# -- a tree whose leaves are all in memory ---------------------------------------------------------


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes; raise InvalidRequest if there are none.

    Pairing level by level and promoting an odd node unchanged gives the tree of the RFC.
    """
    if not leaves:
        raise InvalidRequest("a tree must have at least one leaf")
    level, sha256 = list(leaves), _sha256
    while len(level) > 1:
        above = [
            sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the siblings from leaf to root, nearest first."""
    return tuple(
        merkle_root(leaves[start:end]) for start, end in _inclusion_ranges(index, len(leaves))
    )


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a path leads to; raise MalformedEnvelope if its length is wrong for leaf
    ``index`` of ``count``.
    """
    if not 0 <= index < count:
        raise MalformedEnvelope("the leaf lies outside its tree")
    turns = []
    while count > 1:
        k = _split_at(count)
        turns.append(index < k)
        index, count = (index, k) if index < k else (index - k, count - k)
    if len(turns) != len(path):
        raise MalformedEnvelope("the path has the wrong length for its tree")
    found = leaf
    for left, sibling in zip(reversed(turns), path, strict=True):
        found = node_hash(found, sibling) if left else node_hash(sibling, found)
    return found


# -- a tree that grows -----------------------------------------------------------------------------


class RightEdge:
    """The perfect subtrees that a tree of ``size`` leaves consists of, largest first: enough to
    append.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)
        if len(self._hashes) != size.bit_count():
            raise InvalidRequest("the number of perfect subtrees does not match the tree's size")

    def copy(self) -> RightEdge:
        """Return the same edge, to append to without changing this one."""
        return RightEdge(self.size, self._hashes)

    def path(self) -> tuple[bytes, ...]:
        """Return the inclusion path of the next leaf, in the tree that includes it."""
        return tuple(reversed(self._hashes))

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf hash; return the hashes of the perfect subtrees that it completes, from
        level 0 up.
        """
        done, at = [leaf], self.size
        while at & 1:
            done.append(node_hash(self._hashes.pop(), done[-1]))
            at >>= 1
        self._hashes.append(done[-1])
        self.size += 1
        return done

    def root(self) -> bytes:
        """Return the root of the whole tree."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT


def edge_nodes(size: int) -> list[Node]:
    """Return the names of the perfect subtrees of a `RightEdge` of this size."""
    return _cover(0, size)


def completed_by(node: Node) -> int:
    """Return the number of leaves after which a perfect subtree is complete."""
    level, index = node
    return (index + 1) << level


def root_at(size: int, read: Nodes) -> bytes:
    """Return the root of the tree when it had ``size`` leaves."""
    return _fold(read(_cover(0, size))) if size else EMPTY_ROOT


def root_before(path: Sequence[bytes]) -> bytes:
    """Return the root of a tree without its last leaf, whose path this is: its siblings are all
    that was there before.
    """
    return _fold(path[::-1]) if path else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: Nodes) -> tuple[bytes, ...]:
    """Return the path of leaf ``index`` (from 0) in the tree of ``size`` leaves, nearest first."""
    if not 0 <= index < size:
        raise InvalidRequest("the leaf lies outside its tree")
    return _hashes_of(_inclusion_ranges(index, size), read)


def consistency_proof(old: int, new: int, read: Nodes) -> tuple[bytes, ...]:
    """Return the proof that the first ``old`` of ``new`` leaves are the tree of ``old`` leaves."""
    if not 0 <= old <= new:
        raise InvalidRequest("a tree can be consistent only with a smaller one")
    return _hashes_of(_consistency_ranges(old, new), read)


def is_consistent(
    old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Return whether a proof shows that the larger tree begins with the smaller one (RFC 9162,
    section 2.1.4.2).
    """
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and hmac.compare_digest(old_root, new_root)
    if old == 0:
        return not path and hmac.compare_digest(old_root, EMPTY_ROOT)
    steps = list(path)
    if old & (old - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        return False
    first, second = old - 1, new - 1
    while first & 1:
        first, second = first >> 1, second >> 1
    old_found = new_found = steps[0]
    for step in steps[1:]:
        if second == 0:
            return False
        if first & 1 or first == second:
            old_found, new_found = node_hash(step, old_found), node_hash(step, new_found)
            while not first & 1 and first:
                first, second = first >> 1, second >> 1
        else:
            new_found = node_hash(new_found, step)
        first, second = first >> 1, second >> 1
    return (
        second == 0
        and hmac.compare_digest(old_found, old_root)
        and hmac.compare_digest(new_found, new_root)
    )


def split_hashes(raw: bytes) -> tuple[bytes, ...]:
    """Split concatenated hashes."""
    return tuple([raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)])


# -- inside ----------------------------------------------------------------------------------------


def _split_at(count: int) -> int:
    """Return the largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def _inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    start, end, ranges = 0, size, []
    while end - start > 1:
        middle = start + _split_at(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def _consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    if old in (0, new):
        return []
    start, end, ranges = 0, new, []
    while old != end:
        middle = start + _split_at(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    if start:
        ranges.append((start, end))
    return ranges[::-1]


def _cover(start: int, end: int) -> list[Node]:
    """Return the perfect subtrees that a range of leaves consists of, from left to right."""
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def _hashes_of(ranges: Sequence[tuple[int, int]], read: Nodes) -> tuple[bytes, ...]:
    covers = [_cover(start, end) for start, end in ranges]
    found = read([node for cover in covers for node in cover])
    hashes, at = [], 0
    for cover in covers:
        hashes.append(_fold(found[at : at + len(cover)]))
        at += len(cover)
    return tuple(hashes)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over perfect subtrees that shrink from left to right."""
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found
