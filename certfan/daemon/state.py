"""The local state folder: who holds it, where what lies, and keys that exist before anyone hears of them.

    certfan.lock  certfan.db  share-worker.lock  accounts/AUTHORITY{,.next,.before-TIME}.pem  ca/
    generations/CERTIFICATE@NUMBER.{privkey,fullchain}.pem
    generations/CERTIFICATE@NUMBER.request.pem  in the place of privkey.pem where a consumer alone has the key
    generations/CERTIFICATE@NUMBER.sealed/CONSUMER.SEALED_TO.hpke

Every folder is 0700 and every file 0600, whatever the umask. Names are checked before a path is made of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from certfan import files
from certfan.core.model import CONSUMER_NAME
from certfan.daemon.pair_files import (
    PAIR_FILES,
    SEALED,
    SEALED_SUFFIX,
    checked,
    numbers,
    pair_file,
    rename_old,
)

_SEALED_TO = re.compile(r"[0-9a-f]{8}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")  # what files.write_private names its own


class StateFolder:
    """The folder, locked for as long as this object is open.

    Raises (when made):
        StateLocked: another process holds it; the text names its pid.
        StateTooOpen: it, or a folder of it, is open to others.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = files.private_folder(Path(path).absolute())
        self._open = contextlib.ExitStack()
        self._open.enter_context(files.locked(self.path / "certfan.lock"))
        try:
            self._accounts = files.private_folder(self.path / "accounts")
            self._generations = files.private_folder(self.path / "generations")
            self.ca = files.private_folder(self.path / "ca")
            self._sweep()
            rename_old(self._generations)
            self._pairs = self._open.enter_context(files.opened_folder(self._generations))
            self._numbers = numbers(self._generations)
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        """Let the lock go; repeatable."""
        self._open.close()

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def database(self) -> Path:
        """Where the store's file lies; the store itself makes it, 0600."""
        return self.path / "certfan.db"

    @property
    def share_lock(self) -> Path:
        """What a share worker holds for its whole life."""
        return self.path / "share-worker.lock"

    def account_key(self, authority: str, make: Callable[[], bytes]) -> bytes:
        """Return the account's key (PEM), made and durable first if there is none; repeatable."""
        return _kept(self._accounts, f"{checked(authority)}.pem", make)

    def next_account_key(self, authority: str, make: Callable[[], bytes]) -> bytes:
        """Return the key (PEM) that the account is to get, made and durable first if there is none; repeatable."""
        return _kept(self._accounts, self._next_key(authority).name, make)

    def read_next_account_key(self, authority: str) -> bytes | None:
        """Return the key that the account is to get, None when it is to get none."""
        try:
            return files.read_private(self._next_key(authority))
        except FileNotFoundError:
            return None

    def promote_account_key(self, authority: str) -> None:
        """Make the next key the account's key; durable on return. The one before is gone. Repeatable."""
        with contextlib.suppress(FileNotFoundError):
            self._next_key(authority).rename(self._accounts / f"{checked(authority)}.pem")
        files.sync_folder(self._accounts)

    def replace_account_key(self, authority: str, key: bytes, now: datetime) -> None:
        """Make `key` (PEM) the account's key; another one that was there is kept beside it. Durable, repeatable."""
        path = self._accounts / f"{checked(authority)}.pem"
        with contextlib.suppress(FileNotFoundError):
            before = files.read_private(path)
            if before == key:
                return
            files.write_private(path.with_name(f"{authority}.before-{now:%Y%m%dT%H%M%SZ}.pem"), before)
        files.write_private(path, key)

    def _next_key(self, authority: str) -> Path:
        return self._accounts / f"{checked(authority)}.next.pem"

    def generation_key(self, certificate: str, number: int, make: Callable[[], bytes]) -> bytes:
        """Return the generation's private key (PEM), made and durable first if there is none; repeatable.

        A key that exists is reused: a try that was cut off goes on with the same one.
        """
        return self._begun(certificate, number, "privkey.pem", make)

    def generation_request(self, certificate: str, number: int, csr_pem: bytes) -> bytes:
        """Return the request (PEM) of the consumer that has the generation's key: the one kept, else this one, durable.

        Raises:
            FileExistsError: the number has a key of the daemon's own.
        """
        if (self._generations / pair_file(certificate, number, "privkey.pem")).exists():
            raise FileExistsError(f"{certificate}@{number} has a key of its own")
        return self._begun(certificate, number, "request.pem", lambda: csr_pem)

    def _begun(self, certificate: str, number: int, kind: str, make: Callable[[], bytes]) -> bytes:
        """Return what a generation begins with, made first if it is not there; durable, whoever made it."""
        try:
            begun = self._read(certificate, number, kind)
        except FileNotFoundError:
            begun = make()
            self._write(certificate, number, kind, begun)
        else:  # by a process that may have been killed while it waited for the disk
            files.make_durable(pair_file(certificate, number, kind), self._pairs)
        return begun

    def save_chain(self, certificate: str, number: int, fullchain: bytes) -> None:
        """Put an issued chain (PEM, leaf first) beside its key; durable on return, repeatable."""
        self._write(certificate, number, "fullchain.pem", fullchain)

    def _write(self, certificate: str, number: int, kind: str, data: bytes) -> None:
        name = pair_file(certificate, number, kind)
        self._numbers.setdefault(certificate, set()).add(number)
        files.write_new(name, data, self._pairs)

    def _read(self, certificate: str, number: int, kind: str) -> bytes:
        return files.read_private(f"{self._generations}/{pair_file(certificate, number, kind)}")

    def read_generation(self, certificate: str, number: int) -> dict[str, bytes]:
        """Return the generation's files by kind; those that were never written are left out.

        Raises:
            StateTooOpen: one of them may be read by others.
        """
        found = {}
        for kind in PAIR_FILES:
            with contextlib.suppress(FileNotFoundError):
                found[kind] = self._read(certificate, number, kind)
        return found

    def read_chain(self, certificate: str, number: int) -> bytes | None:
        """Return the generation's chain (PEM, leaf first), None when it was never written; its key stays unread.

        Raises:
            StateTooOpen: it may be read by others.
        """
        try:
            return self._read(certificate, number, "fullchain.pem")
        except FileNotFoundError:
            return None

    def sealed_key(
        self, certificate: str, number: int, consumer: str, sealed_to: str, make: Callable[[], bytes]
    ) -> bytes:
        """Return the generation's key sealed to one sealing key of a consumer, made and durable first if there is none.

        Sealing throws dice, and share and channel must carry the same bytes; what was sealed to an earlier key goes.
        """
        kept = self._sealed_path(certificate, number, consumer, sealed_to)
        made = _kept(kept.parent, kept.name, make)
        for earlier in kept.parent.glob(f"{consumer}.*{SEALED_SUFFIX}"):
            # A consumer's name may be the beginning of another's.
            if earlier != kept and _SEALED_TO.fullmatch(earlier.stem.removeprefix(f"{consumer}.")):
                earlier.unlink(missing_ok=True)
        return made

    def read_sealed_key(self, certificate: str, number: int, consumer: str, sealed_to: str) -> bytes | None:
        """Return the generation's key as it was sealed to that key, None when it was not."""
        try:
            return files.read_private(self._sealed_path(certificate, number, consumer, sealed_to))
        except FileNotFoundError:
            return None

    def _sealed_path(self, certificate: str, number: int, consumer: str, sealed_to: str) -> Path:
        if not CONSUMER_NAME.fullmatch(consumer) or not _SEALED_TO.fullmatch(sealed_to):
            raise ValueError(f"{consumer}.{sealed_to} cannot be a file name here")
        return (
            self._generations
            / pair_file(certificate, number, SEALED)
            / f"{consumer}.{sealed_to}{SEALED_SUFFIX}"
        )

    def generation_numbers(self, certificate: str) -> frozenset[int]:
        """Return every number that has a file here, complete or not."""
        return frozenset(self._numbers.get(checked(certificate), ()))

    def remove_generations(self, certificate: str) -> None:
        """Remove every generation of a certificate, each with its key last; durable on return, repeatable."""
        for number in sorted(self.generation_numbers(certificate)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._generations / pair_file(certificate, number, SEALED))
            for kind in reversed(PAIR_FILES):
                (self._generations / pair_file(certificate, number, kind)).unlink(missing_ok=True)
        files.sync_folder(self._generations)
        self._numbers.pop(certificate, None)

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """Return everything in the folder, and the folder itself, with what the file system says of it."""
        found = []
        for path in (self.path, *sorted(self.path.rglob("*"))):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.lstat()))
        return found

    def _sweep(self) -> None:
        """Remove what an interrupted write left behind: it may hold a key that nobody will ever use."""
        for folder in (self._accounts, self._generations, self.ca):
            for left in folder.rglob(".*"):
                if _TEMPORARY.fullmatch(left.name) and left.is_file():
                    left.unlink()
        for left in self.path.glob(".backup.*"):
            shutil.rmtree(left)


def _kept(folder: Path, name: str, make: Callable[[], bytes]) -> bytes:
    """Return what a file holds, made and durable first."""
    files.ensure_folder(str(folder))
    try:
        return files.read_private(folder / name)
    except FileNotFoundError:
        made = make()
        files.write_private(folder / name, made)
        return made
