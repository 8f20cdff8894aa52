"""Waiting for the disk beside the loop, without a thread: the kernel syncs, the loop hears when it is done.

A thread that waits takes the interpreter from the loop at every call before and after: a quarter of what an order
cost. What must never come in: what is written, and where.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import ParamSpec, TypeAlias, TypeVar

from caio.abstract import AbstractOperation
from caio.linux_aio import Context, Operation

from certfan import files, log
from certfan.daemon.bridge import await_, in_greenlet

P = ParamSpec("P")
T = TypeVar("T")
Then: TypeAlias = Callable[[BaseException | None], None]  # with the OSError, if one came of it
AT_ONCE = 256  # syncs that the kernel is asked for; more than that wait in threads
# Seconds that syncs of files are gathered for, to be asked for in one call: after each call Linux syncs on the CPU that
# asked, and takes it from the loop at once.
GATHERED_FOR = 0.005
_MODULUS = 1 << 64

_log = log.get("disk")


class Disk:
    """Syncs files by the kernel's AIO (io_submit(2)), in threads where the kernel refuses.

    Belongs to the event loop that runs when it is made. A sync that was begun ends, whoever waits for it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kernel: Context | None = None
        self._gathered: list[tuple[tuple[int, ...], Sequence[Then]]] = []  # asked for, and not begun
        try:
            self._kernel = Context(AT_ONCE)
        except SystemError as error:  # no AIO in this kernel, for this process, or no more of it
            _log.info("aio.unavailable", problem=str(error))
        else:
            self._loop.add_reader(self._kernel.fileno, self._hear)

    def close(self) -> None:
        """Hear of nothing any more; repeatable. For when nobody waits: whoever does would wait for ever."""
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno)
            self._kernel = None

    def sync(self, fd: int, then: Then) -> None:
        """Call `then`, on the loop, once all that was written to a file, and its length, is on the disk.

        Not the time at which it was written, for which a file system's journal would have to be (fdatasync(2)). The
        descriptor stays open until then. A call, and no future: that would be told a turn of the loop later.
        """
        self._begin([fd], [then], contents_only=True)

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run code that writes files (certfan.files) on the loop; only where it waits for the disk, others run.

        Cancelled, the CancelledError is raised inside `fn` where it waits, and comes out when `fn` has unwound.
        """

        def waiting() -> T:
            token = files.syncing.set(self._wait)
            try:
                return fn(*args, **kwargs)
            finally:
                files.syncing.reset(token)

        return await in_greenlet(waiting)

    def _wait(self, *fds: int) -> None:
        syncs: list[asyncio.Future[None]] = [self._loop.create_future() for _ in fds]
        if not self._gathered:
            self._loop.call_later(GATHERED_FOR, self._begin_gathered)
        asked = fds, [partial(_settle, sync) for sync in syncs]
        self._gathered.append(asked)
        try:
            for sync in syncs:
                await_(sync)
        finally:
            with contextlib.suppress(ValueError):  # it has begun
                self._gathered.remove(asked)
            for sync in syncs:
                sync.cancel()  # whoever asked closes the files now

    def _begin_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        thens: dict[int, list[Then]] = {}  # a folder that many files are in is synced once for all
        for fds, waiting in gathered:
            for fd, then in zip(fds, waiting, strict=True):
                thens.setdefault(fd, []).append(then)
        if thens:
            self._begin([*thens], [partial(_tell, told) for told in thens.values()])

    def _begin(self, fds: Sequence[int], thens: Sequence[Then], *, contents_only: bool = False) -> None:
        how = Operation.fdsync if contents_only else Operation.fsync
        begun = self._ask(how, fds, thens) if self._kernel is not None else 0
        for fd, then in zip(fds[begun:], thens[begun:], strict=True):
            threaded = self._loop.run_in_executor(None, os.fdatasync if contents_only else os.fsync, fd)
            threaded.add_done_callback(partial(_end_in_thread, then))

    def _ask(self, how: Callable[[int], AbstractOperation], fds: Sequence[int], thens: Sequence[Then]) -> int:
        """Ask the kernel; return how many of them, from the first on, it has taken."""
        assert self._kernel is not None
        operations = []
        for fd, then in zip(fds, thens, strict=True):
            operation = how(fd)
            operation.set_callback(partial(_end, then))  # without itself: only the collector would free them
            operations.append(operation)
        try:
            return self._kernel.submit(*operations)
        except (OverflowError, ValueError, SystemError) as error:
            _log.debug("aio.refused", problem=str(error))
            return 0

    def _hear(self) -> None:
        assert self._kernel is not None
        with contextlib.suppress(BlockingIOError):
            self._kernel.poll()
        # It takes some more than it was made for.
        while self._kernel.process_events(AT_ONCE) == AT_ONCE:
            pass


def _end(then: Then, result: int) -> None:
    """Tell what the kernel said: 0, or an error's number below zero, which arrives as one of 64 bits without a sign."""
    number = _MODULUS - result
    then(OSError(number, os.strerror(number)) if result >= _MODULUS // 2 else None)


def _end_in_thread(then: Then, threaded: asyncio.Future[None]) -> None:
    then(threaded.exception())


def _tell(thens: Sequence[Then], error: BaseException | None) -> None:
    for then in thens:
        then(error)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
