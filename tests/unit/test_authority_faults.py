"""An authority that misbehaves over real HTTPS: each gap of the acme library mended, each fault a clear error."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from certfan import pki
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, exchanges, make_account_key
from certfan.errors import AuthorityMalformed, AuthorityRefused, AuthorityUnreachable, ConfigInvalid, Retry
from tests.unit.odd_authority import OddAuthority, problem

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = make_account_key()
CSR = pki.make_csr(pki.make_key(), ["a.example"])


@pytest.fixture
async def acme(ca: OddAuthority) -> AsyncIterator[AcmeAuthority]:
    authority = at(ca, str(ca.ca_file))
    yield authority
    await authority.close()


def at(ca: OddAuthority, ca_file: str | None) -> AcmeAuthority:
    spec = Authority("lab", f"{ca.url}/dir", ca_file=ca_file)
    return AcmeAuthority(spec, account_key_pem=KEY, account_uri=f"{ca.url}/account/1", clock=lambda: NOW)


def on(path: str, make: Callable[[], Any], times: int = 10**6) -> Callable[[str, str], Any]:
    """A twist that answers the first `times` requests for one path."""
    left = [times]

    def twist(_method: str, asked: str) -> Any:
        if asked != path or not left[0]:
            return None
        left[0] -= 1
        return make()

    return twist


# Nonces


async def test_fifteen_refused_nonces_in_a_row_are_no_failure(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Each refusal brings the nonce of the next try, so none is asked for separately."""
    ca.twist = on("/order/1", lambda: problem("badNonce"), times=15)

    await acme.order(f"{ca.url}/order/1")

    assert len(ca.paths()) == 16
    assert len({protected["nonce"] for _, _, protected, _ in ca.seen if protected}) == 16
    assert ca.paths("HEAD") == []


