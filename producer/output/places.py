"""Where OUT is: a file of this machine, or a URL, whose files grow on this machine and are sent there."""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import orjson

from ..input import remote
from ..input.fetch import fetch
from ..queue.errors import AGAIN, UserError, explain_file
from ..queue.paths import data_dir
from . import manifest as manifests
from .files import Busy, check_writable, replacing, size
from .formats import ERRORS, MANIFEST, ORDER, PARTIAL, format_of
from .stores import check_url, store_at

ENDS = (MANIFEST, ERRORS, PARTIAL, ORDER, "")
"""Ends of the names of OUT's files, in the order in which they are sent: where OUT has come, the others have."""
KEPT_SECONDS = 14 * 86400
"""Files that their URL has as they are, and that nobody used for so long, are removed when another URL is opened."""

Tell = Callable[[str], object]


class Unsent(UserError):
    """A store could not be reached, or failed; what it did not take stays on this machine, and may be sent later."""


def check(out: str) -> None:
    """Refuses an OUT that cannot be written, before any work is done."""
    if remote.is_url(out):
        check_url(out)
        format_of(PurePosixPath(remote.path_of(out)), out)
    else:
        format_of(Path(out))
        check_writable(Path(out))


def check_apart(source: str, out: str) -> None:
    """Refuses to write results over what they are made of, whatever names lead there."""
    if remote.is_url(out):
        url = remote.name_of(out)
        for written in (url, _beside(url) + ERRORS):
            if remote.is_url(source) and remote.name_of(source) == written:
                raise UserError(f"{written} would be written over and is INPUT; name another OUT")
        return
    for path in (Path(out), Path(out + ERRORS)):
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(f"{str(path)!r} would be written over and is INPUT; name another OUT")


def place_of(out: str, force: bool = False, tell: Tell = lambda _: None) -> Place:
    """The place of an OUT that was checked. With `force` what is there counts for nothing."""
    return RemotePlace(out, force, tell) if remote.is_url(out) else Place(Path(out))


