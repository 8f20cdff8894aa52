"""Real web servers, a DNS server and our responder in namespaces of their own, where the self-check walks every name.

`python -m tests.real.path_place` in a fresh network, mount and process namespace prints what it said of each as JSON.
Addresses end in 80 (Apache), 81 (nginx), 55 (the daemon) or stand for a fault. Nothing outside is touched, and all ends with it.
"""

import asyncio
import itertools
import json
import subprocess
from pathlib import Path

import dns.rcode
import trustme

from certfan.cli.snippets import parts
from certfan.core.model import Identifier
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.challenges.pathcheck import PathChecker
from certfan.daemon.listeners import Listener
from tests.lab import machine
from tests.unit.tiny_dns import Zone, serving

DAEMON = "192.0.2.55:8055"
APACHE, NGINX = ("192.0.2.80", "2001:db8::80"), ("192.0.2.81", "2001:db8::81")
NOBODY, DROPPED, NO_ROUTE = "2001:db8::99", "2001:db8:9::1", "3fff::1"
SEAT = Path("/srv")  # a tmpfs of ours here: the servers' own users can read what lies in it
FOLDER = "/.well-known/acme-challenge/"
MODULES = [
    "mpm_event",
    "alias",
    "auth_basic",
    "authn_core",
    "authn_file",
    "authz_core",
    "authz_user",
    "dir",
    "headers",
    "macro",
    "proxy",
    "proxy_http",
    "rewrite",
    "socache_shmcb",
    "ssl",
    "md",
]

USE = "Use le_proxy"
CLOSED = "<Location />\nAuthType Basic\nAuthName x\nAuthUserFile /srv/users\nRequire valid-user\n</Location>"
BY_HAND = f"ProxyPass {FOLDER} http://{DAEMON}{FOLDER}"  # as a wiki says it, without our macro
PAGE = 'AliasMatch "^" /srv/www/index.html'  # an application that answers everything
TO_HTTPS = "Redirect permanent / https://{name}/"


def chain(redirects: int) -> str:
    """Redirect as often, then forward."""
    steps = [FOLDER, *(f"/{number}/" for number in range(1, redirects + 1))]
    lines = [f'RedirectMatch "^{one}(.*)$" "{other}$1"' for one, other in itertools.pairwise(steps)]
    return "\n".join([*lines, f"ProxyPass {steps[-1]} http://{DAEMON}{FOLDER}"])


# What each vhost of Apache has on port 80, and, where a redirect leads there, on 443. The first answers for addresses.
PLAIN = {
    "good": USE,
    "macro-sslredir": f"{USE}\nUse le_sslredir",
    "macro-closed": f"{USE}\n{CLOSED}",
    "macro-rewrite": f"RewriteEngine On\nRewriteRule ^ /index.html\n{USE}",
    "to-https": TO_HTTPS,
    "to-other": "Redirect / http://good.test/",
    "ten": chain(10),
    "six-nobody": USE,
    "six-dropped": USE,
    "six-no-route": USE,
    "eleven": chain(11),
    "md": USE,
    "alias": "Alias /.well-known/acme-challenge /srv/certbot/",
    "closed": f"{CLOSED}\n{BY_HAND}",
    "denied": "<Location />\nRequire all denied\n</Location>",
    "loop": "Redirect / http://loop.test/",
    "circle": TO_HTTPS,
    "page": PAGE,
    "short-page": f"Alias {FOLDER} /srv/short/\nFallbackResource {FOLDER}index.html",
    "no-daemon": "ProxyPass / http://192.0.2.55:9/ retry=0",
    "https-page": TO_HTTPS,
    "no-slash": "Redirect / http://no-slash.test",
    "to-inside": "Redirect / http://inside.test/",
    "to-daemon": "Redirect / http://daemon.test/",
    "to-nowhere": "Redirect / https://nowhere.test/",
    "see-other": "Redirect seeother / https://good.test/",
}
SECURE = {"to-https": USE, "circle": "Redirect / http://circle.test/", "https-page": PAGE}
NGINX_CONF = f"""
daemon off; user www-data; pid /srv/nginx.pid; error_log /srv/nginx.log; events {{}}
http {{ access_log off;
server {{ listen {NGINX[0]}:80; listen [{NGINX[1]}]:80; server_name n-good.test;
  location {FOLDER} {{ proxy_pass http://{DAEMON}; proxy_set_header Host $host; }} location / {{ return 301 https://$host$request_uri; }} }}
server {{ listen {NGINX[0]}:80; listen [{NGINX[1]}]:80; server_name n-dots.test;
  location ~ /\\. {{ deny all; }} location / {{ proxy_pass http://{DAEMON}; }} }}
server {{ listen {NGINX[0]}:80; listen [{NGINX[1]}]:80; server_name n-https.test; return 301 https://$host$request_uri; }}
}}
"""
ZONE: Zone = {
    **{f"{name}.test": {"A": [APACHE[0]], "AAAA": [APACHE[1]]} for name in PLAIN},
    **{f"n-{name}.test": {"A": [NGINX[0]], "AAAA": [NGINX[1]]} for name in ("good", "dots", "https")},
    **{
        f"six-{name}.test": {"A": [APACHE[0]], "AAAA": [address]}
        for name, address in (("nobody", NOBODY), ("dropped", DROPPED), ("no-route", NO_ROUTE))
    },
    "inside.test": {"A": ["127.0.0.1"]},
    "daemon.test": {"A": ["192.0.2.55"]},
    "bogus.test": dns.rcode.SERVFAIL,
    "bare.test": {"TXT": ["x"]},
}
WALKED = [*(name for name in ZONE if name not in {"inside.test", "daemon.test"}), "nowhere.test", *APACHE]


