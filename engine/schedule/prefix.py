"""Which shared prefixes are kept, so that they are prefilled once: when to take a snapshot, whom it serves, which goes.

Knows no MLX: what a snapshot holds is the engine's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .prefix_tree import Node, PrefixTree, Tokens

SHORTEST = 32
"""Fewest tokens of prefill that a snapshot must save a row: copying them costs launches for every layer."""

REMEMBERED = 2**21
"""Tokens of the latest prompts among which shared prefixes are looked for, finished requests included."""


@dataclass(eq=False)
class Prefix:
    """A prefix that is kept or, while `snapshot` is None, about to be: a row that is being prefilled will reach it."""

    node: Node
    size: int
    snapshot: Any = None

    @property
    def length(self) -> int:
        """Tokens of prefill that it saves."""
        return self.node.length


class PrefixCache:
    """Snapshots of prefixes that several prompts share, least recently used first out.

    A snapshot serves exactly the prompts that begin with all of its tokens and go on after them: recurrent memory
    exists only at the position where it was copied. So the positions are chosen before a row is prefilled, from where
    the prompts known so far part, and the row's chunks end there.

    Args:
        memory: bytes that all snapshots may take. They have their own, so no row ever gives way to a snapshot.
        per_token: bytes of a token's keys, values and draft context.
        fixed: bytes that a snapshot of any length takes besides, for recurrent memory.
    """

    def __init__(self, memory: int = 0, per_token: int = 1, fixed: int = 0):
        self.memory = memory
        self.used = 0
        self._per_token, self._fixed = per_token, fixed
        self._tree = PrefixTree()
        self._recent: deque[Tokens] = deque()
        self._remembered = 0
        self._kept: dict[Prefix, None] = {}  # least recently used first

    def note(self, prompt: Tokens) -> None:
        """Remember that there is such a prompt."""
        self._tree.add(reusable(prompt))
        self._recent.append(prompt)
        self._remembered += len(prompt)
        while self._remembered > REMEMBERED:
            oldest = self._recent.popleft()
            self._tree.remove(reusable(oldest))
            self._remembered -= len(oldest)

    def find(self, feed: Tokens) -> tuple[Prefix | None, bool]:
        """The longest prefix kept of what a row is to be fed, and whether a much longer one will be kept soon."""
        nodes = [node for node in self._tree.path(reusable(feed)) if node.held]
        best = next((node.held for node in reversed(nodes) if node.held.snapshot), None)
        saved = best.length if best else 0
        if best:
            self._kept[best] = self._kept.pop(best)
        return best, any(not node.held.snapshot and node.length - saved >= SHORTEST for node in nodes)

    def reserve(self, feed: Tokens, cached: Prefix | None) -> list[Prefix]:
        """The prefixes to keep while a row is fed from the cached one on, shortest first; their memory is set aside.

        First comes the one that saves most: the number of others with this prefix times the tokens it spares each.
        Then the same beyond it.
        """
        path = self._tree.path(reusable(feed))
        base, reserved = cached.length if cached else 0, []
        while True:
            shared = [n for n in path if n.length - base >= SHORTEST and n.requests > 1 and not n.held]
            if not shared:
                return reserved
            node = max(shared, key=lambda n: (n.requests - 1) * (n.length - base))
            prefix = self._make(node, {cached, *reserved})
            if prefix is None:
                return reserved
            reserved.append(prefix)
            base = prefix.length

    def drop(self, prefix: Prefix) -> None:
        """Keep a prefix no longer."""
        if prefix in self._kept:
            del self._kept[prefix]
            self.used -= prefix.size
            prefix.node.held = None
            self._tree.prune(prefix.node)

    def clear(self) -> None:
        """Keep nothing."""
        for prefix in list(self._kept):
            self.drop(prefix)

    def _make(self, node: Node, spared: Collection[Prefix | None]) -> Prefix | None:
        """Set memory aside for a prefix, others than the spared ones giving way; None where that is not enough."""
        prefix = Prefix(node, node.length * self._per_token + self._fixed)
        if prefix.size + sum(p.size for p in self._kept if p in spared or not p.snapshot) > self.memory:
            return None
        for other in list(self._kept):
            if self.used + prefix.size <= self.memory:
                break
            if other.snapshot and other not in spared:
                self.drop(other)
        node.held = prefix
        self._kept[prefix] = None
        self.used += prefix.size
        return prefix


def reusable(feed: Tokens) -> Tokens:
    """All tokens but the last, which must go through the target for its logits."""
    return feed[:-1]
