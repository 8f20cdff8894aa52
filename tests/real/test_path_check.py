"""The self-check through real Apache and nginx, over both families, from the system's resolv.conf to ports 80 and 443."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.lab import machine
from tests.real.path_place import APACHE, WALKED

MISSING = machine.capabilities() or tuple(
    f"{one} is not installed"
    for one in ("apache2", "nginx")
    if not shutil.which(one, path="/usr/sbin:/usr/bin")
)
pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))]

PROBE = "/.well-known/acme-challenge/<probe>"
GOOD = ("good", "macro-sslredir", "macro-closed", "macro-rewrite", "to-https", "to-other", "ten", "n-good")
# How what is told of each name begins, after the name, and what its hint says.
BAD = {
    "six-nobody": (
        f"answers over IPv4 but not over IPv6 [2001:db8::99]: http://six-nobody.test{PROBE} at 2001:db8::99 refuses",
        "let the web server listen on [2001:db8::99]:80",
    ),
    "six-dropped": (
        f"answers over IPv4 but not over IPv6 [2001:db8:9::1]: http://six-dropped.test{PROBE} at 2001:db8:9::1 does not "
        "take the connection in time",
        "or remove that AAAA record",
    ),
    "md": (f"http://md.test{PROBE} at {APACHE[0]} answers 404: ", "let the MDomain"),
    "alias": (f"http://alias.test{PROBE} at {APACHE[0]} answers 404: ", "Use le_proxy"),
    "page": (f"http://page.test{PROBE} at {APACHE[0]} answers 200 with more than 128 bytes", "Use le_proxy"),
    "short-page": (f"http://short-page.test{PROBE} at {APACHE[0]} answers 200 with 7 bytes", "Use le_proxy"),
    "https-page": (
        f"hop 2, https://https-page.test{PROBE} at {APACHE[0]} answers 200 with more",
        "Use le_proxy",
    ),
    "closed": (f"http://closed.test{PROBE} at {APACHE[0]} answers 401: authentication", "last in the vhost"),
    "denied": (
        f"http://denied.test{PROBE} at {APACHE[0]} answers 403: authentication",
        "Require all granted",
    ),
    "no-daemon": (f"http://no-daemon.test{PROBE} at {APACHE[0]} answers 503: it forwards", "[http01] listen"),
    "see-other": (f"http://see-other.test{PROBE} at {APACHE[0]} answers 303, where", "Use le_proxy"),
    "loop": (
        f"http://loop.test{PROBE} at {APACHE[0]} redirects to http://loop.test{PROBE}, where this check has been",
        "except /.well-known/acme-challenge/ from the redirects",
    ),
    "circle": (
        f"hop 2, https://circle.test{PROBE} at {APACHE[0]} redirects to http://circle.test{PROBE}, where",
        "except /.well-known/acme-challenge/ from the redirects",
    ),
    "eleven": (
        f"hop 11, http://eleven.test/10/<probe> at {APACHE[0]} redirects to http://eleven.test/11/<probe>, the 11th",
        "except /.well-known/acme-challenge/ from the redirects",
    ),
    "no-slash": (
        f"http://no-slash.test{PROBE} at {APACHE[0]} redirects to http://no-slash.test.well-known/acme-challenge/<probe>: a slash",
        "with a slash at its end",
    ),
    "to-inside": (
        f"hop 2, http://inside.test{PROBE} at 127.0.0.1 is where a redirect leads",
        "mend the address",
    ),
    "to-daemon": (
        f"hop 2, http://daemon.test{PROBE} at 192.0.2.55 is where a redirect leads",
        "not redirect to it",
    ),
    "to-nowhere": (
        f"hop 2, https://nowhere.test{PROBE} has no address: nowhere.test does not",
        "dig nowhere.test",
    ),
    "n-dots": (f"http://n-dots.test{PROBE} at 192.0.2.81 answers 403: authentication or a deny", "curl -vkL"),
    "n-https": (f"hop 2, https://n-https.test{PROBE} at 192.0.2.81 refuses", "listen on 192.0.2.81:443"),
    "bogus": (
        f"http://bogus.test{PROBE} has no address: the resolver answers SERVFAIL",
        "dig +cd bogus.test",
    ),
    "bare": (
        f"http://bare.test{PROBE} has no address: bare.test has neither an A nor an AAAA",
        "dig bare.test A",
    ),
    "nowhere": (
        f"http://nowhere.test{PROBE} has no address: nowhere.test does not exist",
        "dig nowhere.test",
    ),
}


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, str] | None]:
    """What was said of each name, in namespaces that are gone by now."""
    room = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
    ]
    argv = [*room, sys.executable, "-m", "tests.real.path_place"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", GOOD)
def test_a_path_that_a_ca_can_walk_is_good(told: dict[str, dict[str, str] | None], name: str) -> None:
    """With our macros whatever else the vhost has; over https by a foreign certificate; after ten redirects."""
    assert told[f"{name}.test"] is None


@pytest.mark.parametrize("address", APACHE)
def test_an_address_is_walked_to_the_vhost_that_answers_for_it(
    told: dict[str, dict[str, str] | None], address: str
) -> None:
    """As a CA does for an IP identifier."""
    assert told[address] is None


@pytest.mark.parametrize("name", BAD)
def test_the_hop_that_fails_is_named_with_its_cause_and_what_to_do(
    told: dict[str, dict[str, str] | None], name: str
) -> None:
    """Each fault of a real server is told from all others."""
    problem = told[f"{name}.test"]

    assert problem is not None
    assert problem["detail"].startswith(f"{name}.test: {BAD[name][0]}")
    assert BAD[name][1] in problem["hint"]


def test_a_family_that_this_machine_has_no_route_to_is_not_judged(
    told: dict[str, dict[str, str] | None],
) -> None:
    """A daemon on a machine without IPv6 still renews a name with both."""
    assert told["six-no-route.test"] is None


def test_a_listener_on_every_address_is_never_a_redirects_target(
    told: dict[str, dict[str, str] | None],
) -> None:
    """All addresses of this machine are the daemon's own then."""
    problem = told["everywhere"]

    assert problem is not None
    assert "at 192.0.2.80 is where a redirect leads, and the daemon itself listens there" in problem["detail"]


def test_no_name_is_walked_for_nothing() -> None:
    """Every name of the place is in a test above."""
    tested = {f"{name}.test" for name in (*GOOD, *BAD, "six-no-route")} | set(APACHE)

    assert tested == set(WALKED)
