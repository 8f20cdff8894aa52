"""Logs are facts with names, and never hold key material."""

from __future__ import annotations

import io
import json

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certfan import log

KEYS = {
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("shape", ["pem", "bytes", "body", "nested", "traceback"])
def test_a_private_key_in_any_shape_is_removed(name: str, shape: str) -> None:
    """PEM, bytes, bare base64, nested fields and tracebacks all lose the key."""
    pem = KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    body = "".join(pem.decode().splitlines()[1:-1])
    out = io.StringIO()
    log.set_up(level="debug", stream=out)
    logger = log.get("test")

    match shape:
        case "pem":
            logger.info("key.leaked", detail=pem.decode())
        case "bytes":
            logger.info("key.leaked", detail=pem)
        case "body":
            logger.info("key.leaked", detail=f"it was {body} here")
        case "nested":
            logger.info("key.leaked", detail={"a": [{"b": pem.decode()}]})
        case _:
            try:
                raise ValueError(pem.decode())
            except ValueError:
                logger.exception("key.leaked")

    assert body[40:80] not in out.getvalue().replace("\\n", "")
    assert log.REDACTED in out.getvalue()


def test_an_event_is_one_json_line_with_its_facts() -> None:
    """Details are fields, never woven into the text."""
    out = io.StringIO()
    log.set_up(stream=out)

    log.get("share").info("generation.published", generation="www.example.org@7", took=0.8)

    line = json.loads(out.getvalue())
    assert (line["event"], line["room"], line["generation"], line["took"]) == (
        "generation.published",
        "share",
        "www.example.org@7",
        0.8,
    )


def test_a_certificate_may_be_logged() -> None:
    """The net catches keys only; a chain is public."""
    text = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUE\n-----END CERTIFICATE-----"

    assert text == log.redact(text)


def test_a_logger_taken_before_the_set_up_is_covered_by_it() -> None:
    """Modules take their logger when they are imported; it is redacted and written as JSON all the same."""
    structlog.reset_defaults()
    early = log.get("early")
    out = io.StringIO()

    log.set_up(stream=out)
    early.info("key.leaked", token="s3cret")

    told = json.loads(out.getvalue())
    assert {"room": "early", "event": "key.leaked", "token": log.REDACTED}.items() <= told.items()
