"""`certfan share setup`: what root does once for a share, and again when a consumer is added."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from certfan.core.model import Consumer
from certfan.daemon.share import group_number
from certfan.share_worker.client import ShareWorker

_SETTING_UP = timedelta(seconds=60)


async def set_up_share(
    root: Path,
    consumers: Iterable[Consumer],
    *,
    uid: int,
    lock: Path,
    share_id: str | None = None,
    require_mount: bool = False,
) -> str:
    """Make the share's sentinel and each consumer's closed folder, owned by `uid`; return the share's id.

    Run as root. Repeatable, also beside a running daemon: `lock` is a local file of its own, not the daemon's.

    Raises:
        ConfigInvalid: a consumer's group does not exist.
        ShareError: not mounted, another share, read-only, or something is in the way.
    """
    groups = {consumer.name: group_number(consumer) for consumer in consumers}
    worker = ShareWorker(root, lock=lock, writable=True, sentinel_id=share_id, require_mount=require_mount)
    try:
        answer = await worker.call("setup", {"consumers": groups, "uid": uid}, patience=_SETTING_UP)
    finally:
        await worker.stop()
    return str(answer.header["share"])
