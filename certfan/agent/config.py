"""agent.toml, read into one frozen value or refused with every problem at once.

It is the only source of what may run here, as whom files belong, and where services are probed: nothing of that
comes from the wire. What must never come in: anything that keeps state or runs something.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from certfan import systemd, toml
from certfan.agent.config_schema import (
    AgentFile,
    AgentTable,
    Delivery,
    EndpointTable,
    Install,
    Output,
    ServiceTable,
)
from certfan.agent.forms import NAMES, Form, KeyFile, Layout
from certfan.agent.recipes import RECIPES, Argv
from certfan.core.model import CERTIFICATE_NAME, Endpoint, Identifier
from certfan.errors import ConfigInvalid

DEFAULT_PATH = Path("/etc/certfan/agent.toml")


@dataclass(frozen=True, slots=True)
class EndpointTemplate:
    """An endpoint before its server names are known; None for `server_names` means each identifier."""

    protocol: str
    address: str
    port: int
    server_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """Something here that loads pairs. `test` and `hook` may be empty: then there is none."""

    name: str
    patterns: tuple[str, ...] = field(kw_only=True)
    endpoints: tuple[EndpointTemplate, ...] = field(kw_only=True)
    test: Argv = field(default=(), kw_only=True)
    reload: Argv = field(kw_only=True)
    start: Argv = field(kw_only=True)
    active: Argv = field(kw_only=True)
    hook: Argv = field(default=(), kw_only=True)
    timeout: timedelta = field(default=timedelta(seconds=60), kw_only=True)
    key: KeyFile | None = field(
        default=None, kw_only=True
    )  # of certbot's files; a form of its own has its own
    form: Form | None = field(default=None, kw_only=True)
    unit: str = field(default="", kw_only=True)  # "" without systemd

    def concerns(self, certificate: str) -> bool:
        """Whether this service loads the certificate of that name."""
        return any(fnmatchcase(certificate, pattern) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the admin wrote for this consumer."""

    path: Path
    state: Path = field(kw_only=True)  # the agent's own; everybody else reads it as a stranger's
    trust: Path = field(kw_only=True)  # fleet.json and ca.pem, root's
    install_to: Path = field(kw_only=True)
    share: Path | None = field(default=None, kw_only=True)
    delivery: Delivery = field(default=Delivery.SHARE, kw_only=True)
    install: Install = field(default=Install.COPY, kw_only=True)
    probe_interval: timedelta = field(default=timedelta(seconds=300), kw_only=True)
    quiet: timedelta = field(default=timedelta(seconds=2), kw_only=True)
    apply_socket: Path = field(kw_only=True)
    user: str = field(default="certfan-agent", kw_only=True)
    services: tuple[Service, ...] = field(default=(), kw_only=True)

    @property
    def bundles(self) -> Path:
        """Where the agent stages what it verified: `<certificate>/<generation>/`."""
        return self.state / "bundles"

    @property
    def outcomes(self) -> Path:
        """What the agent knows of each installed generation; the boot unit reads it."""
        return self.state / "outcomes.json"

    @property
    def literal_names(self) -> tuple[str, ...]:
        """Certificates that a service names outright: they get a placeholder before they are ever assigned."""
        names = (p for service in self.services for p in service.patterns if CERTIFICATE_NAME.fullmatch(p))
        return tuple(sorted(set(names)))

    def concerned(self, certificate: str) -> tuple[Service, ...]:
        """Every service that loads a certificate."""
        return tuple(service for service in self.services if service.concerns(certificate))

    def layout(self, certificate: str) -> Layout:
        """What a certificate's folder holds: keys as the first service wants that loads them and cares, and each form."""
        concerned = self.concerned(certificate)
        key = next((s.key for s in concerned if s.key is not None), KeyFile())
        return Layout(key, tuple(s.form for s in concerned if s.form is not None))


