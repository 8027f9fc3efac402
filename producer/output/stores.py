"""Files at URLs that OUT may be written to: s3:// and gs:// through fsspec, datasets of Hugging Face's hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..input import remote
from ..queue.errors import UserError

FORMS = "s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/USER/NAME/PATH"
PLACES = {
    "s3": r"s3://[^/]+/[^/].*",
    "gs": r"gs://[^/]+/[^/].*",
    "hf": r"hf://datasets/[^/@]+/[^/@]+(?:@[^/]+)?/[^/].*",
}
"""How a URL looks that a file can be written to, by scheme."""


def check_url(url: str) -> None:
    """Raises UserError for a URL that no results can be written to."""
    scheme = remote.scheme_of(url)
    if scheme not in PLACES:
        raise UserError(
            f"OUT is a URL of {scheme}://, and nothing can be written there; name a file here, or {FORMS} "
            "(the extra `remote`)"
        )
    if not re.fullmatch(PLACES[scheme], remote.name_of(url)) or re.search(r"[?#]|/$", url):
        raise UserError(f"OUT is a URL of {scheme}:// that names no file to be written; it looks like {FORMS}")


def store_at(url: str) -> Bucket:
    """The store of the URL. Raises UserError if its package is missing."""
    return Dataset(url) if remote.scheme_of(url) == "hf" else Bucket(url)


class Bucket:
    """Objects of S3 or of Google's storage; whoever reads one has the old or the new content, never a part."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, _ = remote.store_of(url, "writing")

    def versions(self, beside: str) -> dict[str, str]:
        """What tells the versions of files apart that are there: of the URL itself as "", and of those whose URLs
        begin with `beside`, each by what follows it there. Raises UserError, or Cut.
        """
        with remote.store_trouble(self.url, "write"):
            self._files.invalidate_cache()
            path, prefix = self._path(self.url), self._path(beside)
            folder, _, name = prefix.rpartition("/")
            own: dict[str, Any] = {"type": ""}
            found: dict[str, Any] = {}
            with suppress(FileNotFoundError):
                own = self._files.info(path)
            with suppress(FileNotFoundError):
                found = self._list(folder, name)
        if own["type"] == "directory":
            raise UserError(f"cannot write {self.url}: it is a folder; name a file")
        versions = {there.removeprefix(prefix): _version(about) for there, about in found.items() if there != prefix}
        return versions | ({"": _version(own)} if own["type"] else {})

    def _list(self, folder: str, name: str) -> dict[str, Any]:
        """The files of a folder whose names begin with `name`, and maybe others; by path."""
        return self._files.find(folder, detail=True, prefix=name)

    def put(self, files: Mapping[str, Path], dropped: Iterable[str], title: str) -> None:
        """Writes files to their URLs, in this order, and removes what is dropped. Raises UserError, or Cut."""
        with remote.store_trouble(self.url, "write"):
            for url, path in files.items():
                self._files.put_file(str(path), self._path(url))
            for url in dropped:
                self._files.rm_file(self._path(url))

    def _path(self, url: str) -> str:
        return remote.store_of(url, "writing")[1]


class Dataset(Bucket):
    """Files of a dataset on the hub; what is written together is one commit."""

    def put(self, files: Mapping[str, Path], dropped: Iterable[str], title: str) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        with remote.store_trouble(self.url, "write"):
            place = self._files.resolve_path(self._path(self.url))
            operations = [
                *(CommitOperationAdd(self._inside(url), path) for url, path in files.items()),
                *(CommitOperationDelete(self._inside(url)) for url in dropped),
            ]
            HfApi().create_commit(
                place.repo_id, operations, commit_message=title, repo_type="dataset", revision=place.revision
            )

    def _list(self, folder: str, name: str) -> dict[str, Any]:
        return {found["name"]: found for found in self._files.ls(folder)}

    def _inside(self, url: str) -> str:
        return self._files.resolve_path(self._path(url)).path_in_repo


def _version(found: Mapping[str, Any]) -> str:
    return remote.version_in(found) or str(found["size"])
