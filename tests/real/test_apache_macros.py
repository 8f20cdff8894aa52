"""config/apache/certfan.conf in a real Apache: whatever else a vhost has, the challenge comes through."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import machine

APACHE = shutil.which("apache2", path="/usr/sbin:/usr/bin")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(APACHE is None, reason="apache2 is not installed"),
]

SHIPPED = Path(__file__).parents[2] / "config/apache/certfan.conf"
MODULES = ("mpm_event", "authz_core", "alias", "rewrite", "proxy", "proxy_http", "macro")
TOKEN = "/.well-known/acme-challenge/token-1"
VHOSTS = {
    "plain": "",
    "redirect": "Redirect permanent / https://elsewhere.test/",
    "rewrite": "RewriteEngine On\nRewriteRule ^ https://%{HTTP_HOST}%{REQUEST_URI} [R=301,L]",
    "app": "ProxyPass / http://127.0.0.1:9/",
    "deny": "<Location />\nRequire all denied\n</Location>",
    "both": "RewriteEngine On\nRewriteRule ^ https://elsewhere.test/ [R=301]\n<Location />\nRequire all denied\n</Location>",
    "sslredir": "Use le_sslredir",
}


class Daemon(http.server.BaseHTTPRequestHandler):
    """Says which Host and path it was asked for."""

    def do_GET(self) -> None:
        body = f"{self.headers['Host']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """An Apache with every kind of vhost, twice: with the macro first, and last."""
    folder, port = tmp_path_factory.mktemp("apache"), free_port()
    daemon = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Daemon)
    threading.Thread(target=daemon.serve_forever, daemon=True).start()
    use = f"Use le_proxy 127.0.0.1:{daemon.server_port}"
    lines = ["ServerName x", f"PidFile {folder}/pid", f"ErrorLog {folder}/log", f"Listen 127.0.0.1:{port}"]
    lines += [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in MODULES]
    lines += ["User www-data", "Group www-data", f"DocumentRoot {folder}", f"Include {SHIPPED}"]
    for name, own in VHOSTS.items():
        for order, inner in (("first", [use, own]), ("last", [own, use])):
            server = f"ServerName {name}-{order}.test"
            lines += [f"<VirtualHost 127.0.0.1:{port}>", server, *inner, "</VirtualHost>"]
    (folder / "apache.conf").write_text("\n".join(lines) + "\n")
    argv = [str(APACHE), "-d", str(folder), "-f", str(folder / "apache.conf"), "-D", "FOREGROUND"]
    with subprocess.Popen(argv) as apache:
        machine.wait_until(lambda: is_open(port), "Apache to listen")
        yield port
        apache.terminate()
    daemon.shutdown()
    daemon.server_close()


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int, host: str, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    told = answer.status, answer.getheader("Location", ""), answer.read().decode()
    connection.close()
    return told


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("name", VHOSTS)
def test_a_challenge_comes_through_any_vhost(port: int, name: str, order: str) -> None:
    """Wherever the macro stands, the daemon is asked, and told which vhost it was; the rest goes its own way."""
    host = f"{name}-{order}.test"

    status, _, body = ask(port, f"{host}:80", TOKEN)

    assert (status, body) == (200, f"{host}:80 {TOKEN}")


@pytest.mark.parametrize(("name", "expected"), [("deny", 403), ("redirect", 301), ("rewrite", 301)])
def test_what_the_vhost_had_of_its_own_still_holds(port: int, name: str, expected: int) -> None:
    """The macro opens the challenge's path and nothing else."""
    assert ask(port, f"{name}-last.test", "/private")[0] == expected


def test_the_redirect_goes_to_https_without_the_port(port: int) -> None:
    """A validator's Host carries :80, and https://name:80 would be a dead end."""
    status, location, _ = ask(port, "sslredir-first.test:80", "/page")

    assert (status, location) == (301, "https://sslredir-first.test/page")
