"""Apache, nginx, HAProxy and Caddy with what `certfan snippet` prints, in front of a daemon, each with vhosts of every kind.

One address a server (HAProxy has no vhosts, so there it is one a frontend), all on the port where a CA validates.
"""

from __future__ import annotations

import http.client
import itertools
import os
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from certfan.cli.snippets import parts
from tests.lab import machine
from tests.lab.pebble import free_port

HSTS = "max-age=31536000; includeSubDomains"
ELSEWHERE = "https://elsewhere.test"
_MODULES = (
    "mpm_event", "authz_core", "alias", "setenvif", "headers", "rewrite", "proxy", "proxy_http", "macro", "socache_shmcb",
    "ssl", "md",
)  # fmt: skip
_CLOSED = "<Location />\nRequire all denied\n</Location>"
# What a vhost has beside our line, which stands before it and, in another vhost, after it.
OWN: Mapping[str, Mapping[str, str]] = {
    "apache": {
        "plain": "",
        "redirect": f"Redirect permanent / {ELSEWHERE}/",
        "rewrite": "RewriteEngine On\nRewriteRule ^ https://%{HTTP_HOST}%{REQUEST_URI} [R=301,L]",
        "app": "ProxyPass / http://127.0.0.1:9/",
        "deny": _CLOSED,
        "both": f"RewriteEngine On\nRewriteRule ^ {ELSEWHERE}/ [R=301]\n{_CLOSED}",
        "sslredir": 'SetEnvIf Request_URI "^/feed" le_plain\nUse le_sslredir',
    },
    "nginx": {
        "plain": "",
        "app": "location / { proxy_pass http://127.0.0.1:9; }",
        "deny": "deny all;",
        "dots": r"location ~ /\. { deny all; }",
        "password": "auth_basic x; auth_basic_user_file /dev/null;",
        "sslredir": 'if ($uri ~ "^/feed") { break; }\ninclude le_sslredir.conf;',
        "both": "deny all; include le_sslredir.conf;",
        "redirect!": f"return 301 {ELSEWHERE}/;",
        "rewrite!": f"deny all; rewrite ^ {ELSEWHERE}/ permanent;",
    },
    "haproxy": {
        "plain": "",
        "sslredir": "{le_sslredir}",
        "deny!": "http-request deny",
        "redirect!": f"http-request redirect location {ELSEWHERE}/ code 301",
        "both!": f"http-request redirect location {ELSEWHERE}/ code 301 if {{ path_beg / }}\nhttp-request deny",
    },
    "caddy": {
        "plain": "",
        "app": "reverse_proxy 127.0.0.1:9",
        "deny": "respond 403",
        "error": "error 403",
        "sslredir": "vars /feed* le_plain 1\nimport le_sslredir",
        "redirect": f"redir @le_other {ELSEWHERE}/ 301",
        "both": "import le_sslredir\nrespond 403",
    },
}
# As the printed text says, here our line must come first, or the vhost's own must be another one.
LIMITS = {"nginx": ("redirect", 301), "haproxy": ("deny", 403), "caddy": ("bare", 302)}


@dataclass(frozen=True, slots=True)
class Vhost:
    """A name, and what its server was told about it."""

    name: str
    address: str
    lines: Sequence[str]
    works: bool


