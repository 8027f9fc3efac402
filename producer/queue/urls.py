"""Redis URLs: what may be shown of one, and what makes it doubtful where its password ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

SCHEME = r"(?:rediss?(?:\+sentinel)?|unix|valkeys?|https?|tcp)://"
NAME = r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
HOST = rf"{NAME}(?:/[0-9]*)?"
PRIMARY = rf"(?P<hosts>{NAME}(?:,{NAME})*)(?:/(?P<service>[A-Za-z0-9_.-]+)(?P<db>/[0-9]*)?)?/?"
"""Where Sentinels are, and the name that they have for a primary."""
LOGIN = r"(?:(?P<login>[^/?#\s]*)@)?"
QUERY = r"(?P<query>\?[^@#\s]*)?"

CLEAR = re.compile(rf"(?P<scheme>{SCHEME}){LOGIN}(?P<place>{HOST}|/[0-9]*){QUERY}")
CLEAR_SOCKET = re.compile(rf"(?P<scheme>unix://){LOGIN}(?P<place>/[^@?#\s]*){QUERY}")
SENTINEL = re.compile(rf"(?P<scheme>rediss?\+sentinel://){LOGIN}(?P<place>{PRIMARY}){QUERY}")
"""URLs of which every part is certain."""

WORD = re.compile(
    r"(?:-[\w-]*=)?(?P<url>(?!(?:s3|gs|hf)://[^/@:]*/)"
    r"(?:[a-z+]*://.*[@?].*|(?:rediss?(?:\+sentinel)?|unix):.*|[^\s:@]*:\S*@\S+))",
    re.DOTALL | re.IGNORECASE,
)
"""A word of a command line that is a URL, or an option with one. Its scheme may have been forgotten. Names in stores
have no passwords, and an @ in them is one of the name.
"""

OPTIONS = {
    "client_name",
    "db",
    "health_check_interval",
    "max_connections",
    "password",
    "protocol",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_read_size",
    "socket_timeout",
    "username",
}
"""What the query of a URL may set, beside ssl_…"""
SENTINEL_OPTIONS = {"sentinel_password", "sentinel_username"}
"""And what that of a URL with Sentinels may."""

SPELLING = "in a password write # / ? as %23 %2F %3F, and @ [ ] as %40 %5B %5D"


def masked(url: str) -> str:
    """The URL without its password, wherever it stands: only parts that are certain to be something else are shown.

    A query may hold a password under any name, so none of it is shown. Where a password has raw special characters,
    nobody can say for sure where it ends: then only what follows the last @ is shown, if that looks like a host.
    """
    clear = CLEAR.fullmatch(url) or CLEAR_SOCKET.fullmatch(url) or SENTINEL.fullmatch(url)
    if clear:
        query = "?***" if clear["query"] else ""
        return f"{clear['scheme']}{_login(clear['login'])}{clear['place']}{query}"
    scheme = re.match(SCHEME, url)
    before, _, place = url.rpartition("@")
    certain = before and "?" not in before and re.fullmatch(PRIMARY if names_sentinels(url) else HOST, place)
    return f"{scheme[0] if scheme else ''}***{f'@{place}' if certain else ''}"


def _login(login: str | None) -> str:
    """A name without a password may be a password in the wrong place."""
    if login is None:
        return ""
    user, _, password = login.partition(":")
    return f"{user}:***@" if password else "***@"


def names_sentinels(url: str) -> bool:
    """Whether it names Sentinels, and not the Redis itself."""
    return url.startswith(("redis+sentinel://", "rediss+sentinel://"))


def is_doubtful(url: str) -> bool:
    """Whether a raw # / or ? in its password may be taken for the end of the host."""
    rest = url.partition("://")[2]
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    is_socket = url.startswith("unix:///")
    return "#" in rest or ("@" in rest[len(host) :] and not is_socket)


def has_unknown_options(url: str) -> bool:
    """Whether its query sets what is no setting of a connection."""
    options = [name for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True)]
    known = OPTIONS | SENTINEL_OPTIONS if names_sentinels(url) else OPTIONS
    return not all(name in known or name.startswith("ssl_") for name in options)


def shown(words: Iterable[str]) -> list[str]:
    """The words of a command line without passwords."""
    return [word.replace(url, masked(url)) if url else word for word, url in _urls(words)]


def without_passwords(message: str, words: Iterable[str]) -> str:
    """A message in which nothing of the command line's URLs can be read but what may be shown."""
    for _, url in _urls(words):
        if url:
            for spelling in (url, repr(url)[1:-1], " ".join(url.split())):
                message = message.replace(spelling, masked(url))
    return message


def _urls(words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each word and the URL in it, if there is one. What follows `--redis-url` is one, whatever it looks like."""
    before = ""
    for word in words:
        found = WORD.fullmatch(word)
        yield word, word if before == "--redis-url" else found["url"] if found else None
        before = word
