"""No password of a Redis URL is shown, however it is written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftmill.producer.queue.urls import masked, shown, without_passwords
from tests.producer.conftest import Shell

MARKS = ("s3cr3t", "t0k3n")
"""What every generated password begins and ends with: neither may be seen, nor what stands between them."""

SPECIAL = st.text(st.sampled_from("#/?@:%[]&=+ \\'\"!$;,~^|<>{}`\té€"), max_size=6)
PASSWORDS = SPECIAL.map(lambda middle: f"{MARKS[0]}{middle}{MARKS[1]}")
HOSTS = ("127.0.0.1:6399", "localhost", "[::1]:6399", "queue.local:1/0", "h:1/2?db=1", "h:port", "h/0?x=y")
HOSTS = (*HOSTS, "h:1,[::1]:2,h/mill", "h,h/mill/0", "h,h/mill?sentinel_username=x", "h:1,port/mill")
NAMES = st.sampled_from(["password", "pass", "auth", "username", "client_name", "x", "sentinel_password"])
SENTINELS = ["redis+sentinel://", "rediss+sentinel://"]
SCHEMES = st.sampled_from(
    ["redis://", "rediss://", *SENTINELS, "unix://", "REDIS://", "redis:/", "redis:", "http://", "://", ""]
)


@st.composite
def urls(draw: st.DrawFn, hosts: Sequence[str] = HOSTS) -> str:
    """A password before the host, in the query, in the user's place, or in a URL with parts left out."""
    scheme, host, password = draw(SCHEMES), draw(st.sampled_from(hosts)), draw(PASSWORDS)
    user = draw(st.sampled_from(["", "ann", "a%20b"]))
    return draw(
        st.sampled_from(
            [
                f"{scheme}{user}:{password}@{host}",
                f"{scheme}{password.replace(':', '')}@{host}",  # else it begins with a user's name
                f"{scheme}{password.replace(':', '')}:@{host}",
                f"{scheme}{host}?{draw(NAMES)}={password}",
                f"{scheme}{host}?db=0&{draw(NAMES)}={password}",
                f"{scheme}{user}:{password}@{host}?{draw(NAMES)}={password}",
                f"{scheme}{user}:{password.replace('@', '')}",  # else its end is a host to everybody
                f"{scheme}{user}:{password}@/run/redis.sock",
            ]
        )
    )


@given(urls())
@settings(max_examples=200, deadline=None)
def test_no_password_is_shown(url: str) -> None:
    texts = [masked(url)]
    if url.startswith(("redis", "unix")) or ("://" in url and "@" in url):  # known as a URL wherever it stands
        texts += [*shown([f"--redis-url={url}"]), without_passwords(f"cannot read {url!r}", ["submit", url])]
    for text in texts:
        assert not any(mark in text for mark in MARKS), text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://queue.local", "redis://queue.local"),
        ("rediss://queue.local:6380/3", "rediss://queue.local:6380/3"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis://:pw@[::1]:1", "redis://:***@[::1]:1"),
        ("redis+sentinel://queue.local", "redis+sentinel://queue.local"),
        ("redis+sentinel://h,[::1]:2,h-3:4/mill/1", "redis+sentinel://h,[::1]:2,h-3:4/mill/1"),
        ("rediss+sentinel://ann:pw@h,h2/mill?db=1", "rediss+sentinel://ann:***@h,h2/mill?***"),
        ("redis+sentinel://ann:p/w@h,h2/mill", "redis+sentinel://***@h,h2/mill"),
        ("redis://:p/w@h,h2/mill", "redis://***"),
        ("redis://ann:p:w@d@queue.local", "redis://ann:***@queue.local"),
        ("redis://h/0?ssl_cert_reqs=none", "redis://h/0?***"),
        ("redis://:s3cr3t#x@127.0.0.1:6399/0", "redis://***@127.0.0.1:6399/0"),
        ("redis://h/0?password=p@ss", "redis://***"),
    ],
)
def test_what_is_certain_is_shown(url: str, text: str) -> None:
    assert masked(url) == text


ILL = [
    "redis+sentinel://:s3cr3t@127.0.0.1:1",
    "redis+sentinel://:s3cr3t@127.0.0.1:1/",
    "redis+sentinel://:s3cr3t@127.0.0.1:1/mill/t0k3n",
    "redis+sentinel://:s3cr3t@127.0.0.1:1,/mill",
    "redis+sentinel://127.0.0.1:1,127.0.0.1:s3cr3t/mill",
    "redis+sentinel://127.0.0.1:1/mill?sentinel_passwort=s3cr3t",
    "redis://127.0.0.1:1/0?sentinel_password=s3cr3t",
    "redis://:s3cr3t#t0k3n@127.0.0.1:1/0",
    "redis://:s3cr3t/t0k3n@127.0.0.1:1/0",
    "redis://ann:s3cr3t?t0k3n@127.0.0.1:1/0",
    "redis://:12345#s3cr3t@127.0.0.1:1",
    "redis://:s3cr3t[t0k3n@127.0.0.1:1",
    "redis://127.0.0.1:s3cr3t",
    "redis://127.0.0.1:1/0?passwort=s3cr3t",
    "redis://127.0.0.1:1/0?retry=s3cr3t",
    "redis://127.0.0.1:1/0?db=s3cr3t",
    "redis://[s3cr3t",
    "s3cr3t",
]


@pytest.mark.parametrize("url", ILL)
def test_a_url_that_cannot_be_read_is_told_without_its_password(shell: Shell, url: str) -> None:
    done = shell("status", "--redis-url", url)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "is no Redis URL; use redis://HOST:PORT" in done.stderr
    assert "write # / ? as %23 %2F %3F" in done.stderr
    assert not any(mark in done.stderr for mark in MARKS)


def test_a_url_in_the_wrong_place_is_not_shown_either(shell: Shell) -> None:
    url = "redis://:s3cr3t#t0k3n@127.0.0.1:1"
    for arguments in (["status", "x", url], ["submit", url, "--dry-run"], ["status", f"--redis={url}"], [url]):
        done = shell(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert not any(mark in done.stderr for mark in MARKS)


def test_an_unreachable_redis_with_a_password_in_its_query(shell: Shell) -> None:
    done = shell("status", "--redis-url", "redis://127.0.0.1:1/0?password=s3cr3t%23t0k3n")
    assert done.returncode == 3
    assert done.stderr == (
        "Error: cannot reach Redis at redis://127.0.0.1:1/0?***: connection refused; "
        "check that it runs, then run the same command again\n"
    )
