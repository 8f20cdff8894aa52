"""Callers, TLS contexts and the enrolment line."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest

from certfan import pki
from certfan.errors import EnrolmentRefused, NotAuthenticated
from certfan.protocol.identity import (
    Caller,
    ca_hash,
    client_context,
    consumer_of,
    make_line,
    parse_line,
)

NOW = datetime.now(UTC)
CA = pki.InternalCA.create("home", NOW)
TOKEN = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("address", ["192.0.2.1:8057", "[2001:db8::1]:8057", "cert.int:1"])
def test_a_line_survives_being_pasted(address: str) -> None:
    """Address, token and hash come out, whatever white space came along; IPv6 in brackets."""
    line = parse_line(f"  {make_line(address, TOKEN, CA.cert_pem)}\n")

    assert (line.address, line.token, line.ca_hash) == (address, TOKEN, ca_hash(CA.cert_pem))


def test_every_cut_of_a_line_is_refused() -> None:
    """A terminal that loses characters does not get half an enrolment."""
    line = make_line("192.0.2.1:8057", TOKEN, CA.cert_pem)
    for cut in range(len(line)):
        for part in (line[:cut], line[cut + 1 :]):
            with pytest.raises(EnrolmentRefused, match="malformed"):
                parse_line(part)


@pytest.mark.parametrize(
    "address", ["192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1", "2001:db8::1:8057", "a/b:1", "a b:1"]
)
def test_a_line_with_a_wrong_address_is_refused(address: str) -> None:
    """Nothing of a line reaches a URL unless it is host and port."""
    with pytest.raises(EnrolmentRefused):
        parse_line(f"certfan1:{address}:{TOKEN}:{ca_hash(CA.cert_pem)}")


def test_a_token_shows_in_no_repr_and_no_error() -> None:
    """A line that is refused may still hold a token that works."""
    assert TOKEN not in repr(parse_line(make_line("h:1", TOKEN, CA.cert_pem)))
    with pytest.raises(EnrolmentRefused) as caught:
        parse_line(f"certfan1:h:1:{TOKEN}:short")
    assert TOKEN not in repr(caught.value)


def test_the_caller_is_who_the_certificate_names() -> None:
    """Fleet, consumer and serial as the store spells it."""
    _, leaf = CA.issue_consumer(pki.make_csr(pki.make_key(), []), "web1", NOW)

    assert consumer_of(leaf.der) == Caller("home", "web1", leaf.serial)


@pytest.mark.parametrize(
    "shown", [None, b"", b"garbage", CA.issue_server(NOW).leaf.der, CA.issue_signer(NOW).leaf.der]
)
def test_nobody_else_is_a_caller(shown: bytes | None) -> None:
    """No certificate, a broken one, the daemon's own and the signer's are nobody."""
    with pytest.raises(NotAuthenticated):
        consumer_of(shown)


def test_a_client_believes_the_pinned_ca_alone() -> None:
    """TLS 1.3, one anchor, the name is checked; without a CA nobody is believed to be anyone."""
    context = client_context(CA.cert_pem)

    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.cert_store_stats()["x509"] == 1
    assert client_context(None).verify_mode == ssl.CERT_NONE
