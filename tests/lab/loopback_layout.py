"""What of the story stands where on loopback, and the configs that say so to certfan.

CERT and WEB1 stand for the two VMs. One port plays port 80: Apache has it on WEB1 and ::1, the daemon's own
responder on CERT, and Pebble validates there.
"""

import contextlib
import grp
import json
import os
import pwd
import shutil
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.lab import machine, private
from tests.lab.fleet import NAME, Seen
from tests.lab.pebble import Pebble
from tests.lab.private import Server

CERT, WEB1, IPV6 = "127.0.0.10", "127.0.0.20", "::1"
_DAEMON = """\
fleet = "story"
state = "{run}/daemon/state"

[share]
path = "{run}/share"
require_mount = false

[http01]
listen = ["{cert}:{responder}", "{cert}:{http}"]
self_check = "off"

[channel]
listen = ["{cert}:{channel}"]

[status]
listen = ["127.0.0.1:{status}"]
probe_interval = {probe_interval}

[control]
socket = "{run}/daemon/control.sock"
group = "{group}"

[authority.pebble]
directory = "{directory}"
ca_file = "{ca_file}"
roots_file = "{roots_file}"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true
"""
_CONSUMER = """
[consumer.{name}]
group = "{group}"
"""
_AGENT = """\
[agent]
state = "{home}/state"
trust = "{home}/trust"
install_to = "{home}/installed"
share = "{share}"
probe_interval = {probe_interval}
apply_socket = "{home}/apply.sock"
install = "{install}"
user = "{user}"
"""
_SERVICE = """
{server}certificates = ["{certificate}"]
owner = "{user}"
group = "{group}"
endpoints = [{{ protocol = "{protocol}", address = {addresses}, port = {port}, server_names = {names} }}]
"""
_LEFT_OUT = (
    "network namespaces: every part is on a loopback address of this machine",
    "booted systemd and the units: plain processes, services reloaded by argv commands",
    "GlusterFS: a plain folder is the share",
    "own uids: every process of certfan runs as {user}",
)
_ROLES = ("http", "https", "smtp", "imap", "responder", "channel", "status")


