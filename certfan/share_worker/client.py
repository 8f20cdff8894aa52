"""The parent's side of the share worker: one request at a time, a deadline each, a breaker for a hung child.

Nothing here waits for a hung child: not a call, not a stop, not the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from certfan.errors import (
    BundleInvalid,
    CertfanError,
    GenerationLive,
    InternalError,
    PermissionTooOpen,
    ShareFull,
    ShareTampered,
    ShareUnavailable,
)
from certfan.share_worker.frames import Decoder, Frame, encode

_LEAVES: dict[str, type[CertfanError]] = {
    leaf.code: leaf
    for leaf in (ShareUnavailable, ShareFull, PermissionTooOpen, ShareTampered, BundleInvalid, GenerationLive)
}
_PATIENCE = timedelta(seconds=10)
_STOPPING = 0.5  # seconds, twice: for an idle child to end at EOF, then for a killed one
_HUNG = 1.0  # seconds without a sign of life, after which no end is waited for


class ShareWorker:
    """Calls on the share at `root`, in a child process that is started when first needed.

    While a missed answer is owed, every call fails at once; the child is used again when it answers after all, and
    another one is started only when it has ended. `lock` is a local file that the child holds for its whole life.
    """

    def __init__(
        self,
        root: Path,
        *,
        lock: Path,
        writable: bool,
        sentinel_id: str | None = None,
        require_mount: bool = False,
    ) -> None:
        self._root = str(root.absolute())
        self._settings = json.dumps({
            "root": self._root,
            "lock": str(lock.absolute()),
            "writable": writable,
            "sentinel_id": sentinel_id,
            "require_mount": require_mount,
        })  # fmt: skip
        self._child: _Child | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child and not self._child.ended.is_set() else None

    def late(self, patience: timedelta) -> ShareUnavailable | None:
        """Say what is wrong when an answer is owed, and no sign of life has come for so long; None: nothing is."""
        child = self._child
        return self._hung(child) if child and child.silent_for() > patience.total_seconds() else None

    async def start(self) -> None:
        """Start the child now; `call` does it too. Does not touch the share.

        Raises:
            ShareUnavailable: an earlier worker still lives, hung in the kernel.
        """
        async with self._turn:
            await self._ready(_PATIENCE)

    async def call(
        self,
        operation: str,
        arguments: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        *,
        patience: timedelta = _PATIENCE,
    ) -> Frame:
        """Have one operation done. Cancelled, the operation may still be done; each may be repeated.

        `patience` is with silence: a child that tells that it is at work may take longer.

        Raises:
            ShareError: what the child met, one leaf each; ShareUnavailable also when no answer came in time.
            InternalError: a bug in the child; its traceback is in the journal.
        """
        request = encode({"operation": operation, "arguments": dict(arguments or {})}, files)
        async with self._turn:
            child = await self._ready(patience)
            return _opened(await self._asked(child, request, patience))

    async def stop(self) -> None:
        """End the child: EOF, then SIGKILL. Takes a second at most, and next to nothing when it hangs."""
        child, self._child = self._child, None
        if child is None:
            return
        child.close()
        if child.silent_for() > _HUNG:
            child.abandon()  # in the kernel nothing reaches it, and whoever restarts us waits for every moment
            return
        await child.gone()
        child.kill()
        await child.gone()
        child.abandon()

    async def _ready(self, patience: timedelta) -> _Child:
        if self._child is not None and self._child.ended.is_set():
            self._child = None
        if self._child is None:
            self._child = await self._started(patience)
        # An earlier caller may have been cancelled: its answer comes first.
        if not await self._child.settled():
            raise self._hung(self._child)
        if self._child.ended.is_set():
            raise self._broken(self._child)
        return self._child

    async def _started(self, patience: timedelta) -> _Child:
        loop = asyncio.get_running_loop()
        _, child = await loop.subprocess_exec(
            lambda: _Child(patience),
            sys.executable, "-P", "-m", "certfan.share_worker", self._settings,
            stderr=None, cwd="/", start_new_session=True,
        )  # fmt: skip
        try:
            _opened(await self._asked(child, b"", patience))
        except CertfanError:
            # It has not come as far as the share.
            child.kill()
            await child.gone()
            raise
        except BaseException:
            self._child = child
            raise
        return child

    async def _asked(self, child: _Child, request: bytes, patience: timedelta) -> Frame:
        try:
            return await child.ask(request, patience)
        except TimeoutError:
            raise self._hung(child) from None
        except ConnectionError:
            raise self._broken(child) from None

    def _hung(self, child: _Child) -> ShareUnavailable:
        return ShareUnavailable(
            f"share {self._root}: a call is hung in the kernel (process {child.pid})",
            subject=self._root,
            hint=f"look with: cat /proc/{child.pid}/wchan; mount | grep -F ' {self._root} '; gluster volume status",
        )

    def _broken(self, child: _Child) -> ShareUnavailable:
        return ShareUnavailable(
            f"share {self._root}: the share worker (process {child.pid}) ended with {child.returncode} during a call",
            subject=self._root,
            hint="look with: journalctl -u certfan; it is started again at the next call",
        )


class _Child(asyncio.SubprocessProtocol):
    """One life of the child. At most one answer is owed; it is overdue when `_due` has passed."""

    def __init__(self, patience: timedelta) -> None:
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._owed = True  # its greeting
        self._await(patience)
        self._timer: asyncio.Timeout | None = None
        self._idle = asyncio.Event()
        self._answer: asyncio.Future[Frame] = self._loop.create_future()
        self.ended = asyncio.Event()
        self.pid = 0

    def _await(self, patience: timedelta) -> None:
        self._patience, self._heard_at = patience.total_seconds(), self._loop.time()
        self._due = self._heard_at + self._patience

    def silent_for(self) -> float:
        """Return the seconds for which an answer has been owed without a sign of life; 0 when none is owed."""
        return self._loop.time() - self._heard_at if self._owed and not self.ended.is_set() else 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if "working" in frame.header:
                    self._lives()
                    continue
                self._owed = False
                self._idle.set()
                if not self._answer.done():
                    self._answer.set_result(frame)
        except ValueError:
            self.kill()

    def _lives(self) -> None:
        self._heard_at = self._loop.time()
        self._due = self._heard_at + self._patience
        if self._timer is not None:
            with contextlib.suppress(RuntimeError):  # it is running out this very moment
                self._timer.reschedule(self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        # Only now, waited for and with its pipes closed, has it let go of the lock.
        self.returncode = self._transport.get_returncode()
        self.ended.set()
        self._idle.set()
        if not self._answer.done():
            self._answer.set_exception(ConnectionResetError())
            self._answer.exception()  # nobody may be waiting any more
        self._transport.close()

    async def settled(self) -> bool:
        """Wait until nothing is owed, or no longer than that was allowed to take; whether nothing is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._due if self._owed else None):
                await self._idle.wait()
        return self._idle.is_set()

    async def ask(self, request: bytes, patience: timedelta) -> Frame:
        """Send a request and wait for its answer; with no request, for the greeting.

        Raises:
            TimeoutError: not in time. The answer stays owed.
            ConnectionError: the child ended.
        """
        if request:
            self._owed, self._answer = True, self._loop.create_future()
            self._await(patience)
            self._idle.clear()
            cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0)).write(request)
        async with asyncio.timeout_at(self._due) as self._timer:
            try:
                return await self._answer
            finally:
                self._timer = None

    async def gone(self) -> None:
        """Wait for its end, but not long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOPPING):
                await self.ended.wait()

    def close(self) -> None:
        """Send EOF."""
        if (pipe := self._transport.get_pipe_transport(0)) is not None:
            pipe.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._transport.kill()

    def abandon(self) -> None:
        """Kill it and let go of every pipe; not waited for."""
        self._transport.close()


def _opened(frame: Frame) -> Frame:
    match frame.header:
        case {"error": {"code": str(code), "text": str(text), "subject": str(subject), "hint": str(hint)}}:
            raise _LEAVES.get(code, InternalError)(text, subject=subject, hint=hint)
    return frame
