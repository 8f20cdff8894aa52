"""Apache, Postfix, Dovecot and HAProxy with every file in a folder of ours, on free ports of loopback addresses.

Nothing of the machine's own /etc, /run or /var is read as config or written, so they run beside its real services.
Started once by the lab; afterwards the words of each verb are for agent.toml.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certfan.agent.recipes.haproxy import HAPROXY
from tests.lab import machine

_MODULES = (
    "mpm_event",
    "authz_core",
    "alias",
    "setenvif",
    "rewrite",
    "ssl",
    "proxy",
    "proxy_http",
    "macro",
    "headers",
)
_APACHE = """\
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ServerName web1.int
ErrorLog {folder}/error.log
LogFormat "%v %h \\"%r\\" %>s" short
CustomLog {folder}/access.log short
{user}
{modules}
{listen}
{macros}
{vhosts}
"""
_VHOSTS = """\
<VirtualHost {http}>
    ServerName {name}
    Use le_proxy
    Use le_sslredir
</VirtualHost>
<VirtualHost {https}>
    ServerName {name}
    Use le_proxy
    SSLEngine on
    SSLCertificateFile {pair}/fullchain.pem
    SSLCertificateKeyFile {pair}/privkey.pem
    Use le_hsts
</VirtualHost>
"""
_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = mail.example.test
mydestination =
inet_interfaces = loopback-only
inet_protocols = {protocols}
smtpd_tls_chain_files = {pair}/privkey.pem, {pair}/fullchain.pem
smtpd_tls_security_level = may
smtpd_tls_loglevel = 1
alias_maps =
"""
_MASTER_CF = """\
{listen}
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
proxymap  unix  -       -       n       -       -       proxymap
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
"""
_DOVECOT = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
instance_name = certfan-lab
protocols = imap
listen = {addresses}
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
ssl = yes
ssl_cert = <{pair}/fullchain.pem
ssl_key = <{pair}/privkey.pem
disable_plaintext_auth = yes
mail_location = maildir:{folder}/mail/%u
passdb {{
  driver = static
  args = password=nobody-logs-in-here
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={folder}/mail
}}
"""
_HAPROXY = """\
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend web
    bind {address}:{port} ssl crt {pem}
    http-request return status 200 content-type text/plain string served
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A configured server: the words of each verb, as agent.toml takes them, and where its pid and log stand."""

    name: str
    folder: Path
    test: Sequence[str] = field(kw_only=True)
    reload: Sequence[str] = field(kw_only=True)
    start: Sequence[str] = field(kw_only=True)
    active: Sequence[str] = field(kw_only=True)
    pid_file: Path = field(kw_only=True)
    log: Path = field(kw_only=True)

    def toml(self) -> str:
        """What agent.toml says about it, endpoints apart."""
        verbs = {"test": self.test, "reload": self.reload, "start": self.start, "active": self.active}
        lines = [f"{verb} = {json.dumps(list(argv))}" for verb, argv in verbs.items()]
        return "\n".join(["[[service]]", f'name = "{self.name}"', f'recipe = "{self.name}"', *lines, ""])

    def begin(self, *ports: int) -> None:
        """Start it, and return when it listens on the ports.

        Raises:
            NotInTime: it would not start, or did not listen; the text ends with its log.
        """
        said = self.folder / "start.log"
        starting = machine.spawn(self.start, said)  # what stays behind would keep a pipe open
        try:
            starting.wait(30)
            machine.wait_until(lambda: self._listens(ports), f"{self.name} to listen on {ports}")
        except (subprocess.TimeoutExpired, machine.NotInTime) as error:
            machine.end(starting)
            raise machine.NotInTime(f"{error}\n{last_lines(said)}\n{self.tail()}") from error

    def end(self) -> None:
        """End it with all its children; repeatable."""
        if pid := self.pid():
            end_process(pid)

    def pid(self) -> int:
        """Its pid, 0 when it does not run: a number that a dead one left behind may be somebody else's by now."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            told = [Path(f"/proc/{pid}/{one}").read_bytes() for one in ("cmdline", "environ")]
            return pid if str(self.folder).encode() in b"".join(told) else 0
        return 0

    def tail(self) -> str:
        """The end of its log."""
        return last_lines(self.log)

    def _listens(self, ports: Sequence[int]) -> bool:
        pid = self.pid()
        return bool(pid) and all(machine.listens(pid, port) for port in ports)


