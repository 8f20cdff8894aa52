"""What is said on the channel: round trips, and strictness."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from certfan.core.model import Deployment, DeploymentState, Endpoint, Health, Problem, Proof
from certfan.errors import MessageInvalid
from certfan.protocol.messages import (
    AssignmentMessage,
    Assignments,
    BundleMessage,
    EnrolReply,
    EnrolRequest,
    Report,
)
from certfan.protocol.wire import Message, decode

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
FINGERPRINT = "ab" * 32
PROBLEM = Problem("service.reload_failed", "apache2 is dead", "run: journalctl -u apache2", NOW, "last line")
DEPLOYMENT = Deployment("www.example.org", "web1", 3, DeploymentState.FAILED, NOW, PROBLEM)
PROOF = Proof(
    Endpoint("apache2", "tls", "2001:db8::1", 443, "www.example.org"),
    Health.SERVED,
    NOW,
    fingerprint=FINGERPRINT,
    not_before=NOW - timedelta(days=1),
    not_after=NOW + timedelta(days=90),
)
REPORT = Report.of(
    [DEPLOYMENT], [("www.example.org", PROOF)], boot_id="b", sequence=4, sent_at=NOW, version="0.1.0"
)
ASSIGNMENTS = Assignments(
    revision="e.1",
    consumer="web1",
    assignments=(
        AssignmentMessage(
            certificate="www.example.org", generation=0, identifiers=("www.example.org",), fingerprint=""
        ),
    ),
)
MESSAGES: list[Message] = [
    REPORT,
    ASSIGNMENTS,
    EnrolRequest(token="t", csr="c"),
    EnrolReply(certificate="c", ca="a", fleet="home", consumer="web1"),
    BundleMessage.of({"cert.pem": b"\0\xff"}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    """Encoded and decoded, it is the same."""
    assert decode(type(message), message.encode()) == message


def test_nouns_survive_the_wire() -> None:
    """Deployments and proofs come out as they went in; whose they are, and when heard, is the listener's word."""
    heard = decode(Report, REPORT.encode())

    assert heard.deployments[0].value("web1") == DEPLOYMENT
    assert (heard.proofs[0].certificate, heard.proofs[0].value()) == ("www.example.org", PROOF)
    assert heard.proofs[0].value(NOW).heard_at == NOW


def test_files_survive_the_wire() -> None:
    """Bytes come out as they went in, empty ones too."""
    files = {"privkey.pem": b"\0\n\xff", "chain.pem": b""}

    assert decode(BundleMessage, BundleMessage.of(files).encode()).contents() == files


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_an_unknown_field_is_dropped_and_named(message: Message) -> None:
    """A newer peer's field changes nothing, and whoever decodes hears of it."""
    named: list[str] = []
    found = decode(
        type(message), json.dumps(json.loads(message.encode()) | {"surplus": 1}).encode(), named.append
    )

    assert (found, named) == (message, [f"{type(message).__name__}.surplus"])


def test_unknown_fields_of_inner_messages_are_dropped_too() -> None:
    """In a list, below an optional field, holding anything: each is named by its way, without numbers."""
    document = json.loads(REPORT.encode())
    document["deployments"][0]["problem"]["more"] = {"a": [1, {"b": None}]}
    document["proofs"][0]["more"] = document["also"] = None
    named: list[str] = []
    found = decode(Report, json.dumps(document).encode(), named.append)

    assert found == REPORT
    assert sorted(named) == ["Report.also", "Report.deployments.problem.more", "Report.proofs.more"]


def test_an_unknown_field_excuses_nothing() -> None:
    """What is wrong beside it is refused, and the wrong field is the one that is named."""
    data = REPORT.encode().replace(b'"sequence":4', b'"more":1,"sequence":"x"')
    with pytest.raises(MessageInvalid, match="sequence"):
        decode(Report, data)


