"""What a user reads when something goes wrong: one line (what, where, what to do) and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Never

import click
import redis.exceptions as rx

DONE, USAGE, NO_REDIS, FAILED_ITEMS, BUG, INTERRUPTED = 0, 2, 3, 4, 70, 130
"""Exit codes of every command. 1 is none of them: Python ends with it when it cannot even begin."""

DISAGREEMENT = 1
"""Exit code of `draftmill selftest` alone, as of other programs that check: it found something wrong."""

CUT_SHORT = 141
"""Exit code when the reader of the output has left, as `head` does; shells use it for SIGPIPE."""

RESTART = 75
"""Exit code of a worker that wants to be started again, with the pair that the schedule says now."""

GPU_GAVE_UP = 76
"""Exit code of a worker whose GPU gave up a command buffer; on a Mac its parent starts it again."""

AGAIN = "run the same command again"

SENTINEL_REFUSES = "a Sentinel refuses the user name or password"
"""An authentication error that is not Redis's own."""

HINTS = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EACCES: "permission denied; check its permissions",
    errno.EROFS: "its file system is read-only; choose another place",
    errno.ENOSPC: f"the disk is full; free some space and {AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space and {AGAIN}",
}


class UserError(click.ClickException):
    """An error whose message is one line for the user."""

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # pyright: ignore[reportAttributeAccessIssue] -- its base means one per class


class Interrupted(UserError):
    """Ctrl-C (or SIGTERM); the message says what is kept and how to go on."""

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, INTERRUPTED)

    def show(self, file: IO[str] | None = None) -> None:
        click.echo(self.message, err=True, file=file)


def heed_signals() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored (as under nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> Never:
    raise KeyboardInterrupt


@contextmanager
def usage_in_one_line() -> Iterator[None]:
    """Says what is wrong with a command line without click's usage block."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "draftmill"
        raise UserError(f"{error.format_message().rstrip('.')}; see `{command} --help`") from None


def explain(error: BaseException) -> UserError:
    """The one line and the exit code for any exception that reaches the top of a command."""
    match error:
        case UserError():
            return error
        case KeyboardInterrupt():
            return Interrupted()
        case rx.RedisError():
            return explain_redis(error, "Redis")
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in ("mlx", "mlx_lm"):
            return UserError("this command needs the worker's packages: pip install 'draftmill[worker]'")
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in ("pyarrow", "zstandard"):
            return UserError(f"this file needs the package {name.partition('.')[0]}: pip install 'draftmill[data]'")
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in ("starlette", "uvicorn"):
            return UserError("this command needs the server's packages: pip install 'draftmill[serve]'")
        case RuntimeError() if "home directory" in str(error):  # as pathlib says it
            return UserError("no home folder is known: set HOME")
        case UnicodeDecodeError():
            return UserError(f"text is not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8")
        case OSError() if error.filename is not None:
            return UserError(explain_file(error, "cannot use", error.filename))
        case OSError():
            return UserError(HINTS.get(error.errno or 0) or f"{error.strerror or error}")
        case _:
            what = f"unexpected {type(error).__name__}: {error}"
            return UserError(f"{what} (a bug in draftmill: `draftmill --debug …` shows where)", BUG)


def explain_file(error: OSError, doing: str, path: str | os.PathLike[str]) -> str:
    """`cannot read 'x.jsonl': no such file`, with what to do where it is not plain."""
    reason = HINTS.get(error.errno or 0) or (error.strerror or str(error)).lower()
    return f"{doing} {os.fspath(path)!r}: {reason}"


def explain_redis(error: rx.RedisError, where: str) -> UserError:
    """What a Redis error means; `where` names the server."""
    text = str(error).partition(", with args beginning with")[0]  # an AUTH that it does not know has the password
    match error:
        case rx.AuthenticationError() if text == SENTINEL_REFUSES:
            login = "?sentinel_username=NAME&sentinel_password=PASSWORD"
            message = f"cannot find {where}: {text}; give them as {login}"
        case rx.AuthenticationError() | rx.AuthenticationWrongNumberOfArgsError():
            message = f"{where} refuses the user name or password; give them as redis://USER:PASSWORD@HOST:PORT"
        case rx.ResponseError() if denied(error):
            message = f"{where} denies a command to this user ({text}); allow it or use another user"
        case rx.InvalidResponse():
            message = f"{where} does not speak the Redis protocol; check host and port"
        case rx.BusyLoadingError():
            message = f"{where} is still loading its data; try again in a moment"
        case rx.OutOfMemoryError():
            message = f"{where} is out of memory; raise its maxmemory, then {AGAIN}"
        case rx.ReadOnlyError():
            message = f"{where} is read-only (a replica?); name the primary in --redis-url"
        case rx.TimeoutError():
            message = f"{where} does not answer; check that it runs and is a Redis, then {AGAIN}"
        case rx.ConnectionError():
            message = f"cannot reach {where}: {_short(text)}; check that it runs, then {AGAIN}"
        case _:
            message = f"{where} answered: {text}"
    return UserError(message, NO_REDIS)


def redis_trouble(error: rx.RedisError) -> str:
    """What a Redis error means, for a log of something that tries again by itself; without the password in it."""
    return explain_redis(error, "Redis").message.partition("; ")[0]


def denied(error: rx.RedisError) -> bool:
    """Whether Redis refused because this user may not do that, by itself or in a script."""
    in_script = ("ACL failure in script", "The user executing the script can't")
    return isinstance(error, rx.NoPermissionError) or any(words in str(error) for words in in_script)


def _short(text: str) -> str:
    """redis-py's connection errors name the address again; keep what follows."""
    for reason in ("Connection refused", "Connection reset by peer", "Connection closed by server"):
        if reason.lower() in text.lower():
            return reason.lower()
    if "certificate" in text.lower():
        return "its certificate is not trusted; name the CA: rediss://HOST:PORT?ssl_ca_certs=FILE"
    if "wrong version number" in text.lower():
        return "it does not speak TLS"
    if "No such file" in text:
        return "no such socket"
    if "not known" in text or "name resolution" in text or "No address" in text:
        return "unknown host name"
    return re.sub(r"^Error .*? connecting to \S+\.( |$)", "", text).rstrip(".") or "no connection"


# Names and words of the system that are not UTF-8. Neither Redis nor JSON can hold them.


def is_utf8(name: str) -> bool:
    """Whether a name as Python has it from the system was UTF-8 there."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(name: str) -> str:
    """The name with \\xe9 and the like for what is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_words(words: Iterable[str]) -> None:
    """Raises UserError if a word of a command line, mostly the name of a file, is not UTF-8."""
    for word in words:
        if not is_utf8(word):
            raise UserError(f"'{readable(word)}' is not UTF-8; rename the file, or write the option in UTF-8")
