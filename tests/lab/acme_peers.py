"""The peers of `make bench-acme`, each with one account made before and P-256 keys as certfan has.

lego and certbot write their answers into a folder that nginx serves; Caddy, like certfan, answers by itself.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.acme_parts import Ca, Cost, cpu_of, run_all, wait_while_it_grows
from tests.lab.pebble import free_port

MAIL = "hostmaster@example.test"
LEGO_AT_ONCE = 32
CERTBOT = machine.PROJECT / "build/certbot/bin/certbot"
_NGINX = """\
user root; worker_processes auto; pid {here}/nginx.pid; error_log {here}/nginx.log; daemon off;
events {{ worker_connections 1024; }}
http {{
  access_log off; default_type application/octet-stream; root {root};
  keepalive_requests 10000000; sendfile on; tcp_nopush on;
  open_file_cache max=20000 inactive=60s; open_file_cache_valid 60s; open_file_cache_errors {remember};
  client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
  uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ }} }}
}}
"""


@contextlib.contextmanager
def nginx(here: Path, root: Path, port: int, *, remember: str = "on") -> Iterator[int]:
    """Serve a folder; yields its pid. `remember`: whether it also remembers what is not there."""
    config = here / "nginx.conf"
    config.write_text(_NGINX.format(here=here, root=root, port=port, remember=remember))
    with _serving([str(shutil.which("nginx", path="/usr/sbin")), "-c", str(config)], here, port) as pid:
        yield pid


@contextlib.contextmanager
def caddy(here: Path, config: str, port: int) -> Iterator[int]:
    """Run Caddy until it listens; yields its pid."""
    (here / "Caddyfile").write_text(config)
    program = str(machine.pebble_program("caddy"))
    argv = [program, "run", "--adapter", "caddyfile", "--config", str(here / "Caddyfile")]
    with _serving(argv, here, port) as pid:
        yield pid


@contextlib.contextmanager
def _serving(argv: Sequence[str], here: Path, port: int) -> Iterator[int]:
    env = {"HOME": str(here), "XDG_DATA_HOME": str(here), "XDG_CONFIG_HOME": str(here)}
    process = machine.spawn(argv, here / "server.log", env=env)
    try:
        machine.wait_until(lambda: machine.listens(process.pid, port), f"{argv[0]} to listen; see {here}")
        yield process.pid
    finally:
        machine.end(process)


def by_lego(ca: Ca, here: Path, count: int) -> Cost:
    """Get certificates with lego, a process each, many at once."""
    root = here / "root"
    (root / ".well-known/acme-challenge").mkdir(parents=True)
    base = [
        str(machine.pebble_program("lego")), "--server", ca.pebble.directory_url, "--accept-tos", "--email", MAIL,
        "--key-type", "ec256", "--path", str(here / "lego"), "--http", "--http.webroot", str(root),
    ]  # fmt: skip
    argvs = [
        [*base, "--domains", f"n{n}.lego.example.test", "run", "--profile", "default"]
        for n in range(count + 1)
    ]
    return _by_programs(ca, here, root, argvs, LEGO_AT_ONCE, {"LEGO_CA_CERTIFICATES": str(ca.pebble.ca_file)})


def by_certbot(ca: Ca, here: Path, count: int) -> Cost:
    """Get certificates with certbot, one after the other: it locks its folder."""
    root = here / "root"
    root.mkdir()
    folders = [f"--{kind}-dir={here}/certbot/{kind}" for kind in ("config", "work", "logs")]
    base = [
        str(CERTBOT), "certonly", "--server", ca.pebble.directory_url,
        "--agree-tos", "--email", MAIL, "--no-eff-email", "--non-interactive", "--key-type", "ecdsa",
        "--webroot", "--webroot-path", str(root), "--preferred-profile", "default", *folders,
    ]  # fmt: skip
    argvs = [[*base, "--domain", f"n{n}.certbot.example.test"] for n in range(count + 1)]
    return _by_programs(ca, here, root, argvs, 1, {"REQUESTS_CA_BUNDLE": str(ca.pebble.ca_file)})


def _by_programs(
    ca: Ca, here: Path, root: Path, argvs: Sequence[Sequence[str]], at_once: int, env: dict[str, str]
) -> Cost:
    """Let the first make the account, and count the others."""
    log = here / "programs.log"
    with nginx(here, root, ca.http, remember="off"):
        run_all(argvs[:1], log, at_once=1, env=env)
        before, began = ca.requests(), time.monotonic()
        cpu = run_all(argvs[1:], log, at_once=at_once, env=env)
        return Cost(len(argvs) - 1, time.monotonic() - began, cpu, ca.requests() - before)


def by_caddy(ca: Ca, here: Path, count: int) -> Cost:
    """Get certificates with one running Caddy, from the reload of its config on."""
    https, admin = free_port(), free_port()
    options = {
        "admin": f"127.0.0.1:{admin}", "http_port": ca.http, "https_port": https, "email": MAIL,
        "acme_ca": ca.pebble.directory_url, "acme_ca_root": ca.pebble.ca_file, "skip_install_trust": "",
        "storage": f"file_system {here / 'caddy'}", "persist_config": "off", "default_bind": "127.0.0.1",
    }  # fmt: skip
    head = "{\n" + "".join(f"  {name} {value}\n" for name, value in options.items()) + "}\n"
    site = "n{}.caddy.example.test {{\n  respond ok\n  tls {{\n    issuer acme {{\n      profile default\n      disable_tlsalpn_challenge\n    }}\n  }}\n}}\n"

    def made() -> int:
        return len(list((here / "caddy/certificates").rglob("*.crt")))

    with caddy(here, head + site.format(0), https) as pid:
        wait_while_it_grows(made, 1, 60)
        before, began, cpu = ca.requests(), time.monotonic(), cpu_of(pid)
        (here / "Caddyfile").write_text(head + "".join(map(site.format, range(count + 1))))
        program = str(machine.pebble_program("caddy"))
        machine.run(
            [program, "reload", "--address", f"127.0.0.1:{admin}", "--adapter", "caddyfile", "--config", str(here / "Caddyfile")]
        )  # fmt: skip
        wait_while_it_grows(made, count + 1, 60)
        return Cost(count, time.monotonic() - began, cpu_of(pid) - cpu, ca.requests() - before)


def versions() -> dict[str, str]:
    """Return what runs here, by name."""
    return {
        "lego": machine.run([str(machine.pebble_program("lego")), "--version"]).stdout.split()[2],
        "certbot": machine.run([str(CERTBOT), "--version"]).stdout.split()[1],
        "Caddy": machine.run([str(machine.pebble_program("caddy")), "version"]).stdout.split()[0],
    }
