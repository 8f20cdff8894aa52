"""Logs are facts with names, and never hold key material."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certfan import log, systemd

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


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("shape", ["{pem}", "it was {body} here", '{{"kty": "EC", "d": "{body:.40}"}}'])
def test_json_that_holds_a_key_loses_it(name: str, shape: str) -> None:
    """What is encoded already is looked through as it stands; what holds none comes back as the very same bytes."""
    pem = KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    body = "".join(pem.splitlines()[1:-1]).replace("+", "-").replace("/", "_") if "kty" in shape else ""
    body = body or "".join(pem.splitlines()[1:-1])
    told = json.dumps({"a": [{"detail": shape.format(pem=pem, body=body)}]}).encode()

    cleaned = log.redact_json(told)

    assert body[5:40] not in cleaned.decode().replace("\\n", "")
    assert log.REDACTED in json.loads(cleaned)["a"][0]["detail"]
    assert log.redact_json(clean := b'{"detail": "nothing here"}') is clean


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_private_member_of_a_jwk_is_removed_from_a_text(quote: str) -> None:
    """As JSON writes it, and as Python prints it; what stands beside it stays."""
    text = f"{{'kty': 'EC', 'd': '{'Q' * 40}'}} was sent".replace("'", quote)

    assert text.replace("Q" * 40, log.REDACTED) == log.redact(text)


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


def test_what_a_library_warns_of_is_a_line_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name is the room; keys in its text or its traceback are removed, and the remote receiver gets it too."""
    pem = KEYS["ecdsa"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    out, sent = io.StringIO(), []
    log.set_up(stream=out, remote=lambda event: sent.append(dict(event)))
    library = logging.getLogger("some.library")

    library.info("nobody wants to know")
    library.warning("it broke: %s", pem)
    try:
        raise ValueError(pem)
    except ValueError:
        library.exception("again")
    library.log(45, "%d", "no number")
    log.set_up()

    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert ["warning", "error", "error"] == [line["level"] for line in told]
    assert {("some.library", "library.warned")} == {(line["room"], line["event"]) for line in told}
    assert ["it broke: " + log.REDACTED, "again", "%d"] == [line["detail"].strip() for line in told]
    assert "ValueError" in told[1]["exception"]
    assert pem.splitlines()[1] not in out.getvalue()
    assert [line["detail"] for line in told] == [event["detail"] for event in sent]
    assert "" == capsys.readouterr().err


def test_the_journal_gets_each_fact_as_a_field(tmp_path: Path) -> None:
    """The line as ever, its level as priority, every fact under a name of its own, lines in it unharmed."""
    place = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(place)
        facts = {
            "event": "order.failed",
            "generation": "www.example.org@7",
            "took-s": 0.8,
            "output": "a\nb=c",
            "last": [{"name": "run.began"}],
        }
        taken = systemd.tell_journal("order.failed ...", "warning", facts, to=place)
        heard = journal.recv(4096)

    assert taken
    assert heard == (
        b"MESSAGE=order.failed ...\nPRIORITY=4\nSYSLOG_IDENTIFIER=certfan\nCERTFAN_EVENT=order.failed\n"
        b"CERTFAN_GENERATION=www.example.org@7\nCERTFAN_TOOK_S=0.8\n"
        b"CERTFAN_OUTPUT\n\x05\0\0\0\0\0\0\0a\nb=c\n"
        b'CERTFAN_LAST=[{"name": "run.began"}]\n'
    )


def test_a_journal_that_was_started_anew_is_told_like_the_one_before(tmp_path: Path) -> None:
    """The socket that tells it is kept, and bound to none of them."""
    heard = []
    for line in ("before", "after"):
        place = tmp_path / "journal"
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.bind(str(place))
            assert systemd.tell_journal(line, "info", {}, to=str(place))
            heard.append(journal.recv(4096).splitlines()[0])

    assert [b"MESSAGE=before", b"MESSAGE=after"] == heard


def test_what_the_journal_does_not_take_goes_to_stderr(tmp_path: Path) -> None:
    """Nobody there, or far too long: the caller is told, and nothing is waited for."""
    place = str(tmp_path / "journal")
    nobody = systemd.tell_journal("line", "info", {}, to=place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(place)
        long = systemd.tell_journal("x" * (16 << 20), "info", {}, to=place)

    assert (nobody, long) == (False, False)


def test_stderr_is_the_journal_only_if_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """JOURNAL_STREAM must name the very file that stderr is: one that was inherited through a pipe does not."""
    with open(os.devnull, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        there = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        same = systemd.logs_to_journal()
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:1")
        other = systemd.logs_to_journal()

    assert (same, other) == (True, False)
