"""What certfan relies on of a certificate authority, held against real ones and against the one that tests make misbehave."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import pki
from certfan.core.issuance import AuthorizationStatus, ChallengeStatus, OrderStatus
from certfan.daemon.authority import make_account_key
from certfan.errors import AuthorityMalformed, AuthorityRefused
from tests.lab.authorities import EXTERNAL, KEY, NAMES, POLL, SERVERS, CaddyServer, Rig, lacking, now
from tests.lab.faulty.records import Window
from tests.lab.pebble import BLOCKED

pytestmark = pytest.mark.real

ERROR = "urn:ietf:params:acme:error:"
every = pytest.mark.parametrize("server", ["pebble", "faulty", "caddy"])
complete = pytest.mark.parametrize("server", ["pebble", "faulty"])


@pytest.fixture
def nonce_reject() -> int:
    return 0


@pytest.fixture
def external() -> bool:
    return False


@pytest.fixture
async def rig(tmp_path: Path, server: str, nonce_reject: int, external: bool) -> AsyncIterator[Rig]:
    """One CA of its own for each test, without an account."""
    if reason := lacking(server):
        pytest.skip(reason)
    rig = Rig(SERVERS[server](tmp_path, nonce_reject, external))
    async with rig.up():
        yield rig


# Accounts


@every
async def test_the_account_of_a_key_is_the_same_at_every_registration(rig: Rig) -> None:
    """A lost answer to newAccount costs nothing."""
    first = await rig.acme.register()
    second = await rig.acme.register()

    assert first == second


@every
async def test_an_account_is_used_by_its_url_and_nothing_is_looked_up(rig: Rig) -> None:
    """Two keys have two accounts; a later start orders at once."""
    uri = await rig.acme.register()
    async with rig.other(KEY, uri) as later:
        order = await later.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))
    async with rig.other(make_account_key()) as somebody:
        another = await somebody.register()

    assert order.status is OrderStatus.PENDING
    assert uri != another


@every
async def test_an_account_is_found_only_when_the_key_has_one(rig: Rig) -> None:
    """Looking makes none."""
    before = await rig.acme.find_account()
    still = await rig.acme.find_account()
    uri = await rig.acme.register()

    assert [before, still, await rig.acme.find_account()] == [None, None, uri]


@complete
async def test_an_account_takes_the_contacts_of_the_config(rig: Rig) -> None:
    """And says by its type which one it does not take."""
    uri = await rig.acme.register()
    async with rig.other(KEY, uri, contact=("mailto:other@example.org",)) as good:
        await good.update_contacts()

    async with rig.other(KEY, uri, contact=("tel:+431234567",)) as bad:
        with pytest.raises(AuthorityRefused) as caught:
            await bad.update_contacts()

    assert caught.value.type == f"{ERROR}unsupportedContact"
    assert caught.value.hint == "correct contact of the authority"


@complete
@pytest.mark.parametrize("external", [True])
async def test_only_customers_get_an_account_where_the_authority_wants_so(rig: Rig, tmp_path: Path) -> None:
    """Told before anything is sent; a wrong MAC key is refused, the right one binds."""
    kid, key = EXTERNAL
    right, wrong = tmp_path / "right.key", tmp_path / "wrong.key"
    for path, text in ((right, key), (wrong, key.swapcase())):
        path.touch(mode=0o600)
        path.write_text(text)

    with pytest.raises(AuthorityRefused, match="external account binding"):
        await rig.acme.register()
    async with rig.other(eab_kid=kid, eab_key_file=str(wrong)) as stranger:
        with pytest.raises(AuthorityRefused, match="unauthorized"):
            await stranger.register()
    async with rig.other(eab_kid=kid, eab_key_file=str(right)) as customer:
        uris = [await customer.register(), await customer.register()]

    assert await rig.acme.find_account() == uris[0] == uris[1]


@complete
@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_an_account_goes_on_with_another_key_and_the_former_one_has_none(rig: Rig, kind: str) -> None:
    """The same client proves names with it; a key that is another account's is not taken."""
    uri = await rig.acme.register()
    new, taken = pki.make_key(kind), make_account_key()
    async with rig.other(taken) as somebody:
        await somebody.register()

    await rig.acme.change_key(new)
    await rig.issue(NAMES[0])
    async with rig.other(KEY) as former, rig.other(new) as current:
        found = [await former.find_account(), await current.find_account()]
    with pytest.raises(AuthorityRefused):
        await rig.acme.change_key(taken)

    assert found == [None, uri]
    assert await rig.acme.find_account() == uri


