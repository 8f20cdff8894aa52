"""The privileged half: root, without a network, on a unix socket; lays what is signed and runs what root configured.

A request is JSON lines, each exactly {"certificate": NAME, "generation": N} (0: a placeholder), ended by a half-close; or the
one line {"pin": "trust"}: believe what the agent has left in its state folder, if a CA that is pinned has signed it.
Names and numbers are all that is believed: bundles are verified again against what root has pinned (`bundled`). The
answer is one line of JSON (`swap.Answer`). Anything odd: nothing is done.

A single line with "request", "key_type", "identifiers" and "key" in the place of "generation" asks for a CSR by a key
that is made here, and stays (`own_keys`). Whoever asks learns nothing by it, and the daemon judges what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from certfan import files, log, systemd
from certfan.agent import config as agent_config
from certfan.agent import own_keys
from certfan.agent.bundled import Bundled, plain
from certfan.agent.config import AgentConfig
from certfan.agent.identity import read_trust, write_trust
from certfan.agent.installer import Installer
from certfan.agent.own_keys import OwnKeys
from certfan.agent.places import opened
from certfan.agent.rotation import STATEMENT, pinned_by
from certfan.agent.swap import PIN, Answer, Swap, Wanted
from certfan.core.model import CERTIFICATE_NAME, KeyType, Problem
from certfan.errors import (
    ApplyUnavailable,
    BundleInvalid,
    CertfanError,
    InstallFailed,
    KeyLost,
    MessageInvalid,
    NotAllowed,
    StateLocked,
)

MAX_LINES = 1000
MAX_REQUEST = 64 * 1024
MAX_GENERATION = 10**12
MAX_IDENTIFIERS = 100
PATIENCE = timedelta(seconds=10)  # for a request to arrive
PARTING = timedelta(seconds=2)  # for its answer to be taken
IDLE = timedelta(seconds=30)
LOCK_PATIENCE = timedelta(minutes=2)
_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7))


def run(config_path: Path, *, socket_path: Path | None = None, idle: timedelta | None = None) -> None:
    """Serve until idle when systemd handed a socket over, else on `socket_path` (default: the config's) for ever.

    Raises:
        ConfigError: agent.toml cannot be used, and no socket is known without it.
    """
    log.set_up()
    asyncio.run(_run(config_path, socket_path, idle))


async def _run(config_path: Path, socket_path: Path | None, idle: timedelta | None) -> None:
    handed_over = systemd.handed_over_sockets()
    if handed_over:
        await serve(handed_over[0][1], config_path, idle=idle or IDLE)
        return
    config = agent_config.load(config_path)
    with listen(socket_path or config.apply_socket, config) as listener:
        await serve(listener, config_path, idle=idle)


@contextlib.contextmanager
def listen(path: Path, config: AgentConfig) -> Iterator[socket.socket]:
    """Listen where the agent asks, on a machine without systemd."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(temporary))
        try:
            # Who may ask is decided by SO_PEERCRED; the mode only keeps others from queueing.
            if (agent := _agent_of(config)) is not None:
                os.chown(temporary, -1, agent.pw_gid)
            temporary.chmod(0o660)
            listener.listen(8)
            temporary.replace(path)  # whoever sees the name can connect
            yield listener
        finally:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


async def serve(
    listener: socket.socket,
    config_path: Path,
    *,
    idle: timedelta | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Answer requests one after the other; return when none came for `idle`.

    agent.toml is read anew for each. Cancelled midway, the same request completes what was begun.
    """
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(idle.total_seconds() if idle else None):
                connection, _ = await loop.sock_accept(listener)
        except TimeoutError:
            return
        with connection:
            connection.setblocking(False)
            answer = await _answered(connection, config_path, clock)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PARTING.total_seconds()):
                    await loop.sock_sendall(connection, answer.encode())
                    connection.shutdown(socket.SHUT_WR)
                    # Closed on unread data, the socket would take the answer with it.
                    while await loop.sock_recv(connection, 65536):
                        pass


async def _answered(connection: socket.socket, config_path: Path, clock: Callable[[], datetime]) -> Answer:
    """Turn whatever comes into an answer; a bug ends the process."""
    try:
        config = agent_config.load(config_path)
        _check_caller(connection, config)
        request = await _request(connection)
        to_sign = parse_csr(request)
        requested = parse(request) if to_sign is None and request != PIN else ()
        async with _locked(config):
            if request == PIN:
                return _pin(config)
            if to_sign is not None:
                return Answer(csr=OwnKeys(config.install_to).csr(to_sign))
            return await _apply(config, requested, clock)
    except CertfanError as error:
        problem = Problem(error.code, error.text, error.hint, error.not_before)
    except OSError as error:
        failed = InstallFailed(f"local disk: {error}", hint="run: df -h; journalctl -u certfan-apply")
        problem = Problem(failed.code, failed.text, failed.hint)
    log.get("apply").warning("request.refused", code=problem.code, detail=problem.detail)
    return Answer(problem=problem)


async def _apply(
    config: AgentConfig, requested: tuple[tuple[str, int], ...], clock: Callable[[], datetime]
) -> Answer:
    """Verify the whole group before anything is touched, then swap it in."""
    installer = Installer(config.install_to)
    bundled = Bundled(config, installer, read_trust(config.trust), clock)
    try:
        wanted = [
            Wanted(name, number, bundled.pair(name, number) if number else None) for name, number in requested
        ]
    except KeyLost as error:
        if len(requested) == 1:
            raise
        # Of a group nobody could tell whose key is lost, and each would get a new one.
        raise BundleInvalid(error.text, subject=error.subject, hint=error.hint) from error
    async with opened(config, installer, bundled, clock) as places:
        return await Swap(config, places, clock).run(wanted)


def _pin(config: AgentConfig) -> Answer:
    """Pin what a CA that is pinned says; the agent only carries it here."""
    folder = os.open(config.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        data = plain(STATEMENT, folder, "statement of trust")
    finally:
        os.close(folder)
    trust = pinned_by(data, read_trust(config.trust))
    write_trust(config.trust, trust)
    log.get("apply").info("trust.pinned", number=trust.number, fleet=trust.fleet)
    return Answer()


def parse(request: bytes) -> tuple[tuple[str, int], ...]:
    """Read a request; strict to the last byte.

    Raises:
        MessageInvalid: it is anything but lines of exactly a certificate and a generation, each name once.
    """
    lines = request.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if not 1 <= len(lines) <= MAX_LINES or len(request) > MAX_REQUEST:
        raise MessageInvalid(f"a request is 1 to {MAX_LINES} lines and at most {MAX_REQUEST} bytes")
    pairs = tuple(_line(line) for line in lines)
    if len({name for name, _ in pairs}) != len(pairs):
        raise MessageInvalid("a request names each certificate once")
    return pairs


def parse_csr(request: bytes) -> own_keys.Wanted | None:
    """Read a request for a CSR; None when it is one of the other kind.

    Raises:
        MessageInvalid: it is for a CSR, and anything in it is odd.
    """
    try:
        items: Any = json.loads(request, object_pairs_hook=list)
        fields = dict(items)
    except (ValueError, TypeError, RecursionError):
        return None
    if "request" not in fields or not request.startswith(b"{"):
        return None
    names, key = fields.get("identifiers"), fields.get("key")
    if [name for name, _ in items] != ["certificate", "request", "key_type", "identifiers", "key"]:
        raise MessageInvalid("the request for a CSR has other fields")
    if type(names) is not list or not 1 <= len(names) <= MAX_IDENTIFIERS or not all(map(_is_name, names)):
        raise MessageInvalid("the request for a CSR has no names")
    if type(key) is not str or not re.fullmatch("(?:[0-9a-f]{64})?", key):
        raise MessageInvalid("the request for a CSR has no key")
    if type(fields["key_type"]) is not str or fields["key_type"] not in set(KeyType):
        raise MessageInvalid("the request for a CSR has a type of key that is not known here")
    certificate, number = _named(fields["certificate"], fields["request"])
    if not number:
        raise MessageInvalid("the request for a CSR has no generation")
    return own_keys.Wanted(certificate, number, KeyType(fields["key_type"]), tuple(names), key)


def _is_name(name: object) -> bool:
    return type(name) is str and re.fullmatch(r"[a-z0-9*.:_-]{1,253}", name) is not None


def _line(line: bytes) -> tuple[str, int]:
    try:
        items: Any = json.loads(line, object_pairs_hook=list)  # a list of pairs: a key that comes twice shows
        (first, certificate), (second, generation) = items
    except (ValueError, TypeError, RecursionError) as error:
        raise MessageInvalid("a line of the request is no certificate and generation") from error
    if [first, second] != ["certificate", "generation"] or not line.lstrip().startswith(b"{"):
        raise MessageInvalid('a line of the request is not {"certificate": ..., "generation": ...}')
    return _named(certificate, generation)


def _named(certificate: object, generation: object) -> tuple[str, int]:
    if type(certificate) is not str or not CERTIFICATE_NAME.fullmatch(certificate):
        raise MessageInvalid("a line of the request has no name of a certificate")
    if type(generation) is not int or not 0 <= generation <= MAX_GENERATION:
        raise MessageInvalid("a line of the request has no generation")
    return certificate, generation


async def _request(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while len(received) <= MAX_REQUEST:
                chunk = await asyncio.get_running_loop().sock_recv(connection, 65536)
                if not chunk:
                    return bytes(received)
                received += chunk
    except TimeoutError as error:
        raise MessageInvalid("the request did not end in time") from error
    raise MessageInvalid(f"the request is longer than {MAX_REQUEST} bytes")


def _check_caller(connection: socket.socket, config: AgentConfig) -> None:
    """Let pass root and the agent's user.

    Raises:
        NotAllowed: the caller is someone else.
    """
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    agent = _agent_of(config)
    if uid not in {0, agent.pw_uid if agent else 0}:
        raise NotAllowed(f"uid {uid} may not ask for installations", hint="see user in agent.toml")


def _agent_of(config: AgentConfig) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(config.user)) if config.user.isdigit() else pwd.getpwnam(config.user)
    except KeyError:
        return None


@contextlib.asynccontextmanager
async def _locked(config: AgentConfig) -> AsyncIterator[None]:
    """Hold what keeps the boot unit and another privileged half away.

    Raises:
        ApplyUnavailable: it is held for too long.
    """
    config.install_to.mkdir(mode=0o755, parents=True, exist_ok=True)
    deadline = asyncio.get_running_loop().time() + LOCK_PATIENCE.total_seconds()
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(files.locked(lock_path(config)))
                break
            except StateLocked as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise ApplyUnavailable(error.text, subject=error.subject, hint=error.hint) from error
                await asyncio.sleep(0.1)
        yield


def lock_path(config: AgentConfig) -> Path:
    """Return the file that apply and boot lock."""
    return config.install_to / ".certfan-apply.lock"