class Place:
    """A file of this machine; a context manager, as all places are. `path` is the file that results are written to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def name(self) -> str:
        """What the user calls OUT."""
        return str(self.path)

    @property
    def address(self) -> str:
        """Where OUT is, for somebody else."""
        return os.path.abspath(self.path)

    def shown(self, path: Path) -> str:
        """What the user calls OUT or a file beside it: where its content is to be found now."""
        return str(path)

    def claim(self) -> None:
        """Says where OUT is that it is taken, which shows as well whether anything can be written there."""

    def send(self) -> None:
        """Makes what is there the same as the files of this machine."""


@dataclass(frozen=True)
class Sent:
    """What is known of one file at the URL: its `version`, and the stamp of the file here that is the same, if any."""

    version: str
    stamp: str = ""


class RemotePlace(Place):
    """A URL. Its files grow in a folder of this machine, which may be ahead of the URL and never behind it.

    What is at the URL is fetched first, if nothing newer is here: so another machine goes on. Beside OUT, in the folder
    `.draftmill/`, are its other files, where no reader of a folder of tables takes them for results.
    """

    def __init__(self, url: str, force: bool, tell: Tell) -> None:
        self._url = remote.name_of(url)
        self._beside = _beside(self._url)
        self._force, self._tell = force, tell
        self._store = store_at(self._url)
        self._folder = data_dir() / "outputs" / hashlib.sha256(self._url.encode()).hexdigest()[:32]
        super().__init__(self._folder / f"results{PurePosixPath(self._url).suffix.lower()}")
        self._sent_path = self._folder / "sent.json"
        self._sent: dict[str, Sent] = {}
        self._lock: int | None = None

    def __enter__(self) -> RemotePlace:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.parent.chmod(0o700)  # what only its user may read stays so
            _remove_old(self._folder)
            self._lock = _alone(self._folder)
        except OSError as error:
            raise UserError(explain_file(error, "cannot write", error.filename or self._folder)) from error
        if self._lock is None:
            raise Busy(f"another draftmill is writing {self._url}; wait for it or choose another place")
        try:
            self._sent = _read(self._sent_path)
            self._meet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    @property
    def name(self) -> str:
        return self._url

    @property
    def _title(self) -> str:
        return PurePosixPath(self._url).name

    @property
    def address(self) -> str:
        return self._url

    def shown(self, path: Path) -> str:
        end = self._end_of(path)
        is_there = end in self._sent and self._sent[end].stamp == _stamp(path)
        return self._url_of(end) if is_there else str(path)

    def claim(self) -> None:
        if self._force:  # what is there must never be taken for results of this batch
            with self._explaining():
                self._store.put({}, [self._url_of(end) for end in self._sent], f"Remove {self._title}")
            self._sent = {}
        self._send([MANIFEST], has_met=True)

    def send(self) -> None:
        try:
            self._send(ENDS)
        except UserError as error:
            raise type(error)(f"{error}; the results stay in {str(self._folder)!r}, {AGAIN}") from None

    def _meet(self) -> None:
        """Takes from the URL what is newer there. Raises UserError if that would lose something, here or there."""
        there = self._versions()
        if self._force:
            self._sent = {}
            self._save()  # should this end before `claim`, nothing there is taken for what is here
            self._sent = {end: Sent(version) for end, version in there.items()}
            return
        self._sent = {end: sent for end, sent in self._sent.items() if end in there}  # what was removed is sent again
        newer = [end for end in there if self._lacks(end, there[end])]
        if "" in newer and MANIFEST not in there:
            raise UserError(f"{self._url} exists; choose another place or overwrite it with --force")
        fetched = {end: self._fetch(end) for end in newer}
        others = {end: new for end, new in fetched.items() if not self._is_same(end, new)}
        lost = [end for end in others if self._is_unsent(end)]
        if lost == [*others] == [MANIFEST] and self._is_of_one_batch(others[MANIFEST]):
            # Another machine began with this OUT and brought no result there: what is here goes on.
            self._sent[MANIFEST] = Sent(there[MANIFEST])
            fetched.pop(MANIFEST).unlink()
            lost, others = [], {}
        if lost:
            for new in fetched.values():
                new.unlink()
            raise UserError(
                f"{self._url_of(lost[0])} was written by somebody else, and {str(self._path_of(lost[0]))!r} has what "
                "never came there; move one of them away, or name another OUT"
            )
        for end, new in fetched.items():
            new.replace(self._path_of(end))
            self._sent[end] = Sent(there[end], _stamp(self._path_of(end)))
        if MANIFEST in others:
            self._take_over()
        self._save()

    def _lacks(self, end: str, version: str) -> bool:
        """Whether this version of a file at the URL is not here."""
        sent = self._sent.get(end)
        return sent is None or sent.version != version or (sent.stamp != "" and not size(self._path_of(end)))

    def _is_same(self, end: str, new: Path) -> bool:
        """Whether what the URL has is what is here: a kill came before that was noted."""
        return size(self._path_of(end)) > 0 and filecmp.cmp(self._path_of(end), new, shallow=False)

    def _is_of_one_batch(self, new: Path) -> bool:
        """Whether the manifest at the URL tells of the batch that the one here tells of."""
        here, there = manifests.read(self._path_of(MANIFEST)), manifests.read(new)
        return here is not None and there is not None and here["batch"] == there["batch"]

    def _is_unsent(self, end: str) -> bool:
        """Whether a file here has what never was at the URL."""
        sent, path = self._sent.get(end), self._path_of(end)
        return size(path) > 0 and (sent is None or sent.stamp != _stamp(path))

    def _take_over(self) -> None:
        """Makes this OUT another one for the queue than that of the machine before."""
        path = self._path_of(MANIFEST)
        if content := manifests.read(path):
            with replacing(path) as file:
                file.write(orjson.dumps(content | {"token": ""}))

    def _fetch(self, end: str) -> Path:
        """A copy of what the URL has, beside the file that it may replace."""
        copy = self._folder / f"fetched{end}"
        with fetch(self._url_of(end), self._tell) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        return copy

    def _send(self, ends: Collection[str], has_met: bool = False) -> None:
        """Sends those of the files that are not at the URL. It `has_met` if it has seen just now what is there."""
        here = {end: _stamp(self._path_of(end)) for end in ends if self._is_here(end)}
        new = [end for end, stamp in here.items() if end not in self._sent or self._sent[end].stamp != stamp]
        dropped = [end for end in ends if end and end in self._sent and end not in here]
        if not new and not dropped:
            return
        known = {end: sent.version for end, sent in self._sent.items()}
        if not has_met and self._versions() != known:
            raise UserError(f"{self._url} was changed by somebody else meanwhile, and nothing was written there")
        files = {self._url_of(end): self._path_of(end) for end in new}
        if not has_met:
            self._tell(f"sending {self._url}: {sum(map(size, files.values())) / 1e6:,.1f} MB")
        with self._explaining():
            self._store.put(files, [self._url_of(end) for end in dropped], f"Write {self._title}")
        there = self._versions()
        for end in dropped:
            del self._sent[end]
        self._sent |= {end: Sent(there.get(end, ""), here[end]) for end in new}
        self._save()

    def _versions(self) -> dict[str, str]:
        """Of the files at the URL that are there."""
        with self._explaining():
            found = self._store.versions(self._beside)
        return {end: found[end] for end in ENDS if end in found}

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except remote.Cut as cut:
            raise Unsent(f"cannot write {self._url}: {cut}") from None

    def _is_here(self, end: str) -> bool:
        """Whether there is such a file on this machine. An empty one is none, but OUT may have no results."""
        path = self._path_of(end)
        return path.exists() if end == "" else size(path) > 0

    def _path_of(self, end: str) -> Path:
        return self.path.with_name(self.path.name + end)

    def _end_of(self, path: Path) -> str:
        return path.name.removeprefix(self.path.name)

    def _url_of(self, end: str) -> str:
        return self._beside + end if end else self._url

    def _save(self) -> None:
        about = {"url": self._url, "files": {end: asdict(sent) for end, sent in self._sent.items()}}
        with replacing(self._sent_path) as file:
            file.write(orjson.dumps(about, option=orjson.OPT_INDENT_2))


def _beside(url: str) -> str:
    """What the URLs of the other files begin with."""
    folder, _, name = url.rpartition("/")
    return f"{folder}/.draftmill/{name}"


def _read(path: Path) -> dict[str, Sent]:
    """What was known of a URL's files when it was opened last."""
    if not path.exists():
        return {}
    return {end: Sent(**sent) for end, sent in orjson.loads(path.read_bytes())["files"].items()}


def _stamp(path: Path) -> str:
    """Changes with the content of a file; empty if there is none."""
    if not path.exists():
        return ""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _alone(folder: Path) -> int | None:
    """A lock on the folder, to be closed; None if another process has it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove_old(used: Path) -> None:
    """Removes the files of other URLs that nobody used for long, if all of them were sent."""
    before = time.time() - KEPT_SECONDS
    for sent_path in used.parent.glob("*/sent.json"):
        folder = sent_path.parent
        if folder == used or sent_path.stat().st_mtime > before or (lock := _alone(folder)) is None:
            continue
        stamps = {sent.stamp for sent in _read(sent_path).values()}
        files = [path for path in folder.iterdir() if path != sent_path]
        if all(_stamp(path) in stamps for path in files):
            for path in [*files, sent_path]:
                path.unlink()
        os.close(lock)