@pytest.mark.parametrize(
    "odd", [b'"more":1' + b"0" * 5000, b'"proofs":[{"more":1}],"proofs":[]', b'"more":NaN', b'"a":1,"a":2']
)
def test_json_that_two_parsers_read_otherwise_is_refused_or_understood(odd: bytes) -> None:
    """Long numbers, keys twice, NaN: never a foreign exception, never another report."""
    try:
        found = decode(Report, b'{"more":1,' + odd + b"," + REPORT.encode()[1:])
    except MessageInvalid as error:
        assert "malformed" in error.text
    else:
        assert found == REPORT


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_cut_message_is_refused(message: Message, cut: int) -> None:
    """Half a message is none."""
    with pytest.raises(MessageInvalid):
        decode(type(message), message.encode()[:cut])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sequence",), "4"),
        (("sequence",), -1),
        (("sequence",), True),
        (("sent_at",), "2026-11-22T12:00:00"),
        (("sent_at",), 1),
        (("boot_id",), "b" * 257),
        (("deployments", 0, "certificate"), "../x"),
        (("deployments", 0, "generation"), 0),
        (("deployments", 0, "state"), "fine"),
        (("deployments", 0, "problem", "detail"), "x" * 4097),
        (("proofs", 0, "port"), 0),
        (("proofs", 0, "address"), "localhost"),
        (("proofs", 0, "fingerprint"), "AB" * 32),
        (("proofs", 0, "fingerprint"), FINGERPRINT + "\n"),
        (("proofs", 0, "health"), None),
    ],
)
def test_a_wrong_value_is_refused_and_named(place: tuple[Any, ...], value: object) -> None:
    """Strict: no coercion, no naive instant, no name that could be a path; the text says where."""
    document = json.loads(REPORT.encode())
    target = document
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value

    with pytest.raises(MessageInvalid, match=r"\.".join(str(step) for step in place)):
        decode(Report, json.dumps(document).encode())


def test_instants_of_any_offset_become_utc() -> None:
    """What a peer writes in its own zone is the same instant here."""
    there = NOW.astimezone(timezone(timedelta(hours=5)))
    heard = decode(
        Report,
        REPORT.encode().replace(
            b'"sent_at":"2026-11-22T12:00:00.123456Z"',
            json.dumps({"sent_at": there.isoformat()})[1:-1].encode(),
        ),
    )

    assert (heard.sent_at, heard.sent_at.tzinfo) == (NOW, UTC)


def test_a_long_text_of_ours_is_cut_not_refused() -> None:
    """A service that says a lot must not keep its agent from reporting; the end of an output matters most."""
    problem = Problem("x", "d" * 9999, output="o" * 99999 + "end")
    deployment = Deployment("a.example", "web1", 1, DeploymentState.FAILED, NOW, problem)
    report = Report.of([deployment], [], boot_id="b", sequence=1, sent_at=NOW, version="1")

    heard = decode(Report, report.encode()).deployments[0].value("web1").problem
    assert heard is not None
    assert (len(heard.detail), heard.output[-3:]) == (4096, "end")


def test_a_secret_shows_in_no_repr_and_no_error() -> None:
    """Logs and tracebacks hold neither token nor key."""
    secret = "s3cr3t" * 30
    with pytest.raises(MessageInvalid) as caught:
        decode(EnrolRequest, json.dumps({"token": secret, "csr": ""}).encode())

    shown = repr(caught.value) + repr(caught.value.__cause__) + repr(EnrolRequest(token="s3cr3t", csr=""))
    assert "s3cr3t" not in shown
    assert "key" not in repr(BundleMessage.of({"privkey.pem": b"key"})).replace("privkey", "")


def test_a_file_that_is_not_base64_is_refused() -> None:
    """Strict base64: no white space, no other alphabet."""
    for text in ("A", "AA=", "QU JD", "QUJD\n", "QU_JD", "ä"):
        with pytest.raises(MessageInvalid, match="base64"):
            BundleMessage(files={"cert.pem": text}).contents()