def load(path: Path = DEFAULT_PATH, *, with_systemd: bool | None = None) -> AgentConfig:
    """Read agent.toml. `with_systemd` decides what recipes run; None looks whether systemd is pid 1.

    Raises:
        ConfigInvalid: with every problem.
        ConfigTooOpen: others may write it.
    """
    file = toml.validate(AgentFile, toml.load(path), where=str(path))
    if with_systemd is None:
        with_systemd = systemd.is_running()
    problems = tuple(f"{path}: {problem}" for problem in _problems(file, with_systemd=with_systemd))
    if problems:
        raise ConfigInvalid(problems, subject=str(path))
    services = tuple(_service(table, with_systemd=with_systemd) for table in file.service)
    return AgentConfig(path, services=services, **dict(file.agent))


def endpoints_of(
    config: AgentConfig, certificate: str, identifiers: Sequence[str]
) -> Mapping[str, tuple[Endpoint, ...]]:
    """Return where each concerned service must show a certificate; sorted, without repetition.

    Known limits: a wildcard alone gives no endpoint, so list names below it in `server_names`; an IP identifier is
    asked for at its own address only, or where `server_names` lists it.
    """
    return {
        service.name: tuple(
            sorted({e for t in service.endpoints for e in _endpoints(service, t, identifiers)}, key=str)
        )
        for service in config.concerned(certificate)
    }


def _endpoints(
    service: Service, template: EndpointTemplate, identifiers: Sequence[str]
) -> Iterator[Endpoint]:
    for name in _server_names(template, identifiers):
        yield Endpoint(service.name, template.protocol, template.address, template.port, name)


def _server_names(template: EndpointTemplate, identifiers: Sequence[str]) -> Iterator[str]:
    plain = [name for name in identifiers if not name.startswith("*.")]
    if template.server_names is None:
        for name in plain:
            if Identifier(name).kind == "dns" or name == template.address:
                yield name
        return
    for pattern in template.server_names:
        yield from (name for name in plain if fnmatchcase(name, pattern))
        if "*" not in pattern and f"*.{pattern.partition('.')[2]}" in identifiers:
            yield pattern


def _problems(file: AgentFile, *, with_systemd: bool) -> Iterator[str]:
    """Tell what only shows when keys are seen together."""
    yield from _agent_problems(file.agent)
    seen: dict[str, int] = {}
    for index, table in enumerate(file.service):
        where = f"service[{index}]"
        if table.name in seen:
            yield f"{where}.name: {table.name} is also service[{seen[table.name]}]"
        seen.setdefault(table.name, index)
        yield from (f"{where}.{problem}" for problem in _form_problems(file, table))
        for verb in ("reload", "start", "active"):
            if not _argv(table, verb, with_systemd=with_systemd):
                yield f"{where}.{verb}: is missing, for there is no recipe{' or unit' if with_systemd else ''}"
        for place, endpoint in enumerate(table.endpoints):
            if not all(_speaks(table, endpoint)):
                yield f"{where}.endpoints[{place}]: needs protocol and port, the recipe does not tell them"
    for (first, one), (second, other) in itertools.combinations(enumerate(file.service), 2):
        if _quarrel(one, other):
            yield (
                f"service[{second}]: owner, group or mode differ from those of service[{first}],"
                " which loads the same certificates (a key file has one of each)"
            )


def _agent_problems(agent: AgentTable) -> Iterator[str]:
    for key in ("trust", "install_to"):
        if getattr(agent, key).is_relative_to(agent.state):
            yield f"agent.{key}: lies below agent.state, where the agent's user may put anything in its place"
    if agent.delivery is Delivery.SHARE_ONLY and agent.share is None:
        yield "agent.delivery: is share-only, and agent.share is not set"
    if agent.install is Install.IN_PLACE and agent.share is None:
        yield "agent.install: is in-place, and agent.share is not set"
    if agent.install is Install.IN_PLACE and agent.delivery is Delivery.CHANNEL:
        yield "agent.install: is in-place, and agent.delivery is channel, which never looks at the share"


