"""Tells by a program of the admin: JSON on its stdin, no shell, nothing of a message in its argv or environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator

from certfan import log
from certfan.daemon.config.notify import CommandChannel
from certfan.daemon.notifying.message import Message
from certfan.errors import NotifyFailed

KEPT = 2000  # bytes of what it says
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


async def run(channel: CommandChannel, message: Message) -> None:
    """Run the program; cancelled or late, it and all that it started have been killed.

    Raises:
        NotifyFailed: it cannot be run, says so by its exit code, or takes too long.
    """
    # Pipes of asyncio's own would make it wait for whatever the program left behind with them.
    with _told(message) as stdin, _Ear() as ear:
        try:
            process = await asyncio.create_subprocess_exec(
                *channel.argv,
                stdin=stdin,
                stdout=ear.mouth,
                stderr=ear.mouth,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise _failed(channel, f"cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(channel.timeout.total_seconds()):
                await process.wait()
        except TimeoutError as error:
            late = f"took longer than {channel.timeout.total_seconds():g} s and was killed"
            raise _failed(channel, late) from error
        finally:
            # Its whole session: what it started in the background too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode != 0:
            tail = " ".join(log.redact(ear.heard().decode(errors="replace")).split())
            raise _failed(channel, f"ended with {process.returncode}{': ' if tail else ''}{tail[-300:]}")


@contextlib.contextmanager
def _told(message: Message) -> Iterator[int]:
    """Open what it reads: a file in memory, so that nobody need feed a program that does not read."""
    file = os.memfd_create("message")
    try:
        os.write(file, json.dumps(message.body).encode())
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


class _Ear:
    """Listens to a program as long as the block lasts; it may say as much as it likes, the end is kept."""

    def __init__(self) -> None:
        self._end, self.mouth = os.pipe()
        self._kept = bytearray()

    def __enter__(self) -> _Ear:
        os.set_blocking(self._end, False)
        asyncio.get_running_loop().add_reader(self._end, self._more)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        os.close(self.mouth)

    def heard(self) -> bytes:
        """Return the end of all that was said until now."""
        while self._more():
            pass
        return bytes(self._kept)

    def _more(self) -> bool:
        try:
            chunk = os.read(self._end, 65536)  # never at its end: we hold the other one too
        except BlockingIOError:
            return False
        self._kept += chunk
        del self._kept[:-KEPT]
        return True


def _failed(channel: CommandChannel, why: str) -> NotifyFailed:
    return NotifyFailed(
        f"{channel.argv[0]} {why}", subject=channel.name, hint=f"run: certfan notify test {channel.name}"
    )
