"""Redis users for a fleet, each allowed what its role does and nothing else; `deploy/SECURITY.md` says what that means.

A grant is a set of commands on a set of keys. Redis 7 and Valkey keep each grant by itself (selectors); on Redis 6.2,
which has none, a user has all commands of its grants on all their keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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

HOW_FAR = (
    Grant("hget hgetall hmget", "%R~draftmill:batch:*"),
    Grant("zrange zrevrange", "%R~draftmill:batches"),
    Grant("hlen", "%R~draftmill:open:*"),
    Grant("bitcount", "%R~draftmill:ended:*"),
    Grant("scard", "%R~draftmill:running:*"),  # of earlier versions
    Grant("llen zcard", "%R~rq:queue:draftmill.* %R~rq:wip:draftmill.*"),
    Grant("hkeys", "%R~draftmill:rest:*"),
    Grant("get", "%R~draftmill:feeder"),
    Grant("hgetall", "%R~draftmill:spent"),
    *WHO_WORKS,
)
"""What says how far batches are."""

WHAT_FAILED = Grant("hlen hscan", "%R~draftmill:failures:*")
"""What says which lines failed, and why."""

RINGS = (Grant("expire llen rpush", "~draftmill:bell:*"), Grant("zcard", "%R~draftmill:workers"))
"""What wakes workers."""

ROLES = {
    "producer": Role(  # submit, status, cancel; reads no prompt and no result, writes none, and can take outcomes back
        "eval evalsha time",
        (
            *HOW_FAR,
            Grant("exists ttl hget hmget hexists hset hsetnx hdel hincrby persist", "~draftmill:batch:*"),
            Grant("zadd zrange zrevrange", "~draftmill:batches ~draftmill:turns:* ~draftmill:unended:*"),
            Grant("incr", "~draftmill:generation"),
            Grant("exists hexists hset hlen", "~draftmill:open:*"),
            Grant("getbit setbit bitcount persist", "~draftmill:ended:* ~draftmill:handed:*"),
            Grant("hget hdel persist", "~draftmill:failures:*"),
            WHAT_FAILED,
            Grant("xdel persist", "%W~draftmill:results:*"),
            Grant("del rpush expire persist", "%W~draftmill:bad:*"),
            Grant("exists hstrlen hset unlink persist", "~draftmill:rest:*"),
            Grant("zrange zincrby zrem", "~draftmill:rests"),
            Grant("exists hset del", "%W~rq:job:*"),
            Grant("exists rpush", "%W~rq:queue:draftmill.*"),
            Grant("sadd", "%W~rq:queues"),
            *RINGS,
            Grant("get zrange zscore", "%R~draftmill:clock:* %R~draftmill:parked:*"),
        ),
    ),
    "worker": Role(  # claims, commits, reaps; cannot read results back
        "eval evalsha time publish subscribe unsubscribe",
        (
            *HOW_FAR,
            Grant(
                "exists expire pexpire del get set hget hmget hgetall hset hsetnx hdel hexists hincrby hkeys hlen "
                "hrandfield hscan lindex llen lpop lpos lpush lrange lrem sadd srem sismember smembers srandmember "
                "scard zadd zrem zrandmember zrange zrangebyscore zremrangebyscore zscore bitcount bitfield "
                "setbit",  # the last by earlier versions
                "~rq:* ~draftmill:batch:* ~draftmill:batches ~draftmill:open:* ~draftmill:ended:* "
                "~draftmill:failures:* ~draftmill:unended:* ~draftmill:running:* ~draftmill:aside:* "
                "~draftmill:turns:* ~draftmill:parked:* ~draftmill:clock:* ~draftmill:alone:* ~draftmill:drains:* "
                "~draftmill:paces:* ~draftmill:later:* ~draftmill:alive ~draftmill:worker:* ~draftmill:workers "
                "~draftmill:leases:* ~draftmill:users",  # the last two of earlier versions
            ),
            Grant("rpush", "%W~rq:queue:draftmill.* %W~draftmill:alone:*"),
            Grant("hget hset hincrby", "~draftmill:spent"),
            *RINGS,
            Grant("blpop", "~draftmill:bell:*"),
            Grant("hget", "%R~draftmill:limits"),
            Grant("xadd expire", "%W~draftmill:results:* %W~draftmill:failed"),
            Grant("expire", "%W~draftmill:handed:* %W~draftmill:bad:*"),
            Grant("expire unlink", "%W~draftmill:rest:*"),
        ),
        "&rq:pubsub:*",
    ),
    "collector": Role(  # status, collect, forget; cannot queue anything
        "eval evalsha time unwatch",
        (
            *HOW_FAR,
            Grant("exists hget hmget hsetnx", "~draftmill:batch:*"),
            Grant("exists hexists", "%R~draftmill:open:*"),
            Grant("getbit", "%R~draftmill:ended:*"),
            Grant("bitcount bitfield setbit expire", "~draftmill:handed:*"),
            Grant("xread xrange xlen xdel del", "~draftmill:results:*"),
            Grant("xrange xdel", "~draftmill:failed"),
            Grant("hmget", "%R~draftmill:failures:*"),
            WHAT_FAILED,
            Grant("lrange", "%R~draftmill:bad:*"),
            Grant("get set watch", "~draftmill:holder:*"),
            Grant("zrem", "~draftmill:batches ~draftmill:unended:*"),
            Grant("zrem", "%W~rq:finished:draftmill.* %W~rq:failed:draftmill.* %W~rq:canceled:draftmill.*"),
            Grant(
                "unlink",
                "%W~draftmill:batch:* %W~draftmill:ended:* %W~draftmill:handed:* %W~draftmill:failures:* "
                "%W~draftmill:results:* %W~draftmill:bad:* %W~draftmill:holder:* %W~draftmill:done:* %W~rq:job:* "
                "%W~draftmill:rest:* "
                "%W~rq:finished:draftmill.* %W~rq:failed:draftmill.* %W~rq:canceled:draftmill.*",
            ),
            Grant("srem", "%W~rq:queues"),
        ),
    ),
    "metrics": Role(  # numbers: neither prompts nor results, and no change
        "",
        (
            *HOW_FAR,
            Grant("zrange zcard", "%R~draftmill:turns:* %R~draftmill:later:*"),
            Grant("smembers", "%R~rq:queues"),
            Grant("hgetall", "%R~draftmill:limits %R~draftmill:running:*"),
            Grant("zcard smembers", "%R~draftmill:leases:* %R~draftmill:users"),  # of earlier versions
        ),
    ),
}
ROLES["feeder"] = Role(  # `draftmill feed`: a producer who queues what others left, and so reads those prompts
    "eval evalsha time",
    (
        *ROLES["producer"].grants,
        Grant("hget hdel", "~draftmill:rest:*"),
        Grant("set", "%W~draftmill:feeder"),
    ),
)
ROLES["server"] = Role(  # `draftmill serve`, which submits, feeds, and collects for its users
    "eval evalsha time unwatch", ROLES["feeder"].grants + ROLES["collector"].grants
)
ROLES["dashboard"] = Role(  # `draftmill dashboard`: numbers, failures, and cancelling: its lines are ended by workers
    "",
    (
        *ROLES["metrics"].grants,
        Grant("xrevrange", "%R~draftmill:failed"),
        WHAT_FAILED,
        Grant("exists hsetnx", "~draftmill:batch:*"),
    ),
)
ROLES["operator"] = Role(  # `draftmill workers` and `draftmill limit`: sees numbers, and says who works and how much
    "",
    (*ROLES["metrics"].grants, Grant("hset hdel", "%W~draftmill:fleet %W~draftmill:limits")),
)
ROLES["scheduler"] = Role(  # `draftmill cron`: keeps and runs schedules, submits, and collects if results are written
    "eval evalsha time unwatch",
    (
        *ROLES["server"].grants,
        Grant(
            "hget hgetall hmget hexists hset hdel watch zadd zrange zrangebyscore zrem zscore",
            "~draftmill:cron ~draftmill:cron:*",
        ),
    ),
)


def users(
    passwords: Mapping[str, str], version: tuple[int, ...], kept: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Lines of an ACL file for a Redis of this version: the roles, `admin`, and `default` switched off.

    A user that is among the `kept` ones has what is said there of state and passwords, see `credentials`; the others
    are on, each with that of `passwords`. The file has only the SHA-256 of these.
    """
    known = {name: f"on {_hashed(password)}" for name, password in passwords.items()} | dict(kept or {})
    yield "user default off resetpass resetkeys resetchannels -@all"
    yield f"user admin {known['admin']} ~* &* +@all"
    for name, role in ROLES.items():
        rules = _with_selectors(role) if version >= (7, 0) else _flat(role)
        if version >= (7, 2):  # the first that knows it; clients send it and can do without
            rules = f"+client|setinfo {rules}"
        yield f"user {name} {known[name]} resetkeys resetchannels -@all {rules}"


def credentials(line: str) -> tuple[str, str]:
    """The user of a line of an ACL file, and of its rules the state and the passwords: `on #5e88…`."""
    _, name, *rules = line.split()
    state = "off" if "off" in rules else "on"
    return name, " ".join([state, *(rule for rule in rules if rule[0] in "#>" or rule == "nopass")])


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
