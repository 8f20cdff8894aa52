"""What a process shares of TLS."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from certfan import pki, tls
from certfan.errors import ChainInvalid, ConfigInvalid


def test_the_systems_roots_are_those_that_openssl_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once, and again when the file has changed: a daemon lives longer than a list of roots."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"first")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    first, again = tls.system_roots_pem(), tls.system_roots_pem()
    bundle.write_bytes(b"second")
    os.utime(bundle, ns=(1, 1))

    assert first is again
    assert (first, tls.system_roots_pem()) == (b"first", b"second")


def test_the_roots_of_this_machine_anchor_no_stranger() -> None:
    """The real bundle is read, whatever odd roots it holds."""
    chain = trustme.CA().issue_cert("a.example.org").cert_chain_pems[0].bytes()

    with pytest.raises(ChainInvalid, match="ends in none of the roots"):
        pki.verify_chain(
            chain, names=["a.example.org"], now=datetime.now(UTC), roots_pem=tls.system_roots_pem()
        )


def test_a_machine_without_roots_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never an empty list, which would refuse every chain without a reason."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(tls.ssl, "get_default_verify_paths", lambda: _Nothing)
    monkeypatch.setattr(tls, "BUNDLE", tmp_path / "missing.pem")

    with pytest.raises(ConfigInvalid, match=r"missing.pem cannot be read: No such file") as caught:
        tls.system_roots_pem()

    assert caught.value.hint == "run: apt install ca-certificates"


class _Nothing:
    cafile = None
