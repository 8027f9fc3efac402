"""TLS of the servers of the command line: a certificate and its key, checked before anything listens."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..queue.errors import UserError, explain_file


@dataclass(frozen=True)
class Tls:
    """A certificate (with its chain, PEM) and its private key (PEM, without a password)."""

    cert: Path
    key: Path


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--tls-cert and --tls-key, which `read` takes."""
    for name, what in (("key", "Private key (PEM) of --tls-cert."), ("cert", "Certificate (PEM): listen by HTTPS.")):
        command = click.option(f"--tls-{name}", type=click.Path(path_type=Path), metavar="FILE", help=what)(command)
    return command


def read(cert: Path | None, key: Path | None) -> Tls | None:
    """The certificate that a command line names, if it does; raises UserError if it cannot be used."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        given, lacking = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise UserError(f"{given} needs {lacking}: name the certificate and its key")
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise UserError(explain_file(error, "cannot read", path)) from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except Encrypted:
        raise UserError(f"the key {str(key)!r} has a password; take it off: openssl pkey -in FILE -out FILE") from None
    except ssl.SSLError as error:
        mismatched = "KEY_VALUES_MISMATCH" in str(error)
        what = "is not the key of" if mismatched else "and"
        end = "" if mismatched else " are no certificate and private key in PEM form"
        raise UserError(f"{str(key)!r} {what} {str(cert)!r}{end}") from error
    return Tls(cert, key)


class Encrypted(Exception):
    """OpenSSL asks for a password, which it would else do on the terminal."""


def _no_password() -> str:
    raise Encrypted