@dataclass(slots=True)
class Web:
    """One server with all its vhosts; `upstream` is where the daemon answers."""

    kind: str
    upstream: str
    port: int
    folder: Path
    number: int
    tls: int = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.tls = free_port(self.address)

    @property
    def address(self) -> str:
        """Where it listens, and its TLS vhost does."""
        return f"127.83.{self.number}.1"

    @property
    def texts(self) -> Mapping[str, str]:
        """What is printed for it."""
        return parts(self.kind, self.upstream, HSTS)

    def vhosts(self) -> Iterator[Vhost]:
        """Tell every vhost: our line first and last, and the combinations that cannot work."""
        ours = {
            "apache": "Use le_proxy",
            "nginx": "include le_proxy.conf;",
            "haproxy": self.texts.get("le_proxy", ""),
            "caddy": "import le_proxy",
        }[self.kind]
        numbers = itertools.count(2)
        own = dict(OWN[self.kind]) | ({"bare!": f"redir {ELSEWHERE}/"} if self.kind == "caddy" else {})
        for (kind, text), order in itertools.product(own.items(), ("first", "last")):
            kind, needs_first = kind.rstrip("!"), kind.endswith("!")
            if ":" in self.upstream.rpartition(":")[0] and kind not in {"plain", "sslredir", "both"}:
                continue  # over IPv6 nothing else of the vhost is any different
            lines = [ours, text.replace("{le_sslredir}", self.texts.get("le_sslredir", ""))]
            address = f"127.83.{self.number}.{next(numbers)}" if self.kind == "haproxy" else self.address
            works = not needs_first or (order == "first" and kind != "bare")
            yield Vhost(self.name(kind, order), address, lines if order == "first" else lines[::-1], works)

    def name(self, kind: str, order: str) -> str:
        """Return the name of a vhost."""
        return f"{kind}-{order}.{self.kind}{self.number}.test"

    def begin(self, pem: Path) -> subprocess.Popen[bytes]:
        """Write its config and start it."""
        {"apache": self._apache, "nginx": self._nginx, "haproxy": self._haproxy, "caddy": self._caddy}[
            self.kind
        ](pem)
        argv = {
            "apache": ["apache2", "-d", self.folder, "-f", self.folder / "conf", "-D", "FOREGROUND"],
            "nginx": ["nginx", "-p", self.folder, "-c", self.folder / "conf"],
            "haproxy": ["haproxy", "-db", "-f", self.folder / "conf"],
            "caddy": [machine.pebble_program("caddy"), "run", "--adapter", "caddyfile", "--config", self.folder / "conf"],
        }[self.kind]  # fmt: skip
        home = {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        return machine.spawn([str(word) for word in argv], self.folder / "log", env=home)

    def refuses(self, example: str, folder: Path) -> str:
        """Return what the server has against an example in a config of its own, "" for nothing."""
        config = folder / "conf"
        (folder / "snippets").mkdir(exist_ok=True)
        for name, text in self.texts.items():
            (folder / "snippets" / f"{name}.conf").write_text(text)
            (folder / "certfan.caddy").write_text(text)
        config.write_text(
            {
                "apache": "\n".join(
                    ["ServerName x", f"ErrorLog {folder}/log", *_loaded(), self.texts.get("", ""), example]
                ),
                "nginx": f"pid {folder}/pid; events {{}} http {{ {example} }}\n",
                "caddy": example,
            }[self.kind]
        )
        argv = {
            "apache": ["apache2", "-t", "-f", config],
            "nginx": ["nginx", "-t", "-q", "-p", folder, "-c", config, "-e", "/dev/null"],
            "caddy": [machine.pebble_program("caddy"), "adapt", "--adapter", "caddyfile", "--config", config],
        }[self.kind]
        done = machine.run([str(word) for word in argv], check=False)
        return done.stderr if done.returncode else ""

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Return when it listens; raises NotInTime with what it said when it ends instead."""

        def ready() -> bool:
            if process.poll() is not None:
                raise machine.NotInTime(f"{self.kind} ended: {(self.folder / 'log').read_text()[-2000:]}")
            return machine.listens(process.pid, self.tls)

        machine.wait_until(ready, f"{self.kind} to listen", 30)

    def ask(self, vhost: str, path: str, *, secure: bool = False) -> http.client.HTTPResponse:
        """Ask for a path of a vhost, as a validator does: the port in the Host header."""
        address = next((one.address for one in self.vhosts() if one.name == vhost), self.address)
        line = http.client.HTTPConnection(address, self.tls if secure else self.port, timeout=20)
        if secure:
            line.connect()
            line.sock = ssl._create_unverified_context().wrap_socket(line.sock, server_hostname=vhost)
        line.request("GET", path, headers={"Host": f"{vhost}:80"})
        answer = line.getresponse()
        answer.read()
        line.close()
        return answer

    def _write(self, *lines: str) -> None:
        (self.folder / "conf").write_text("\n".join(lines) + "\n")

    def _apache(self, pem: Path) -> None:
        lines = ["ServerName x", f"PidFile {self.folder}/pid", f"ErrorLog {self.folder}/error.log"]
        lines += _loaded()
        lines += [f"DefaultRuntimeDir {self.folder}", f"DocumentRoot {self.folder}"]
        lines += ["User www-data", "Group www-data"] if os.geteuid() == 0 else []
        # mod_md beside us, busy with a name of its own at an authority that is nowhere.
        lines += [f"MDStoreDir {self.folder}/md", "MDCertificateAuthority https://ca.test/directory"]
        lines += ["MDCertificateAgreement accepted", "MDContactEmail admin@md.test", "MDomain md.test"]
        lines += [f"Listen {self.address}:{self.port}", f"Listen {self.address}:{self.tls}", self.texts[""]]
        for vhost in self.vhosts():
            opened = [f"<VirtualHost {vhost.address}:{self.port}>", f"ServerName {vhost.name}"]
            lines += [*opened, *vhost.lines, "</VirtualHost>"]
        lines += [f"<VirtualHost {self.address}:{self.tls}>", "ServerName secure.test", "Use le_proxy"]
        lines += ["Use le_hsts", "SSLEngine on", f"SSLCertificateFile {pem}", "</VirtualHost>"]
        self._write(*lines)

    def _nginx(self, pem: Path) -> None:
        for name, text in self.texts.items():
            (self.folder / f"{name}.conf").write_text(text)
        lines = [f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log; events {{}}"]
        lines += ["http { access_log off;", f"proxy_temp_path {self.folder}/temp;"]
        for vhost in self.vhosts():
            opened = f"server {{ listen {vhost.address}:{self.port}; server_name {vhost.name};"
            lines += [opened, *vhost.lines, "}"]
        lines += [f"server {{ listen {self.address}:{self.tls} ssl; ssl_certificate {pem};"]
        lines += [f"ssl_certificate_key {pem}; include le_proxy.conf; include le_hsts.conf; }}", "}"]
        self._write(*lines)

    def _haproxy(self, pem: Path) -> None:
        lines = ["defaults", "mode http", *(f"timeout {one} 5s" for one in ("client", "server", "connect"))]
        for vhost in self.vhosts():
            lines += [f"frontend {vhost.name}", f"bind {vhost.address}:{self.port}", *vhost.lines]
        lines += ["frontend secure", f"bind {self.address}:{self.tls} ssl crt {pem}"]
        lines += [self.texts["le_proxy"], self.texts["le_hsts"], "http-request return status 200"]
        self._write(*lines, self.texts["backend"])

    def _caddy(self, pem: Path) -> None:
        lines = ["{\nadmin off\nauto_https off\n}", self.texts[""]]
        for vhost in self.vhosts():
            opened = [f"http://{vhost.name}:{self.port} {{", f"bind {vhost.address}"]
            lines += [*opened, *vhost.lines, "}"]
        lines += [f"https://secure.test:{self.tls} {{", f"bind {self.address}", f"tls {pem} {pem}"]
        self._write(*lines, "import le_proxy", "import le_hsts", "}")


def _loaded() -> list[str]:
    return [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _MODULES]