# Orders


@every
@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:]], ids=["one name", "two names"])
async def test_an_order_becomes_a_chain_that_ends_in_the_authoritys_root(rig: Rig, names: list[str]) -> None:
    """Key, names, dates and root fit; each name was asked for at its own vhost."""
    await rig.acme.register()

    pair = await rig.issue(*names)

    roots = await rig.server.roots_pem()
    leaf = pki.verify_chain(pair.fullchain_pem, names=names, now=now(), roots_pem=roots)
    assert leaf.names == tuple(names)
    assert {place.split()[0].split(":")[0] for place in rig.places} == set(names)
    assert rig.acme.server_date is not None


@complete
async def test_a_hundred_names_come_in_one_certificate(rig: Rig) -> None:
    """The most that any public authority takes."""
    await rig.acme.register()
    names = [f"n{number}.example.test" for number in range(100)]

    pair = await rig.issue(*names)

    assert pair.leaf.names == tuple(sorted(names))


@complete
async def test_addresses_of_both_families_are_certified_with_a_profile_that_allows_them(rig: Rig) -> None:
    """RFC 8738, beside a DNS name."""
    await rig.acme.register()

    pair = await rig.issue("127.0.0.1", "::1", NAMES[0], profile="shortlived")

    assert set(pair.leaf.names) == {"127.0.0.1", "::1", NAMES[0]}
    assert pair.leaf.not_after - now() < timedelta(days=7)


@complete
async def test_a_profile_that_is_not_advertised_is_refused_before_anything_is_ordered(rig: Rig) -> None:
    """The names that it could have been are in the hint."""
    await rig.acme.register()

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES), profile="gold")

    assert caught.value.type == f"{ERROR}invalidProfile"
    assert caught.value.status == 0
    assert "shortlived" in caught.value.hint


@complete
async def test_a_blocked_name_is_refused_by_its_type(rig: Rig) -> None:
    """With the name in the text and a hint what to do."""
    await rig.acme.register()

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), ["ok.example.test", f"www.{BLOCKED}"]))

    assert caught.value.type == f"{ERROR}rejectedIdentifier"
    assert f"www.{BLOCKED}" in caught.value.text
    assert caught.value.hint == "remove the name, or choose another authority for it"


@every
async def test_a_wildcard_is_offered_no_http_challenge(rig: Rig) -> None:
    """So a certificate for one fails with a clear reason and not at the validation."""
    await rig.acme.register()

    try:
        order = await rig.acme.new_order(pki.make_csr(pki.make_key(), ["*.example.test"]))
        authorization = await rig.acme.authorization(order.authorizations[0])
    except AuthorityRefused as refused:
        kinds = {refused.type}
    else:
        kinds = {challenge.kind for challenge in authorization.challenges}
        assert authorization.wildcard

    assert "http-01" not in kinds


@complete
async def test_a_name_that_was_proven_need_not_be_proven_again(rig: Rig) -> None:
    """An order for it is ready at once, and no token is fetched."""
    await rig.acme.register()
    await rig.issue(NAMES[0])
    rig.places.clear()

    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))
    await rig.issue(NAMES[0])

    assert order.status is OrderStatus.READY
    assert rig.places == set()