def apache(
    folder: Path, *, http: Sequence[str], https: Sequence[str], names: Sequence[str], pair: Path,
    macros: str,
) -> Server:  # fmt: skip
    """Configure Apache with a vhost a name; `http` and `https` are ADDRESS:PORT, `macros` what certfan ships."""
    folder.mkdir()
    listen = [f"Listen {one}" for one in http] + [f"Listen {one} https" for one in https]
    vhosts = [
        _VHOSTS.format(http=" ".join(http), https=" ".join(https), name=name, pair=pair) for name in names
    ]
    config = folder / "apache.conf"
    text = _APACHE.format(
        folder=folder,
        user="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
        modules="\n".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so" for m in _MODULES),
        listen="\n".join(listen),
        macros=macros,
        vhosts="".join(vhosts),
    )
    config.write_text(text)
    argv = ["apache2", "-d", str(folder), "-f", str(config)]
    return Server(
        "apache2",
        folder,
        test=[*argv, "-t"],
        reload=[*argv, "-k", "graceful"],
        start=[*argv, "-k", "start"],
        active=["pgrep", "-F", str(folder / "apache.pid")],
        pid_file=folder / "apache.pid",
        log=folder / "error.log",
    )


def postfix(folder: Path, *, addresses: Sequence[str], port: int, pair: Path) -> Server:
    """Configure Postfix with an smtpd on the port of each address; needs root."""
    config = (
        folder / "etc"
    )  # apart from the queue: `postfix check` minds the modes of all that is beside its config
    for inner in (folder, config, folder / "queue", folder / "data"):
        inner.mkdir()
    shutil.chown(folder / "data", "postfix")
    listen = "\n".join(f"{_bracketed(a)}:{port} inet n - n - - smtpd" for a in addresses)
    protocols = "all" if any(":" in address for address in addresses) else "ipv4"
    (config / "main.cf").write_text(_MAIN_CF.format(folder=folder, pair=pair, protocols=protocols))
    (config / "master.cf").write_text(_MASTER_CF.format(listen=listen))
    argv = ["postfix", "-c", str(config)]
    return Server(
        "postfix",
        folder,
        test=[*argv, "check"],
        reload=[*argv, "reload"],
        start=[*argv, "start"],
        active=[*argv, "status"],
        pid_file=folder / "queue/pid/master.pid",
        log=folder / "log",
    )


def dovecot(folder: Path, *, addresses: Sequence[str], port: int, pair: Path) -> Server:
    """Configure Dovecot with imap and STARTTLS on the port of each address; needs root."""
    folder.mkdir()
    config = folder / "dovecot.conf"
    config.write_text(_DOVECOT.format(folder=folder, pair=pair, addresses=", ".join(addresses), port=port))
    return Server(
        "dovecot",
        folder,
        test=["doveconf", "-c", str(config), "-n"],
        reload=["doveadm", "-c", str(config), "reload"],
        start=["dovecot", "-c", str(config)],
        active=["pgrep", "-F", str(folder / "run/master.pid")],
        pid_file=folder / "run/master.pid",
        log=folder / "log",
    )


def haproxy(folder: Path, *, address: str, port: int, pem: Path) -> Server:
    """Configure HAProxy for one combined PEM, and run it as its recipe does, with files of ours."""
    folder.mkdir()
    config, pid_file = folder / "haproxy.cfg", folder / "haproxy.pid"
    config.write_text(_HAPROXY.format(address=address, port=port, pem=pem))

    def ours(argv: Sequence[str]) -> list[str]:
        places = {"/etc/haproxy/haproxy.cfg": str(config), "/run/haproxy.pid": str(pid_file)}
        return [places.get(word, word) for word in argv]

    return Server(
        "haproxy",
        folder,
        test=ours(HAPROXY.test),
        reload=ours(HAPROXY.reload),
        start=ours(HAPROXY.start),
        active=ours(HAPROXY.active),
        pid_file=pid_file,
        log=folder / "log",
    )


def end_process(pid: int, patience: float = 10) -> None:
    """Terminate, after `patience` seconds kill, a process that need not be our child; repeatable."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], patience)[0]:
                return
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def last_lines(path: Path, count: int = 30) -> str:
    """The end of a log, or that there is none."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else "no log"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
