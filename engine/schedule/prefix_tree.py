"""Prompts that begin alike: a radix tree over their tokens, which branches where some of them part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """A prefix of `length` tokens, `edge` being those beyond its parent's; `requests` in the tree begin with it.

    `held` is what somebody keeps here: a node that holds something stays when the requests are gone.
    """

    edge: Tokens
    length: int
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    requests: int = 0
    held: Any = None


class PrefixTree:
    """The prompts of requests. Adding, removing and looking up take time for the prompt's length alone."""

    def __init__(self) -> None:
        self.root = Node((), 0, None)

    def path(self, tokens: Tokens) -> list[Node]:
        """The nodes whose prefixes `tokens` begins with, shortest first."""
        node, nodes = self.root, []
        while node.length < len(tokens):
            child = node.children.get(tokens[node.length])
            if child is None or child.edge != tokens[node.length : child.length]:
                break
            nodes.append(node := child)
        return nodes

    def add(self, tokens: Tokens) -> None:
        """Count a request that begins with `tokens`."""
        node = self.root
        while node.length < len(tokens):
            child = node.children.get(tokens[node.length])
            if child is None:
                child = Node(tokens[node.length :], len(tokens), node)
                node.children[child.edge[0]] = child
            elif (same := common(child.edge, tokens[node.length : child.length])) < len(child.edge):
                child = self._split(child, same)
            child.requests += 1
            node = child

    def remove(self, tokens: Tokens) -> None:
        """Undo an `add`."""
        for node in reversed(self.path(tokens)):
            node.requests -= 1
            prune(node)

    def _split(self, node: Node, same: int) -> Node:
        """Put a node where the first `same` tokens of an edge end."""
        assert node.parent
        middle = Node(node.edge[:same], node.parent.length + same, node.parent, requests=node.requests)
        node.parent.children[middle.edge[0]] = middle
        node.edge, node.parent = node.edge[same:], middle
        middle.children[node.edge[0]] = node
        return middle


def prune(node: Node) -> None:
    """Take out a node that nobody needs any more, and those above it that were there for its sake."""
    while node.parent and not (node.requests or node.children or node.held):
        del node.parent.children[node.edge[0]]
        node = node.parent


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens of both are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