def run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def lay_network() -> None:
    """A link where nobody is, with the servers' addresses on it, and a resolv.conf that names our DNS."""
    run("mount", "-t", "tmpfs", "tmpfs", SEAT)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "web", "type", "veth", "peer", "name", "nobody")
    for link in ("web", "nobody"):
        run("ip", "link", "set", link, "up")
    for address in (*APACHE, *NGINX, "192.0.2.55", NOBODY):
        run("ip", "addr", "add", address, "dev", "web", *(["nodad"] if ":" in address else []))
    run("ip", "-6", "route", "add", f"{DROPPED}/128", "dev", "web")
    run("ip", "neigh", "add", DROPPED, "lladdr", "02:00:00:00:00:01", "dev", "web", "nud", "permanent")
    (SEAT / "resolv.conf").write_text("search test\nnameserver 127.0.0.1\n")
    run("mount", "--bind", SEAT / "resolv.conf", "/etc/resolv.conf")


def vhost(name: str, port: int, own: str) -> str:
    where = " ".join(f"{f'[{a}]' if ':' in a else a}:{port}" for a in APACHE)
    pair = "SSLEngine on\nSSLCertificateFile /srv/pair.pem" if port == 443 else ""
    return f"<VirtualHost {where}>\nServerName {name}.test\n{pair}\n{own.format(name=f'{name}.test')}\n</VirtualHost>"


def begin_servers() -> list[subprocess.Popen[bytes]]:
    """Apache and nginx, listening."""
    for folder in ("certbot", "short", "www"):
        (SEAT / folder).mkdir()
    (SEAT / "www/index.html").write_text("<html>" + "x" * 500)
    (SEAT / "short/index.html").write_text("<html>\n")
    (SEAT / "users").write_text("")
    # For another name, and nobody trusts its issuer: a CA does not look at it.
    trustme.CA().issue_cert("old.test").private_key_and_cert_chain_pem.write_to_path(SEAT / "pair.pem")
    lines = ["ServerName x", "PidFile /srv/apache.pid", "ErrorLog /srv/apache.log", "DocumentRoot /srv/www"]
    lines += [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in MODULES]
    lines += ["User www-data", "Group www-data", "DefaultRuntimeDir /srv", parts("apache", DAEMON, "")[""]]
    lines += [f"Listen {f'[{a}]' if ':' in a else a}:{port}" for a in APACHE for port in (80, 443)]
    # mod_md takes the path of a name of its own in every vhost; the authority that it asks is nowhere.
    lines += ["MDStoreDir /srv/md", "MDCertificateAuthority https://ca.test/directory", "MDomain md.test"]
    lines += ["MDCertificateAgreement accepted", "MDContactEmail admin@md.test"]
    lines += [vhost(name, 80, own) for name, own in PLAIN.items()]
    lines += [vhost(name, 443, own) for name, own in SECURE.items()]
    (SEAT / "apache.conf").write_text("\n".join(lines) + "\n")
    (SEAT / "nginx.conf").write_text(NGINX_CONF)
    apache = subprocess.Popen(["apache2", "-d", SEAT, "-f", SEAT / "apache.conf", "-D", "FOREGROUND"])
    nginx = subprocess.Popen(["nginx", "-p", SEAT, "-c", SEAT / "nginx.conf"])
    for name in ("apache", "nginx"):  # written when the config is in force
        machine.wait_until((SEAT / f"{name}.pid").exists, f"{name} to start")
    return [apache, nginx]


async def walk() -> dict[str, dict[str, str] | None]:
    """What the self-check says of each name, and of one where the daemon has every address of port 443."""
    probes: dict[str, str] = {}
    responder = Responder(lambda _: None, lambda *_: None, probes=probes)
    await responder.start([Listener("192.0.2.55", 8055)])
    checker = PathChecker(probes, own=[Listener("192.0.2.55", 80)])
    everywhere = PathChecker(probes, own=[Listener("0.0.0.0", 443), Listener("::", 443)])
    async with serving(ZONE, port=53), asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(checker.check(Identifier(name))) for name in WALKED}
        tasks["everywhere"] = group.create_task(everywhere.check(Identifier("to-https.test")))
    await responder.stop()
    assert probes == {}
    told = {name: task.result() for name, task in tasks.items()}
    return {
        name: {"detail": problem.detail, "hint": problem.hint} if problem else None
        for name, problem in told.items()
    }


def main() -> None:
    lay_network()
    servers = begin_servers()
    print(json.dumps(asyncio.run(walk())))
    for server in servers:
        machine.end(server)


if __name__ == "__main__":
    main()
