"""What agent.toml comes to on this very machine: do its programs and accounts exist, and what would be probed.

`certfan agent check` asks; a running agent does not, for a package may be installed later. Nothing is run or changed.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from certfan.agent import reloader
from certfan.agent.config import AgentConfig, Service, endpoints_of, load
from certfan.agent.forms import KeyFile, read_password
from certfan.agent.record import assigned
from certfan.errors import ConfigInvalid, InstallFailed

_VERBS = ("test", "reload", "start", "active", "hook")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a good config asks for. `endpoints` are by certificate, and None before anything was ever assigned."""

    services: tuple[str, ...]
    endpoints: Mapping[str, tuple[str, ...]] | None

    @property
    def lines(self) -> Iterator[str]:
        """Say it to people."""
        if self.endpoints is None:
            yield "no certificate was assigned yet, so nothing is known to be probed"
            return
        for certificate, endpoints in self.endpoints.items():
            yield f"{certificate}: {', '.join(endpoints) or 'no endpoint of any service shows it'}"


def check(path: Path) -> Outlook:
    """Read agent.toml and look around.

    Raises:
        ConfigInvalid: with every problem, of the file or, when that is good, of the machine.
        ConfigTooOpen: others may write it.
    """
    config = load(path)
    problems = tuple(f"{path}: {problem}" for problem in _problems(config))
    if problems:
        raise ConfigInvalid(problems, subject=str(path))
    return Outlook(tuple(service.name for service in config.services), _endpoints(config))


def _endpoints(config: AgentConfig) -> Mapping[str, tuple[str, ...]] | None:
    assignments = assigned(config.state)
    if assignments is None:
        return None
    return {
        name: tuple(
            f"{service} {endpoint}"
            for service, endpoints in endpoints_of(config, name, one.identifiers).items()
            for endpoint in endpoints
        )
        for name, one in sorted(assignments.items())
    }


def _problems(config: AgentConfig) -> Iterator[str]:
    if not _exists(pwd.getpwnam, config.user):
        yield f"agent.user: there is no user {config.user} on this machine"
    for index, service in enumerate(config.services):
        where = f"service[{index}]"
        for verb in _VERBS:
            argv: tuple[str, ...] = getattr(service, verb)
            if argv and shutil.which(argv[0], path=reloader.PATH) is None:
                yield f"{where}.{verb}: there is no program {argv[0]} (PATH is {reloader.PATH})"
        key = (service.form.key if service.form else service.key) or KeyFile()
        if not _exists(pwd.getpwnam, key.owner):
            yield f"{where}.owner: there is no user {key.owner} on this machine"
        if not _exists(grp.getgrnam, key.group):
            yield f"{where}.group: there is no group {key.group} on this machine"
        yield from (f"{where}.password_file: {problem}" for problem in _password_problem(service))


def _password_problem(service: Service) -> Iterator[str]:
    """Tell what is wrong with a password file, to root; nobody else may look."""
    if service.form is None or service.form.password_file is None or os.geteuid() != 0:
        return
    try:
        read_password(service.form.password_file)
    except InstallFailed as error:
        yield error.text


def _exists(look_up: Callable[[str], object], name: str) -> bool:
    """Whether an account is there; a number needs no name."""
    try:
        return name.isdigit() or bool(look_up(name))
    except KeyError:
        return False