async def test_an_authority_that_refuses_every_nonce_is_given_up(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """Twenty tries, then its own words."""
    ca.twist = on("/order/1", lambda: problem("badNonce"))

    with pytest.raises(AuthorityRefused, match="badNonce"):
        await acme.order(f"{ca.url}/order/1")

    assert len(ca.paths()) == 20


async def test_the_nonce_of_any_error_is_used_for_the_next_request(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """A refused order must not cost a newNonce."""
    ca.twist = on("/newOrder", lambda: problem("rejectedIdentifier", headers={"Replay-Nonce": kept}))
    kept = ca.nonce()

    with pytest.raises(AuthorityRefused):
        await acme.new_order(CSR)
    await acme.order(f"{ca.url}/order/1")

    assert ca.seen[-1][2]["nonce"] == kept
    assert ca.paths("HEAD") == []


async def test_an_answer_without_a_nonce_costs_one_new_nonce(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """A missing or unreadable Replay-Nonce is no error by itself (RFC 8555 section 6.5.1 says: ignore it)."""

    def answer() -> web.Response:
        return web.json_response(ca._order(), headers={"Replay-Nonce": "not base64!"})

    ca.twist = on("/order/1", answer, times=1)

    await acme.order(f"{ca.url}/order/1")
    await acme.order(f"{ca.url}/order/1")

    assert ca.paths("HEAD") == ["/newNonce"]


async def test_a_new_nonce_without_a_nonce_is_malformed(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Nothing can be signed for an authority that gives none."""
    ca.twist = lambda _m, path: (
        web.json_response(
            {n: f"{ca.url}/{n}" for n in ("newNonce", "newAccount", "newOrder")}, headers={"Replay-Nonce": ""}
        )
        if path == "/dir"
        else web.Response(headers={"Replay-Nonce": ""})
    )

    with pytest.raises(AuthorityMalformed, match="gave no valid Replay-Nonce"):
        await acme.order(f"{ca.url}/order/1")


# Refusals


async def test_a_refusal_carries_type_status_text_and_instant(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Retry-After in seconds counts from our clock; subproblems are in the text."""
    sub = {
        "type": "urn:ietf:params:acme:error:rejectedIdentifier",
        "detail": "policy",
        "identifier": {"type": "dns", "value": "a.example"},
    }
    refused = {"detail": "too many", "subproblems": [sub], "headers": {"Retry-After": "90"}}
    ca.twist = on("/newOrder", lambda: problem("rateLimited", 429, **refused))

    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR)

    error = caught.value
    assert (error.type, error.status) == ("urn:ietf:params:acme:error:rateLimited", 429)
    assert error.text == (
        "authority lab refused a new order: rateLimited: too many; a.example rejectedIdentifier: policy"
    )
    assert (error.retry, error.not_before) == (Retry.AT, NOW + timedelta(seconds=90))
    assert error.hint != ""


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
async def test_a_retry_after_date_is_read_as_utc_against_the_authoritys_own_clock(
    ca: OddAuthority, acme: AcmeAuthority, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """60 s stay 60 s in any time zone, and with a clock of ours that is wrong by an hour."""
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    ca.headers = {"Date": "Fri, 20 Nov 2026 13:00:00 GMT", "Retry-After": f"Fri, 20 Nov 2026 13:01:00 {zone}"}

    order = await acme.order(f"{ca.url}/order/1")
    monkeypatch.undo()
    time.tzset()

    assert order.retry_after == timedelta(seconds=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("99999999999999", timedelta(days=7)),
        ("-5", None),
        ("soon", None),
        ("Fri, 20 Nov 2020 13:00:00 GMT", timedelta(0)),
        ("Fri, 99 Nov 2026 13:00:00 GMT", None),
    ],
)
async def test_a_retry_after_is_clamped_or_ignored(
    ca: OddAuthority, acme: AcmeAuthority, text: str, expected: timedelta | None
) -> None:
    """No authority can put us to sleep for a year, or crash us."""
    ca.headers = {"Retry-After": text}

    order = await acme.order(f"{ca.url}/order/1")

    assert order.retry_after == expected


async def test_a_conflict_is_a_refusal_like_any_other(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """The library takes every 409 for an account that exists; `alreadyReplaced` is one too (RFC 9773)."""
    ca.twist = on("/newOrder", lambda: problem("alreadyReplaced", 409, detail="done before"))

    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR, replaces="aki.serial")

    assert (caught.value.type.rpartition(":")[2], caught.value.status) == ("alreadyReplaced", 409)


async def test_a_refusal_is_asked_for_once(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Only a nonce is worth another try; all else would cost rate limit."""
    ca.twist = on("/newOrder", lambda: problem("rejectedIdentifier", 400))

    with pytest.raises(AuthorityRefused):
        await acme.new_order(CSR)

    assert ca.paths() == ["/newOrder"]


async def test_a_long_problem_is_cut_and_holds_no_control_characters(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """What came over the wire goes into logs and terminals."""
    ca.twist = on("/newOrder", lambda: problem("malformed", detail="\x1b[2J\u202e\n" + "x" * 9000))

    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR)

    assert len(caught.value.text) == 500
    assert caught.value.text.isprintable()


@pytest.mark.parametrize("document", [{"detail": 7, "type": []}, {"title": None, "subproblems": [3, {}]}])
async def test_an_odd_problem_document_is_still_a_refusal(
    ca: OddAuthority, acme: AcmeAuthority, document: dict[str, Any]
) -> None:
    """Fields of wrong types are left out."""
    ca.twist = on("/newOrder", lambda: web.json_response(document, status=403))

    with pytest.raises(AuthorityRefused, match="about:blank"):
        await acme.new_order(CSR)


async def test_of_several_link_headers_every_one_counts(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """A plain look-up gives the first one only; the terms to agree to may be in any."""

    def refused() -> web.Response:
        response = problem("userActionRequired", 403)
        response.headers.add("Link", f'<{ca.url}/dir>;rel="index"')
        response.headers.add("Link", '<https://ca.example/terms-2>;rel="terms-of-service"')
        return response

    ca.twist = on("/newOrder", refused)

    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR)

    assert caught.value.hint == "open https://ca.example/terms-2"


# What is no ACME


async def test_html_where_a_problem_should_be_is_malformed_and_keeps_its_retry_after(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """The load balancer before an authority answers like this during maintenance."""
    page = {"text": "<h1>503 Busy</h1>", "content_type": "text/html", "headers": {"Retry-After": "120"}}
    ca.twist = on("/newOrder", lambda: web.Response(status=503, **page))

    with pytest.raises(
        AuthorityMalformed, match=r"HTTP 503 without a problem document: '<h1>503 Busy"
    ) as caught:
        await acme.new_order(CSR)

    assert caught.value.not_before == NOW + timedelta(seconds=120)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "is not JSON"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (gzip.compress(b"{}", mtime=0), "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
async def test_an_order_that_is_no_json_object_is_malformed(
    ca: OddAuthority, acme: AcmeAuthority, body: bytes, reason: str
) -> None:
    """A captive portal, a bomb, or bytes."""
    ca.twist = on("/order/1", lambda: web.Response(body=body, content_type="text/html"))

    with pytest.raises(AuthorityMalformed, match=reason):
        await acme.order(f"{ca.url}/order/1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": ...}, "the order has no status"),
        ({"status": "done"}, "status of the order is wrong: 'done'"),
        ({"status": ["pending"]}, "status of the order is wrong"),
        ({"authorizations": ...}, "the order has no authorizations"),
        ({"authorizations": [None]}, "an authorization of the order is no URL: None"),
        ({"authorizations": ["https://evil.example/authz/1"]}, "of another origin than the directory"),
        ({"finalize": ...}, "finalize of the order is no URL: None"),
        ({"finalize": "http://127.0.0.1/finalize"}, "is not https"),
        ({"finalize": "https://127.0.0.1:notaport/"}, "is no URL"),
        ({"status": "valid"}, "certificate of the order is no URL: None"),
        ({"status": "valid", "certificate": "https://127.0.0.1:1/cert"}, "of another origin"),
        ({"expires": "tomorrow"}, "expires of the order is wrong: 'tomorrow'"),
        ({"expires": "2026-12-01T00:00:00"}, "expires of the order is wrong"),
        ({"expires": 7}, "expires of the order is wrong: 7"),
    ],
)
async def test_a_wrong_field_of_an_order_is_named(
    ca: OddAuthority, acme: AcmeAuthority, change: dict[str, Any], reason: str
) -> None:
    """The exact reason stands in the error."""
    ca.order = change

    with pytest.raises(AuthorityMalformed, match=reason):
        await acme.new_order(CSR)


@pytest.mark.parametrize("token", ["../../etc/passwd", "", "a b", "x" * 129, None, "tökén"])
async def test_a_token_that_could_be_a_path_is_malformed(
    ca: OddAuthority, acme: AcmeAuthority, token: str | None
) -> None:
    """Nothing but base64url ever reaches the responder."""
    ca.authorization = {"challenges": [ca._authorization()["challenges"][0] | {"token": token}]}

    with pytest.raises(AuthorityMalformed, match="token of challenge http-01"):
        await acme.authorization(f"{ca.url}/authz/1")


async def test_an_order_without_a_location_is_malformed(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Without its URL it could never be resumed."""
    ca.twist = on("/newOrder", lambda: web.json_response(ca._order(), status=201))

    with pytest.raises(AuthorityMalformed, match="the Location of the order is no URL"):
        await acme.new_order(CSR)


async def test_a_url_of_another_origin_is_never_asked(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Not even one that the store remembers from an earlier directory; user names in URLs neither."""
    for url in ("https://evil.example/order/1", ca.url.replace("127.", "u@127.") + "/order/1"):
        with pytest.raises(AuthorityMalformed, match="another origin"):
            await acme.order(url)

    assert ca.paths() == []


async def test_a_redirect_is_not_followed(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """A signed request goes where it was signed for."""
    ca.twist = on("/order/1", lambda: web.Response(status=307, headers={"Location": f"{ca.url}/order/2"}))

    with pytest.raises(AuthorityMalformed, match=r"redirects to .*/order/2', which is not followed"):
        await acme.order(f"{ca.url}/order/1")

    assert ca.paths() == ["/order/1"]


async def test_a_body_of_more_than_a_mebibyte_is_cut_off(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """It ends in an error at once, and never wholly in memory; its connection is closed; the next exchange works."""
    gone = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # aiohttp's server writes on and on to a connection that ends
        finally:
            gone.set()

    ca.twist = on("/cert/1", lambda: web.Response(body=endless()), times=1)

    async with asyncio.timeout(10):
        with pytest.raises(AuthorityMalformed, match="longer than 1048576 bytes") as told:
            await acme.certificate(f"{ca.url}/cert/1")
        await gone.wait()  # while the error, and all that it holds on to, still lives

    assert "/cert/1" in told.value.text
    assert await acme.certificate(f"{ca.url}/cert/1") == ca.chain


@pytest.mark.parametrize("spoil", ["text", "key", "empty", "many"])
async def test_a_chain_may_hold_one_to_ten_certificates_and_nothing_else(
    ca: OddAuthority, acme: AcmeAuthority, spoil: str
) -> None:
    """RFC 8555 section 9.1: no key, no prose, no HTML."""
    key = pki.make_key()
    bad = {"text": b"Dear customer\n" + ca.chain, "key": ca.chain + key, "empty": b"", "many": ca.chain * 11}
    ca.chain = bad[spoil]

    with pytest.raises(AuthorityMalformed, match="/cert/1"):
        await acme.certificate(f"{ca.url}/cert/1")


@pytest.mark.parametrize("change", [{"meta": 3}, {"newOrder": "https://evil.example/"}, {"newNonce": None}])
async def test_a_directory_that_points_elsewhere_is_malformed(
    ca: OddAuthority, acme: AcmeAuthority, change: dict[str, Any]
) -> None:
    """Before anything is signed."""
    names = {n: f"{ca.url}/{n}" for n in ("newNonce", "newAccount", "newOrder")}
    ca.twist = on("/dir", lambda: web.json_response({**names, **change}))

    with pytest.raises(AuthorityMalformed, match="directory"):
        await acme.new_order(CSR)

    assert ca.paths() == []


# No answer


async def test_an_exchange_with_a_hung_authority_can_be_cancelled_and_the_next_one_works(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """Cancelling really ends the request, and other exchanges go on meanwhile."""
    hung, gone = asyncio.Event(), asyncio.Event()

    async def hang() -> web.Response:
        hung.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    await ca.stop()
    await ca.start(handler_cancellation=True)
    ca.twist = on("/authz/1", hang)
    task = asyncio.create_task(acme.authorization(f"{ca.url}/authz/1"))
    async with asyncio.timeout(5):
        await hung.wait()
        await acme.order(f"{ca.url}/order/1")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    ca.twist = on("", lambda: None)

    assert (await acme.authorization(f"{ca.url}/authz/1")).status == "pending"


async def test_an_authority_that_does_not_answer_in_time_is_unreachable(
    ca: OddAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patience of one exchange covers all of its requests."""
    monkeypatch.setattr(exchanges, "EXCHANGE_TIMEOUT", 0.2)
    acme = at(ca, str(ca.ca_file))
    ca.twist = on("/order/1", lambda: asyncio.Event().wait())

    with pytest.raises(AuthorityUnreachable, match=f"no answer from 127.0.0.1:{ca.port}: none within"):
        await acme.order(f"{ca.url}/order/1")
    await acme.close()


async def test_a_refused_connection_names_host_and_cause(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """And heals as soon as somebody listens again."""
    await ca.stop()
    with pytest.raises(AuthorityUnreachable) as caught:
        await acme.order(f"{ca.url}/order/1")
    await ca.start()

    assert caught.value.text == f"authority lab: no answer from 127.0.0.1:{ca.port}: connection refused"
    assert (await acme.order(f"{ca.url}/order/1")).status == "pending"


async def test_what_may_have_been_heard_is_told_from_what_cannot(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """A request whose answer is lost went out, one that found no listener did not; and the directory comes before the next."""

    async def drop() -> web.Response:
        ca.drop_idle_connections()
        raise ConnectionResetError

    ca.headers = {"Connection": "close"}
    ca.twist = on("/order/1", drop)
    sent = []
    for listening in (True, False, False):
        if not listening:
            await ca.stop()
        with pytest.raises(AuthorityUnreachable) as caught:
            await acme.order(f"{ca.url}/order/1")
        sent.append(caught.value.was_sent)
    await ca.start()
    before = len(ca.seen)
    ca.twist = on("", lambda: None)
    await acme.order(f"{ca.url}/order/1")

    assert [True, False, False] == sent
    assert "/dir" == ca.seen[before][1]


async def test_an_untrusted_certificate_names_the_setting(ca: OddAuthority) -> None:
    """Verified by the system's store unless ca_file says otherwise."""
    acme = at(ca, None)

    with pytest.raises(AuthorityUnreachable, match="its certificate is not trusted") as caught:
        await acme.order(f"{ca.url}/order/1")
    await acme.close()

    assert "ca_file of authority lab" in caught.value.hint
    assert ca.seen == []


async def test_a_ca_file_that_is_not_there_is_a_config_error(ca: OddAuthority, tmp_path: Path) -> None:
    """Named with its path."""
    acme = at(ca, str(tmp_path / "missing.pem"))

    with pytest.raises(ConfigInvalid, match=r"authority.lab.ca_file: .*missing.pem cannot be read"):
        await acme.order(f"{ca.url}/order/1")


async def test_an_idle_connection_that_died_is_replaced(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """The request that meets it is sent once more, on a new connection."""
    await acme.order(f"{ca.url}/order/1")

    async def drop_after_reading() -> web.Response:
        ca.drop_idle_connections()
        raise ConnectionResetError

    ca.twist = on("/order/1", drop_after_reading, times=1)
    order = await acme.order(f"{ca.url}/order/1")

    assert order.status == "pending"
    assert ca.connections == 2


async def test_a_new_connection_that_dies_is_no_answer(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Only an idle one is forgiven; anything else is for the caller to try again."""

    async def drop() -> web.Response:
        ca.drop_idle_connections()
        raise ConnectionResetError

    ca.headers = {"Connection": "close"}
    ca.twist = on("/order/1", drop)

    with pytest.raises(AuthorityUnreachable, match="the connection was closed"):
        await acme.order(f"{ca.url}/order/1")

    assert ca.paths() == ["/order/1"]


async def test_proxies_of_the_environment_are_not_used(
    ca: OddAuthority, acme: AcmeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set for a shell must not carry our requests elsewhere."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert (await acme.order(f"{ca.url}/order/1")).status == "pending"


async def test_something_that_is_no_https_is_unreachable(ca: OddAuthority) -> None:
    """A plain port behind the directory's URL."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    plain = await asyncio.start_server(greet, "127.0.0.1", 0)
    spec = Authority("lab", f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}/dir")
    acme = AcmeAuthority(spec, account_key_pem=KEY, account_uri=None, clock=lambda: NOW)

    with pytest.raises(AuthorityUnreachable):
        await acme.register()
    await acme.close()
    plain.close()
    await plain.wait_closed()


# Many at once


async def test_many_tasks_share_one_authority_while_nonces_are_refused(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """No nonce is ever used twice, and every exchange gets its own answer."""
    count = [0]

    def every_third(_method: str, path: str) -> web.Response | None:
        count[0] += 1
        return problem("badNonce") if path.startswith("/order") and count[0] % 3 == 0 else None

    ca.twist = every_third
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(acme.new_order(CSR)) for _ in range(40)]
        looks = [tasks.create_task(acme.authorization(f"{ca.url}/authz/1")) for _ in range(40)]

    nonces = [protected["nonce"] for _, _, protected, _ in ca.seen if protected]
    assert len(nonces) == len(set(nonces))
    assert {task.result().url for task in started} == {f"{ca.url}/order/1"}
    assert {task.result().url for task in looks} == {f"{ca.url}/authz/1"}
    assert ca.paths("GET") == ["/dir"]


async def test_the_library_never_logs_what_it_signs(
    ca: OddAuthority, acme: AcmeAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even in a process whose root logger is at DEBUG."""
    logging.getLogger("acme").setLevel(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    again = at(ca, str(ca.ca_file))

    await again.order(f"{ca.url}/order/1")
    await again.close()

    assert [record for record in caplog.records if record.name.startswith("acme")] == []
