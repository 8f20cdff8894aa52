"""Runs what agent.toml says about a service: config test, reload, start, whether it runs, the hook.

Argument lists only, never a shell; closed stdin, own session, clean environment, a timeout that ends the whole
group. What must never come in: a string from the wire.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from certfan.agent.config import Service
from certfan.agent.recipes import Argv
from certfan.errors import ConfigTestFailed, HookFailed, ReloadFailed, ServiceDown

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT_LINES = 20
KEPT_BYTES = 4096
PARTING = timedelta(seconds=5)  # for a killed one to go; in a call on a hung mount it does not
SETTLE = timedelta(seconds=0.5)  # Apache needs up to 0.15 s after its reload said 0 to die of a bad pair


class Running(StrEnum):
    """Whether a service runs."""

    RUNS = "runs"
    STOPPED = "stopped"  # on purpose: systemd says inactive. It is nobody's business to start it
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended; `code` is None when it was ended because it took too long."""

    code: int | None
    output: str  # the last lines of stdout and stderr


async def run(argv: Argv, *, timeout: timedelta, environment: Mapping[str, str] | None = None) -> Ran:
    """Run one command to its end and keep the last lines it said.

    Cancelled, it kills the command's process group first. Known limit: a daemon that a command leaves behind with
    its output still open has nobody to talk to afterwards.
    """
    said, telling = os.pipe()
    try:
        with _Tail(said) as tail:
            code = await _end(
                argv, telling, timeout, {"PATH": PATH, "LC_ALL": "C.UTF-8", **(environment or {})}
            )
            return Ran(code, _last_lines(tail.read()))
    except OSError as error:
        return Ran(127, f"{argv[0]}: {error.strerror}")


async def _end(argv: Argv, output: int, timeout: timedelta, environment: Mapping[str, str]) -> int | None:
    """Run a command that tells its output to a descriptor, which this closes; None when it took too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    finally:
        os.close(output)
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(PARTING.total_seconds()):
                    await process.wait()


class _Tail:
    """Keeps the end of what comes out of a pipe.

    Not asyncio's own pipes: with them a command counts as running until its last descendant has closed its output,
    and a daemon that was just started never does.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._kept = bytearray()

    def __enter__(self) -> _Tail:
        os.set_blocking(self._pipe, False)
        asyncio.get_running_loop().add_reader(self._pipe, self._more)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)

    def read(self) -> bytes:
        """Return the end of all that was said until now."""
        while self._more():
            pass
        return bytes(self._kept)

    def _more(self) -> bool:
        try:
            chunk = os.read(self._pipe, 65536)
        except BlockingIOError:
            return False
        if not chunk:  # end of file would make the loop spin
            asyncio.get_running_loop().remove_reader(self._pipe)
        self._kept += chunk
        del self._kept[:-KEPT_BYTES]
        return bool(chunk)


def _last_lines(said: bytes) -> str:
    text = said[-KEPT_BYTES:].decode(errors="replace")
    lines = ("".join(c if c.isprintable() or c == "\t" else "?" for c in line) for line in text.splitlines())
    return "\n".join(deque((line for line in lines if line.strip()), maxlen=KEPT_LINES))


async def test(service: Service) -> None:
    """Run a service's own config test; one without a test passes.

    Raises:
        ConfigTestFailed: with what the test said.
    """
    if not service.test:
        return
    ran = await run(service.test, timeout=service.timeout)
    if ran.code != 0:
        raise ConfigTestFailed(
            f"config test of {service.name} {_ended(ran, service)}",
            subject=service.name,
            hint=f"run: {' '.join(service.test)}",
            output=ran.output,
        )


async def reload(service: Service) -> None:
    """Tell a service to load its pairs anew.

    Raises:
        ReloadFailed: the command said so, or took too long.
    """
    await _change(service, service.reload, "reload")


async def start(service: Service) -> None:
    """Start a service that does not run.

    Raises:
        ReloadFailed: the command said so, or took too long.
    """
    await _change(service, service.start, "start")


async def state(service: Service) -> Running:
    """Tell whether a service runs, now."""
    ran = await run(service.active, timeout=service.timeout)
    if ran.code == 0:
        return Running.RUNS
    return Running.STOPPED if ran.output.strip() == "inactive" else Running.DEAD


async def must_run(service: Service) -> None:
    """Pass when a service runs.

    Raises:
        ServiceDown: it does not.
    """
    if await state(service) is not Running.RUNS:
        raise ServiceDown(f"{service.name} does not run", subject=service.name, hint=_look(service))


async def hook(service: Service, environment: Mapping[str, str]) -> None:
    """Run the admin's hook; a service without one passes.

    Raises:
        HookFailed: with what it said.
    """
    if not service.hook:
        return
    ran = await run(service.hook, timeout=service.timeout, environment=environment)
    if ran.code != 0:
        raise HookFailed(
            f"hook of {service.name} {_ended(ran, service)}",
            subject=service.name,
            hint=f"run it by hand: {service.hook[0]}",
            output=ran.output,
        )


async def _change(service: Service, argv: Argv, verb: str) -> None:
    ran = await run(argv, timeout=service.timeout)
    if ran.code != 0:
        raise ReloadFailed(
            f"{verb} of {service.name} {_ended(ran, service)}",
            subject=service.name,
            hint=_look(service),
            output=ran.output,
        )


def _ended(ran: Ran, service: Service) -> str:
    if ran.code is None:
        return f"took longer than {service.timeout.total_seconds():g} s and was ended"
    return f"failed with exit code {ran.code}" if ran.code >= 0 else f"was killed by signal {-ran.code}"


def _look(service: Service) -> str:
    return f"run: systemctl status {service.unit}" if service.unit else f"run: {' '.join(service.active)}"
