"""Which shared prefixes are kept, so that they are prefilled once: which pages hold them, whom they serve, which go.

Knows no MLX: what the memory of recurrent layers is at a prefix's end, is the engine's.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ...kernels.pages.sizes import PAGE
from ..request import NO_ADAPTER
from .pages import Pages
from .prefix_tree import Node, PrefixTree, Tokens, prune

MOST = 1024
"""Prefixes that are kept at most where they take nothing but pages."""

REMEMBERED = 2**21
"""Tokens of the latest prompts among which shared prefixes are looked for, finished requests included."""


@dataclass(eq=False)
class Prefix:
    """A prefix that is kept in `pages` or, while it is not `ready`, about to be: a row that is being prefilled will
    reach it. `memory` is that of recurrent layers behind its tokens.
    """

    node: Node
    pages: list[int] = field(default_factory=list)
    memory: Any = None
    ready: bool = False

    @property
    def length(self) -> int:
        """Tokens of prefill that it saves."""
        return whole(self.node)


def whole(node: Node) -> int:
    """The tokens of a node that fill pages: a page with tokens of one row only is that row's."""
    return node.length // PAGE * PAGE


class PrefixCache:
    """Prefixes that several prompts share, least recently used first out.

    Each LoRA adapter has its own: what one keeps of a text is not what another would.
    Rows that begin with a prefix hold its pages, too. Recurrent memory exists only at the position where it was saved.
    So the positions are chosen before a row is prefilled, from where the prompts known so far part, and the row's
    chunks end there.

    Args:
        pages: of the pool. Prefixes have those that rows do not need.
        most: prefixes that are kept at most, for the sake of recurrent memory.
    """

    def __init__(self, pages: Pages, most: int = MOST):
        self.most = most
        self._pages = pages
        self._trees: defaultdict[int, PrefixTree] = defaultdict(PrefixTree)  # by adapter
        self._recent: deque[tuple[Tokens, int]] = deque()
        self._remembered = 0
        self._kept: dict[Prefix, None] = {}  # least recently used first

    def note(self, prompt: Tokens, adapter: int = NO_ADAPTER) -> None:
        """Remember that there is such a prompt."""
        self._trees[adapter].add(reusable(prompt))
        self._recent.append((prompt, adapter))
        self._remembered += len(prompt)
        while self._remembered > REMEMBERED:
            oldest, its = self._recent.popleft()
            self._trees[its].remove(reusable(oldest))
            self._remembered -= len(oldest)

    def find(self, feed: Tokens, adapter: int = NO_ADAPTER) -> tuple[Prefix | None, bool]:
        """The longest prefix kept of what a row is to be fed, and whether a longer one will be kept soon."""
        held = [node.held for node in self._trees[adapter].path(reusable(feed)) if node.held]
        best = next((prefix for prefix in reversed(held) if prefix.ready), None)
        saved = best.length if best else 0
        if best:
            self._kept[best] = self._kept.pop(best)
        return best, any(not prefix.ready and prefix.length > saved for prefix in held)

    def reserve(self, feed: Tokens, cached: Prefix | None, adapter: int = NO_ADAPTER) -> list[Prefix]:
        """The prefixes to keep while a row is fed from the cached one on, shortest first.

        First comes the one that saves most: the number of others with this prefix times the tokens it spares each.
        Then the same beyond it.
        """
        path = self._trees[adapter].path(reusable(feed))
        base, reserved = cached.length if cached else 0, []
        while True:
            shared = [n for n in path if whole(n) > base and n.requests > 1 and not n.held]
            if not shared:
                return reserved
            node = max(shared, key=lambda n: (n.requests - 1) * (whole(n) - base))
            prefix = self._make(node, {cached, *reserved})
            if prefix is None:
                return reserved
            reserved.append(prefix)
            base = prefix.length

    def keep(self, prefix: Prefix, pages: list[int]) -> None:
        """A row has reached the end of a prefix, which these pages hold."""
        prefix.pages = pages[: prefix.length // PAGE]
        self._pages.share(prefix.pages)

    def drop(self, prefix: Prefix) -> None:
        """Keep a prefix no longer."""
        if prefix in self._kept:
            del self._kept[prefix]
            self._pages.release(prefix.pages)
            prefix.node.held = None
            prune(prefix.node)

    def give_way(self) -> bool:
        """Drop the prefix that was used least recently of those whose pages no row has; False if there is none."""
        oldest = next((p for p in self._kept if p.ready and self._pages.spare(p.pages)), None)
        if oldest:
            self.drop(oldest)
        return oldest is not None

    def clear(self) -> None:
        """Keep nothing."""
        for prefix in list(self._kept):
            self.drop(prefix)

    def _make(self, node: Node, spared: Collection[Prefix | None]) -> Prefix | None:
        """A place for a prefix, for which another than the spared ones gives way; None if there is none."""
        if len(self._kept) >= self.most:
            oldest = next((prefix for prefix in self._kept if prefix.ready and prefix not in spared), None)
            if oldest is None:
                return None
            self.drop(oldest)
        node.held = prefix = Prefix(node)
        self._kept[prefix] = None
        return prefix


def reusable(feed: Tokens) -> Tokens:
    """All tokens but the last, which must go through the target for its logits."""
    return feed[:-1]
