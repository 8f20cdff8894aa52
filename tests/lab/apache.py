"""Apache on web1 as the story has it: two macros, vhosts with an IPv4 and a bracketed IPv6 address, HSTS."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certfan.cli.snippets import parts
from tests.lab import machine
from tests.lab.dns import SPARE_NAMES

_HSTS = "max-age=31536000; includeSubDomains"
_VHOSTS = """\
<VirtualHost 10.61.0.20:80 [fd61::20]:80>
    ServerName {names}
    {proxy}
    Use le_sslredir
</VirtualHost>
<VirtualHost 10.61.0.20:443 [fd61::20]:443>
    ServerName {names}
    {proxy}
    SSLEngine on
    SSLHonorCipherOrder on
    SSLCertificateFile {live}/fullchain.pem
    SSLCertificateKeyFile {live}/privkey.pem
    Use le_hsts
    DocumentRoot /var/www/html
</VirtualHost>
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A vhost on both ports and in both families; `certificate` is the name below live/."""

    name: str
    certificate: str = "example.test"
    aliases: tuple[str, ...] = ()
    forwards: bool = True


SITES = (
    Site("example.test"),
    Site("www.example.test"),
    Site("v6.example.test"),
    *(Site(f"{name}.example.test") for name in SPARE_NAMES),
    Site("broken.example.test", forwards=False),
)


def configure(
    root: Path,
    sites: Sequence[Site] = SITES,
    *,
    live: str = "/etc/certfan/live",
    responder: str = "cert.int:8055",
) -> None:
    """Write macros and vhosts into a VM's root; Apache starts once every site's pair is in `live`."""
    etc = root / "etc/apache2"
    (etc / "conf-available/certfan.conf").write_text(parts("apache", responder, _HSTS)[""])
    (etc / "sites-available/farm.conf").write_text("".join(vhosts(site, live) for site in sites))
    (etc / "conf-available/servername.conf").write_text("ServerName web1.int\n")
    for argv in (
        ["a2enmod", "-q", "ssl", "macro", "proxy", "proxy_http", "rewrite", "headers"],
        ["a2enconf", "-q", "certfan", "servername"],
        ["a2dissite", "-q", "000-default"],
        ["a2ensite", "-q", "farm"],
    ):
        machine.run(["chroot", str(root), *argv])


def vhosts(site: Site, live: str = "/etc/certfan/live") -> str:
    """Return a site's text; it has no meaning without the macros that `configure` lays."""
    names = site.name + "".join(f"\n    ServerAlias {alias}" for alias in site.aliases)
    proxy = "Use le_proxy" if site.forwards else "# this one forgot the macro"
    return _VHOSTS.format(names=names, proxy=proxy, live=f"{live}/{site.certificate}")
