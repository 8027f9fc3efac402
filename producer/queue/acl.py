"""Redis users for a fleet, each allowed what its role does and nothing else; `deploy/SECURITY.md` says what that means.

A grant is a set of commands on a set of keys. Redis 7 and Valkey keep each grant by itself (selectors); on Redis 6.2,
which has none, a user has all commands of its grants on all their keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

ANYBODY = "auth hello ping info time select client|setname client|info multi exec discard"
"""Commands that name no key."""


@dataclass(frozen=True)
class Grant:
    """`commands` on `keys`: patterns, behind `%R` or `%W` if only for reading or writing; separated by spaces."""

    commands: str
    keys: str


@dataclass(frozen=True)
class Role:
    """What one user may do: `commands` without keys, `channels` to listen to, and grants."""

    commands: str
    grants: tuple[Grant, ...]
    channels: str = ""


WHO_WORKS = (
    Grant("zrange", "%R~draftmill:workers"),
    Grant("hgetall", "%R~draftmill:worker:*"),
    Grant("hget hmget hkeys", "%R~draftmill:fleet"),
)
"""What progress displays read."""

ROLES = {
    "producer": Role(  # submit, status, cancel; reads no prompt and no result, writes none, and can take failures back
        "eval time",
        (
            Grant("hget hgetall hexists hset hsetnx hincrby persist", "~draftmill:batch:*"),
            Grant("zadd zrange zrevrange", "~draftmill:batches ~draftmill:turns:*"),
            Grant("hexists hdel persist", "~draftmill:done:*"),
            Grant("hget hdel persist", "~draftmill:failures:*"),
            Grant("persist", "%W~draftmill:results:*"),
            Grant("exists hset del", "%W~rq:job:*"),
            Grant("rpush", "%W~rq:queue:draftmill.*"),
            Grant("sadd", "%W~rq:queues"),
            *WHO_WORKS,
        ),
    ),
    "worker": Role(  # claims, commits, reaps; cannot read results back
        "eval time publish subscribe unsubscribe",
        (
            Grant(
                "exists expire del hget hmget hgetall hset hdel hexists hincrby get incr lindex llen lpop lpush lrem "
                "sadd srem smembers srandmember scard hscan zadd zrem zrange zrangebyscore zremrangebyscore zscore",
                "~rq:* ~draftmill:batch:* ~draftmill:batches ~draftmill:done:* ~draftmill:failures:* "
                "~draftmill:turns:* ~draftmill:worker:* ~draftmill:workers ~draftmill:leases ~draftmill:later "
                "~draftmill:running ~draftmill:stale",
            ),
            Grant("hget", "%R~draftmill:limits"),
            *WHO_WORKS,
            Grant("xadd expire", "%W~draftmill:results:* %W~draftmill:failed"),
        ),
        "&rq:pubsub:*",
    ),
    "collector": Role(  # status, collect, forget; cannot queue anything
        "unwatch",
        (
            Grant("hget hgetall hsetnx watch", "~draftmill:batch:*"),
            Grant("zrange zrevrange zrem", "~draftmill:batches ~draftmill:turns:*"),
            Grant("xrange", "%R~draftmill:results:*"),
            Grant("hscan", "%R~draftmill:done:*"),
            Grant("hmget", "%R~draftmill:failures:*"),
            Grant("xrange xdel", "~draftmill:failed"),
            Grant(
                "unlink",
                "%W~draftmill:batch:* %W~draftmill:results:* %W~draftmill:done:* %W~draftmill:failures:* %W~rq:job:* "
                "%W~rq:finished:draftmill.* %W~rq:failed:draftmill.* %W~rq:canceled:draftmill.*",
            ),
            Grant("srem", "%W~rq:queues"),
            *WHO_WORKS,
        ),
    ),
    "metrics": Role(  # numbers: neither prompts nor results, and no change
        "",
        (
            Grant("hget hgetall", "%R~draftmill:batch:*"),
            Grant(
                "zrange zrevrange zcard",
                "%R~draftmill:batches %R~draftmill:turns:* %R~draftmill:leases %R~draftmill:later",
            ),
            Grant("llen", "%R~rq:queue:draftmill.*"),
            Grant("smembers", "%R~rq:queues"),
            Grant("hgetall", "%R~draftmill:running %R~draftmill:limits"),
            Grant("get", "%R~draftmill:stale"),
            *WHO_WORKS,
        ),
    ),
}
ROLES["server"] = Role(  # `draftmill serve`, which submits and collects for its users
    "eval time unwatch", ROLES["producer"].grants + ROLES["collector"].grants
)
ROLES["dashboard"] = Role(  # `draftmill dashboard`: numbers, failures, and cancelling: its lines are ended by workers
    "",
    (
        *ROLES["metrics"].grants,
        Grant("xrevrange", "%R~draftmill:failed"),
        Grant("hsetnx", "%W~draftmill:batch:*"),
    ),
)
ROLES["operator"] = Role(  # `draftmill workers` and `draftmill limit`: sees numbers, and says who works and how much
    "",
    (*ROLES["metrics"].grants, Grant("hset hdel", "%W~draftmill:fleet %W~draftmill:limits")),
)
ROLES["scheduler"] = Role(  # `draftmill cron`: keeps and runs schedules, submits, and collects if results are written
    "eval time unwatch",
    (
        *ROLES["server"].grants,
        Grant(
            "hget hgetall hmget hexists hset hdel watch zadd zrange zrangebyscore zrem zscore",
            "~draftmill:cron ~draftmill:cron:*",
        ),
    ),
)


def users(passwords: dict[str, str], version: tuple[int, ...]) -> Iterator[str]:
    """Lines of an ACL file for a Redis of this version: the roles, `admin`, and `default` switched off.

    `passwords` has one for each role and for `admin`; the file has only their SHA-256.
    """
    yield "user default off resetpass resetkeys resetchannels -@all"
    yield f"user admin on {_hashed(passwords['admin'])} ~* &* +@all"
    for name, role in ROLES.items():
        rules = _with_selectors(role) if version >= (7, 0) else _flat(role)
        if version >= (7, 2):  # the first that knows it; clients send it and can do without
            rules = f"+client|setinfo {rules}"
        yield f"user {name} on {_hashed(passwords[name])} resetkeys resetchannels -@all {rules}"


def _with_selectors(role: Role) -> str:
    grants = " ".join(f"({_allow(grant.commands)} {grant.keys})" for grant in role.grants)
    return " ".join(filter(None, (_allow(f"{ANYBODY} {role.commands}"), role.channels, grants)))


def _flat(role: Role) -> str:
    commands = " ".join([ANYBODY, role.commands, *(grant.commands for grant in role.grants)])
    keys = dict.fromkeys(f"~{key.partition('~')[2]}" for grant in role.grants for key in grant.keys.split())
    return " ".join(filter(None, (_allow(commands), role.channels, *keys)))


def _allow(commands: str) -> str:
    return " ".join(f"+{command}" for command in dict.fromkeys(commands.split()))


def _hashed(password: str) -> str:
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"
