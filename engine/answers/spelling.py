"""Single tokens as text and as bytes, for log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

from ..text import FALLBACK, Text


class Spelling(NamedTuple):
    """A token: what it reads by itself, where parts of characters read as �, and its bytes; None if nobody knows."""

    text: str
    bytes: bytes | None


def spelling(token: int, text: Text) -> Spelling:
    """How a token is spelled: a control token by its name, all others as inside a text."""
    name = str(text.tokenizer.convert_ids_to_tokens(token))
    added = getattr(text.tokenizer, "added_tokens_decoder", {}).get(token)
    if added is not None:
        return Spelling(added.content, added.content.encode())
    piece = text.piece(token)
    if piece.whole:
        return Spelling(piece.text, piece.text.encode())
    if byte := FALLBACK.fullmatch(name):
        value = bytes([int(byte[1], 16)])
    elif all(character in BYTES for character in name):
        value = bytes(BYTES[character] for character in name)
    else:
        return Spelling(piece.text, None)
    return Spelling(value.decode(errors="replace"), value)


def _bytes() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: the printable ones of Latin-1 as themselves, the others
    from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _bytes()