def _form_problems(file: AgentFile, table: ServiceTable) -> Iterator[str]:
    output = _output(table)
    if output is Output.PKCS12 and table.password_file is None:
        yield "password_file: is missing, and output is pkcs12"
    if table.password_file is not None and output is not Output.PKCS12:
        yield f"password_file: is for pkcs12 only, and output is {output}"
    if table.password_file is not None and table.password_file.is_relative_to(file.agent.state):
        yield "password_file: lies below agent.state, where the agent's user may put anything in its place"
    if output is not Output.CERTBOT and file.agent.install is Install.IN_PLACE:
        yield f"output: {output} needs copies on the local disk, and agent.install is in-place"
    if _form_file(table) in NAMES:
        yield f"output: {_form_file(table)} has another meaning in every folder, give the service another name"


def _quarrel(one: ServiceTable, other: ServiceTable) -> bool:
    """Whether two services may want the same key file with different owners or modes."""
    if Output.CERTBOT not in {_output(one)} & {_output(other)}:
        return False  # each form of its own is a file of its own
    mine, theirs = _key(one), _key(other)
    if mine is None or theirs is None or mine == theirs:
        return False
    return any(
        fnmatchcase(a, b) or fnmatchcase(b, a)
        for a, b in itertools.product(one.certificates, other.certificates)
    )


def _service(table: ServiceTable, *, with_systemd: bool) -> Service:
    return Service(
        table.name,
        patterns=table.certificates,
        endpoints=tuple(t for endpoint in table.endpoints for t in _templates(table, endpoint)),
        test=_argv(table, "test", with_systemd=with_systemd),
        reload=_argv(table, "reload", with_systemd=with_systemd),
        start=_argv(table, "start", with_systemd=with_systemd),
        active=_argv(table, "active", with_systemd=with_systemd),
        hook=table.hook or (),
        timeout=table.timeout,
        key=_key(table) if _output(table) is Output.CERTBOT else None,
        form=_form(table),
        unit=(_unit(table) or "") if with_systemd else "",
    )


def _templates(table: ServiceTable, endpoint: EndpointTable) -> Iterator[EndpointTemplate]:
    protocol, port = _speaks(table, endpoint)
    for address in endpoint.address:
        yield EndpointTemplate(protocol or "", address, port or 0, endpoint.server_names)


def _speaks(table: ServiceTable, endpoint: EndpointTable) -> tuple[str | None, int | None]:
    """Return protocol and port, the missing ones from the recipe."""
    ports = RECIPES[table.recipe].ports if table.recipe else {}
    protocol, port = endpoint.protocol, endpoint.port
    if port is None:
        port = next((p for p, spoken in ports.items() if protocol in {None, spoken}), None)
    if protocol is None and port is not None:
        known = ports.get(port)
        return known, port
    return protocol, port


def _output(table: ServiceTable) -> Output:
    return table.output or Output(RECIPES[table.recipe].output if table.recipe else "certbot")


def _form_file(table: ServiceTable) -> str:
    suffixes = {Output.CERTBOT: "", Output.PEM: ".pem", Output.PKCS12: ".p12"}
    return table.name + suffixes[_output(table)]


def _form(table: ServiceTable) -> Form | None:
    if _output(table) is Output.CERTBOT:
        return None
    return Form(_form_file(table), _key(table) or KeyFile(), table.password_file)


def _key(table: ServiceTable) -> KeyFile | None:
    if table.owner is None and table.group is None and table.mode is None:
        return None
    mode = table.mode if table.mode is not None else (0o640 if table.group is not None else 0o600)
    return KeyFile(table.owner or "root", table.group or "root", mode)


def _unit(table: ServiceTable) -> str | None:
    return table.unit or (RECIPES[table.recipe].unit if table.recipe else None)


def _argv(table: ServiceTable, verb: str, *, with_systemd: bool) -> Argv:
    """Return what runs for a verb: the admin's own, else systemctl, else the recipe's."""
    own: Argv | None = getattr(table, verb)
    if own is not None:
        return own
    unit = _unit(table)
    if with_systemd and unit and verb != "test":
        return ("systemctl", {"active": "is-active"}.get(verb, verb), unit)
    return getattr(RECIPES[table.recipe], verb) if table.recipe else ()