@every
async def test_an_order_that_is_not_ready_is_not_finalized(rig: Rig) -> None:
    """It stays what it is, and is finished afterwards."""
    await rig.acme.register()
    key = pki.make_key()
    csr = pki.make_csr(key, NAMES[:1])
    order = await rig.acme.new_order(csr)

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.finalize(order.finalize, csr, order_url=order.url)
    assert (await rig.acme.order(order.url)).status is OrderStatus.PENDING
    pair = await rig.finish(order, key, csr)

    assert caught.value.type == f"{ERROR}orderNotReady"
    assert pair.leaf.names == NAMES[:1]


@complete
async def test_a_finalized_order_is_processing_until_it_is_valid(rig: Rig) -> None:
    """Its certificate is there only then, and a second finalize is refused."""
    await rig.acme.register()
    csr = pki.make_csr(pki.make_key(), NAMES[:1])
    order = await rig.acme.new_order(csr)
    await rig.ready(order)

    seen = [await rig.acme.finalize(order.finalize, csr, order_url=order.url)]
    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.finalize(order.finalize, csr, order_url=order.url)
    while seen[-1].status is OrderStatus.PROCESSING:
        await asyncio.sleep(POLL)
        seen.append(await rig.acme.order(order.url))

    assert seen[0].status is OrderStatus.PROCESSING
    assert seen[0].certificate is None
    assert seen[-1].certificate is not None
    assert caught.value.type == f"{ERROR}orderNotReady"


@every
async def test_a_request_for_other_names_is_refused(rig: Rig) -> None:
    """At finalize, for a ready order."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))
    await rig.ready(order)

    with pytest.raises(AuthorityRefused, match="refused to finalize") as caught:
        await rig.acme.finalize(order.finalize, pki.make_csr(pki.make_key(), NAMES[1:]), order_url=order.url)

    assert 400 <= caught.value.status < 500


@every
async def test_an_order_that_never_was_is_told_from_an_authority_that_is_away(rig: Rig) -> None:
    """Pebble says 404 and nothing more, the others give a problem document."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))

    with pytest.raises((AuthorityRefused, AuthorityMalformed)):
        await rig.acme.order(order.url.rpartition("/")[0] + "/99999999")


@every
async def test_a_challenge_that_is_answered_wrongly_is_invalid_and_says_why(rig: Rig) -> None:
    """Authorization and order are invalid too, except Caddy's, which stay pending for ever."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))
    challenge = await rig.challenge(order.authorizations[0])
    rig.tokens[challenge.token] = challenge.token + ".somebody-elses"
    await rig.acme.answer(challenge.url)

    while challenge.status in {ChallengeStatus.PENDING, ChallengeStatus.PROCESSING}:
        await asyncio.sleep(POLL)
        challenge = await rig.challenge(order.authorizations[0])

    authorization = await rig.acme.authorization(order.authorizations[0])
    order = await rig.acme.order(order.url)
    assert challenge.status is ChallengeStatus.INVALID
    assert challenge.problem is not None
    if not isinstance(rig.server, CaddyServer):
        assert authorization.status is AuthorizationStatus.INVALID
        assert order.status is OrderStatus.INVALID


@complete
async def test_an_authorization_that_is_given_up_cannot_be_proven_any_more(rig: Rig) -> None:
    """Which is what an abandoned order leaves behind."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))

    await rig.acme.deactivate(order.authorizations[0])

    seen = await rig.acme.authorization(order.authorizations[0])
    assert seen.status is AuthorizationStatus.DEACTIVATED
    assert (await rig.acme.order(order.url)).status is OrderStatus.INVALID


# Certificates


