"""What the tests of the share stand on: a set-up share in a temporary folder, and small bundles."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certfan.core.model import Consumer
from certfan.daemon.share.share import Share
from certfan.share_worker.setup import set_up

NAME = "www.example.org"
WEB1 = Consumer("web1", group=str(os.getegid()))
MAIL1 = Consumer("mail1", group=str(os.getegid()))


def bundle(number: int, size: int = 1500) -> dict[str, bytes]:
    """Return six files that tell their generation by every byte."""
    names = ("privkey.pem", "cert.pem", "chain.pem", "fullchain.pem")
    files = {name: (f"{name} {number}\n".encode() * size)[:size] for name in names}
    facts = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return files | {
        "manifest.json": json.dumps({"files": facts}).encode(),
        "manifest.sig": f"signed {number}".encode(),
    }


def sealed(number: int, sealing: str) -> dict[str, bytes]:
    """Return a bundle whose key file is `privkey.hpke`, other bytes for each sealing."""
    files = bundle(number)
    del files["privkey.pem"]
    files["privkey.hpke"] = (f"{sealing} {number}\n".encode() * 1500)[:1500]
    document = json.loads(files["manifest.json"])
    del document["files"]["privkey.pem"]
    sha = hashlib.sha256(files["privkey.hpke"]).hexdigest()
    document["files"]["privkey.hpke"] = {"size": 1500, "sha256": sha}
    return files | {"manifest.json": json.dumps(document).encode()}


def is_whole(files: Mapping[str, bytes]) -> bool:
    """Whether these are all the files of one generation."""
    facts = json.loads(files["manifest.json"])["files"]
    return all(hashlib.sha256(files[name]).hexdigest() == fact["sha256"] for name, fact in facts.items())


def read_live(consumer: Path) -> dict[str, bytes] | None:
    """Read as a service should: `live/NAME` opened once, everything through that descriptor."""
    try:
        fd = os.open(consumer / "live" / NAME, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        return {name: _read(name, fd) for name in sorted(os.listdir(fd))}
    finally:
        os.close(fd)


def _read(name: str, at: int) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=at), "rb") as file:
        return file.read()


def now() -> datetime:
    """Tell the time as the daemon does."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Place:
    """A share for tests: its root, and the daemon's edge to it."""

    root: Path
    state: Path
    share: Share

    def files(self, generation: int, consumer: str = "web1") -> Path:
        """Name the folder of a generation."""
        return self.root / consumer / "generations" / NAME / str(generation)

    def pointer(self, consumer: str = "web1") -> str:
        """Tell where `live/NAME` points at."""
        return os.readlink(self.root / consumer / "live" / NAME)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        pid = self.share._worker.pid
        assert pid is not None
        return pid


def set_up_at(root: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Make the folder a share for web1 and mail1."""
    at = os.open(root, os.O_RDONLY)
    try:
        set_up(
            at,
            str(root),
            {"web1": os.getegid(), "mail1": os.getegid()},
            beat,
            uid=os.geteuid(),
            share_id=None,
        )
    finally:
        os.close(at)


def make_place(folder: Path, **options: object) -> Place:
    """Set a share up in a new folder."""
    root, state = folder / "share", folder / "state"
    root.mkdir()
    root.chmod(0o755)
    state.mkdir(mode=0o700)
    set_up_at(root)
    return Place(root, state, Share(root, state / "share.lock", now, **options))  # type: ignore[arg-type]
