"""What a process and systemd tell each other: sd_notify, the watchdog, sockets handed over (sd_listen_fds(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta
from pathlib import Path

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def is_running() -> bool:
    """Whether systemd is pid 1 here (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def boot_id() -> str:
    """Return the kernel's id of this boot (sd_id128_get_boot(3))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


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
