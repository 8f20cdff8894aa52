"""What a process and systemd tell each other.

sd_notify(3), the watchdog, sockets handed over (sd_listen_fds(3)), and the journal by its native protocol
(systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def is_running() -> bool:
    """Whether systemd is pid 1 here (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def boot_id() -> str:
    """Return the kernel's id of this boot (sd_id128_get_boot(3))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def booted_for() -> timedelta:
    """Return the time since boot, suspend included: the wall clock goes on then too."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


def notify(*states: str) -> None:
    """Send `READY=1`, `STATUS=...`, `WATCHDOG=1` and the like; does nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a manager that went away must not take us with it
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto("\n".join(states).encode(), address)


def watchdog_interval() -> timedelta | None:
    """Half of what WatchdogSec= allows, or None when no watchdog is armed for this process."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return timedelta(microseconds=int(usec)) / 2


def handed_over_sockets() -> list[tuple[str, socket.socket]]:
    """Take the listening sockets that systemd opened for us, each with its FileDescriptorName=.

    Call it once: it clears the environment, because a second wrap would close the same descriptors.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "0")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for index in range(int(count)):
        os.set_inheritable(_FIRST_FD + index, False)
        sockets.append((names[index] if index < len(names) else "", socket.socket(fileno=_FIRST_FD + index)))
    return sockets


def logs_to_journal() -> bool:
    """Whether stderr is connected to the journal, and not to a file or a pipe that somebody reads."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def journal_entry(line: str, level: str, fields: Mapping[str, object]) -> bytes:
    """Write a line and its facts as the journal takes them: `CERTFAN_EVENT=generation.published`."""
    entry = {"MESSAGE": line, "PRIORITY": str(_PRIORITIES.get(level, 6)), "SYSLOG_IDENTIFIER": "certfan"}
    for key, value in fields.items():
        told = json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
        entry[_name_of(key)] = told
    return b"".join(_field(name, value.encode(errors="replace")) for name, value in entry.items())


@functools.lru_cache(256)
def _name_of(key: str) -> str:
    return "CERTFAN_" + re.sub(r"[^A-Z0-9]", "_", key.upper())[:50]


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)


def tell_journal(line: str, level: str, fields: Mapping[str, object], *, to: str = _JOURNAL) -> bool:
    """Hand a line over with its facts; False when the journal does not take it at once: it is not waited for."""
    try:
        _sender().sendto(journal_entry(line, level, fields), to)
    except OSError:  # too long for a datagram, or its queue is full: stderr has neither limit
        return False
    return True


@functools.cache
def _sender() -> socket.socket:
    """Return the one socket of this process: opened for each line, it cost as much as the rest of it."""
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sender.setblocking(False)
    atexit.register(sender.close)
    return sender