@complete
async def test_the_alternate_chain_of_a_root_is_found_by_its_name(rig: Rig) -> None:
    """Both chains are for the same leaf; an unknown name gives the default."""
    await rig.acme.register()
    key = pki.make_key()
    csr = pki.make_csr(key, NAMES[:1])
    order = await rig.acme.new_order(csr)
    default = await rig.finish(order, key, csr)
    url = (await rig.acme.order(order.url)).certificate
    assert url is not None
    roots = [pki.top_names(root.encode()) for root in _pems(await rig.server.roots_pem())]

    chains = [await rig.acme.certificate(url, issuer=next(iter(names))) for names in roots]
    unknown = await rig.acme.certificate(url, issuer="no such root")

    assert len(set(chains)) == len(roots) == 2
    assert {pki.read_leaf(chain).fingerprint for chain in chains} == {default.leaf.fingerprint}
    assert all(names & pki.top_names(chain) for names, chain in zip(roots, chains, strict=True))
    assert unknown == default.fullchain_pem


@complete
async def test_a_certificate_is_revoked_by_its_account_or_by_its_own_key(rig: Rig) -> None:
    """Each once in effect, however often it is asked for; by nobody else."""
    await rig.acme.register()
    ours, lost = await rig.issue(NAMES[0]), await rig.issue(NAMES[1])
    kept = await rig.issue(NAMES[2])

    for _ in range(2):
        await rig.acme.revoke(ours.leaf.der, 4)
    async with rig.other(make_account_key()) as stranger:
        await stranger.register()
        with pytest.raises(AuthorityRefused):
            await stranger.revoke(kept.leaf.der, 1)
        with pytest.raises(AuthorityRefused):
            await stranger.revoke(kept.leaf.der, 1, key_pem=pki.make_key())
        for _ in range(2):
            await stranger.revoke(lost.leaf.der, 1, key_pem=lost.key_pem)

    assert [await rig.server.revoked(pair) for pair in (ours, lost, kept)] == [4, 1, None]


@complete
async def test_an_order_says_what_it_replaces_and_a_second_one_is_told_so(rig: Rig) -> None:
    """HTTP 409 alreadyReplaced; without `replaces` the same order is taken."""
    await rig.acme.register()
    old = await rig.issue(NAMES[0])
    cert_id = pki.renewal_id(old.cert_pem)
    await rig.issue(NAMES[0], replaces=cert_id)

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]), replaces=cert_id)
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), NAMES[:1]))

    assert (caught.value.type, caught.value.status) == (f"{ERROR}alreadyReplaced", 409)
    assert order.status in {OrderStatus.PENDING, OrderStatus.READY}


@complete
async def test_the_window_of_a_renewal_lies_in_the_certificates_life_and_moves_as_told(rig: Rig) -> None:
    """Asked for by the certificate alone (RFC 9773); with a Retry-After and a reason."""
    await rig.acme.register()
    pair = await rig.issue(NAMES[0])
    cert_id = pki.renewal_id(pair.cert_pem)
    assert cert_id is not None
    first = await rig.acme.renewal_info(cert_id)
    start, end = ((now() - timedelta(hours=hours)).replace(microsecond=0) for hours in (2, 1))

    await rig.server.set_window(pair, Window(start, end, "https://ca.example.test/why"))

    moved = await rig.acme.renewal_info(cert_id)
    assert first is not None
    assert moved is not None
    assert pair.leaf.not_before < first.start < first.end < pair.leaf.not_after
    assert first.retry_after is not None
    assert (moved.start, moved.end) == (start, end)
    assert moved.explanation_url == "https://ca.example.test/why"


# What goes wrong


@complete
@pytest.mark.parametrize(("nonce_reject", "orders"), [(5, 20), (15, 20), (50, 200)])
async def test_every_order_succeeds_however_many_nonces_are_refused(
    rig: Rig, orders: int, say: Callable[[str], None]
) -> None:
    """The library alone retries once, and loses a quarter of its orders at 25 %."""
    await rig.acme.register()

    pairs, restarts = await rig.issue_all([f"n{number}.example.test" for number in range(orders)], at_once=8)
    say(f"{len(pairs)} of {orders} orders, Pebble started anew {restarts} times")

    assert len({pair.leaf.serial for pair in pairs}) == orders


def _pems(joined: bytes) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in joined.decode().split(end) if part.strip()]