class Layout:
    """Names, addresses and ports, as far as this machine goes; `rundir` need not exist yet."""

    def __init__(self, rundir: Path, in_place: Collection[str] = ()) -> None:
        self.rundir, self._in_place = rundir, in_place
        self.config = rundir / "daemon/certfan.toml"
        self.user, self.group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        self.no_mail = _why_no_mail()
        self.consumers = ("web1",) if self.no_mail else ("web1", "mail1")
        self._ipv6 = [IPV6] if _has_ipv6() else []
        self._web_names = [NAME, f"www.{NAME}", *([f"v6.{NAME}"] if self._ipv6 else [])]
        self.names = (*self._web_names, *([] if self.no_mail else [f"mail.{NAME}"]))
        addresses = ["127.0.0.1", CERT, WEB1, *self._ipv6]
        self.ports = dict(zip(_ROLES, free_ports(len(_ROLES), addresses), strict=True))

    @property
    def omitted(self) -> tuple[str, ...]:
        """What mode=full has and this has not."""
        left_out = [text.format(user=self.user) for text in _LEFT_OUT]
        if not self._ipv6:
            left_out.append(f"IPv6: this machine has no {IPV6}, so no v6.{NAME}")
        if self.no_mail:
            left_out.append(f"Postfix and Dovecot: {self.no_mail}, so no consumer mail1")
        return tuple(left_out)

    @property
    def endpoints(self) -> tuple[Seen, ...]:
        """Where openssl looks."""
        https = self.ports["https"]
        seen = [Seen(f"web1 https {name}", WEB1, https, name) for name in (NAME, f"www.{NAME}")]
        seen += [Seen(f"web1 https v6.{NAME}", six, https, f"v6.{NAME}") for six in self._ipv6]
        if "mail1" in self.consumers:
            for protocol in ("smtp", "imap"):
                for address in (CERT, *self._ipv6):
                    label = f"mail1 {protocol} STARTTLS" + (", IPv6" if ":" in address else "")
                    seen.append(Seen(label, address, self.ports[protocol], f"mail.{NAME}", protocol))
        return tuple(seen)

    def address_of(self, name: str) -> str:
        """Return the one address that DNS has for a name."""
        return {f"v6.{NAME}": IPV6, f"mail.{NAME}": CERT}.get(name, WEB1)

    def home(self, consumer: str) -> Path:
        """Return the folder with all that stands for a consumer's own disk."""
        return self.rundir / consumer

    def mount(self, consumer: str) -> Path:
        """Return what plays a consumer's mount: a link to its folder of the share."""
        return self.home(consumer) / "mnt"

    def daemon_toml(self, authority: Pebble, probe_interval: int) -> str:
        """Return certfan.toml for an authority; our own check asks at port 80 only, which nobody here has."""
        text = _DAEMON.format(
            run=self.rundir, cert=CERT, group=self.group, probe_interval=probe_interval,
            directory=authority.directory_url, ca_file=authority.ca_file, roots_file=authority.roots_file,
            **self.ports,
        )  # fmt: skip
        return text + "".join(_CONSUMER.format(name=name, group=self.group) for name in self.consumers)

    def agent_toml(self, consumer: str, servers: Sequence[Server], probe_interval: int) -> str:
        """Return agent.toml for the servers of a consumer."""
        home, in_place = self.home(consumer), consumer in self._in_place
        text = _AGENT.format(
            home=home, share=self.mount(consumer), probe_interval=probe_interval, user=self.user,
            install="in-place" if in_place else "copy",
        )  # fmt: skip
        return text + "".join(self._service(server) for server in servers)

    def lay_servers(self, consumer: str, macros: str) -> list[Server]:
        """Configure a consumer's servers; `macros` is what certfan ships for Apache."""
        home = self.home(consumer)
        pair = home / "installed/live" / NAME
        if consumer == "web1":
            http, https = ([_joined(a, self.ports[role]) for a in [WEB1, *self._ipv6]] for role in _ROLES[:2])
            return [
                private.apache(
                    home / "apache2", http=http, https=https, names=self._web_names, pair=pair,
                    macros=macros,
                )
            ]  # fmt: skip
        addresses = [CERT, *self._ipv6]
        return [
            private.postfix(home / "postfix", addresses=addresses, port=self.ports["smtp"], pair=pair),
            private.dovecot(home / "dovecot", addresses=addresses, port=self.ports["imap"], pair=pair),
        ]

    def ports_of(self, server: Server) -> list[int]:
        """Return what a server listens on."""
        roles = {"apache2": ("http", "https"), "postfix": ("smtp",), "dovecot": ("imap",)}
        return [self.ports[role] for role in roles[server.name]]

    def _service(self, server: Server) -> str:
        web = server.name == "apache2"
        protocol = {"apache2": "tls", "postfix": "smtp", "dovecot": "imap"}[server.name]
        return _SERVICE.format(
            server=server.toml(), certificate=NAME, user=self.user, group=self.group, protocol=protocol,
            addresses=json.dumps([WEB1 if web else CERT, *self._ipv6]), port=self.ports_of(server)[-1],
            names=json.dumps(self._web_names if web else [f"mail.{NAME}"]),
        )  # fmt: skip


def lacking() -> tuple[str, ...]:
    """Programs without which nothing of the story can be told here."""
    absent = [name for name in ("apache2", "curl", "openssl") if not _installed(name)]
    absent += [name for name in ("pebble", "pebble-challtestsrv") if machine.pebble_program(name) is None]
    return tuple(absent)


def _installed(name: str) -> bool:
    return shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is not None


def _why_no_mail() -> str:
    if os.geteuid() != 0:
        return "they need root"
    lacking = [name for name in ("postfix", "dovecot") if not _installed(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind((IPV6, 0))
        return True
    return False


def free_ports(count: int, addresses: Sequence[str]) -> list[int]:
    """Return different TCP ports that nobody has just now on any of the addresses."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                for address in addresses[1:]:
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    held.enter_context(socket.socket(family)).bind((address, port))
                found.append(port)
    return found


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
