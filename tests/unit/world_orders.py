"""What the daemon of the small fake world does at authorities, and what must hold there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from certfan.core import issuance, plan
from certfan.core.issuance import AuthorizationStatus, Issuance
from certfan.core.keys import key_to_reuse
from certfan.core.ledger import Spend, SpendKind
from certfan.core.model import (
    Certificate,
    Desired,
    Generation,
    Health,
    KeyType,
    Leftover,
    PathCheck,
    Problem,
)
from certfan.core.renewal import renewal_info
from certfan.core.room import BEGUN, free_places
from certfan.core.subjects import order_subject, subject_of
from tests.unit.world_authority import LIMITS, Ca, Spent, most_in_a_window, until_free
from tests.unit.world_parts import (
    ASK_MODEL,
    DAY,
    HOUR,
    LIFETIME,
    ORDER_MODEL,
    PROBE_INTERVAL,
    SHORT_MODEL,
    Daemon,
    Failure,
    Task,
    Work,
    must,
)

CAP = 1
STANDING_STILL = timedelta(seconds=5)
FALLBACK_AFTER = 12 * HOUR
REUSE = 40 * DAY
MINUTE = timedelta(minutes=1)
PATIENCE = {
    plan.Issue: ORDER_MODEL,
    plan.Revoke: ORDER_MODEL,
    plan.TidyOrders: ORDER_MODEL,
    plan.RollAccountKey: ORDER_MODEL,
    plan.AskRenewal: ASK_MODEL,
    plan.CheckPath: SHORT_MODEL,
    plan.Publish: SHORT_MODEL,
}


class AtAuthorities:
    """A part of the world. Its checks keep books of their own; a clock that jumped begins them anew."""

    now: datetime
    true: datetime
    trusted: bool
    desired: Desired
    daemon: Daemon
    cas: dict[str, Ca]
    tasks: list[Task]
    blocked: set[str]
    earliest: dict[str, datetime]
    failures: Counter[str]
    done: Counter[str]

    def __init__(self) -> None:
        self.given_up: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.known: dict[str, list[Spent]] = {name: [] for name in self.cas}  # what the daemon knows of
        self.failing_since: dict[str, datetime | None] = {}
        self.ask_from: dict[tuple[str, int], datetime] = {}
        self.dice = random.Random(0)
        self.key_count = 0
        self.moved: dict[str, datetime] = {}  # by the tries of this process

    def forget_time(self) -> None:
        """Begin the books anew: nobody can say any more what is due when."""
        self.earliest.clear()
        self.failing_since = dict.fromkeys(self.failing_since)  # until it succeeds
        self.ask_from.clear()
        for known in self.known.values():
            known.clear()

    def at_authority(self, step: plan.Step) -> Work | None:
        """Return how a step is carried out, if it is one at an authority, after a look whether it may be begun."""
        match step:
            case plan.Issue():
                self._check_issue(step)
                self.moved.pop(step.certificate, None)
                return self._issue(step, self.desired.certificates[step.certificate])
            case plan.AskRenewal(name, number):
                self._check_ask(name, number)
                return self._ask_renewal(name, number)
            case plan.CheckPath(identifier):
                return self._look_at_path(identifier)
            case plan.Revoke(name, number, expired=is_expired):
                self._check_revoke(name, number, is_expired=is_expired)
                return self._revoke(name, number, is_expired=is_expired)
            case plan.GiveUpOrder(name):
                must(name not in self.wanted, "only an order that nobody wants is given up")
                return self._give_up(name)
            case plan.TidyOrders(authority):
                return self._tidy(authority)
            case plan.RollAccountKey(authority):
                must(not self._moving_at(authority), "an account key is changed while no order gets further")
                return self._roll_account_key(authority)
        return None

    def succeeded(self, *subjects: str) -> None:
        for subject in subjects:
            self.daemon.attempts.pop(subject, None)
            self.earliest.pop(subject, None)
            self.failing_since.pop(subject, None)
            self.failures.pop(subject, None)

    def order_subjects(self, name: str) -> Iterator[str]:
        certificate = self.desired.certificates[name]
        return (order_subject(certificate, authority) for authority in self.cas)

    def lifts(self, step: plan.Step, code: str) -> Iterator[datetime]:
        """Yield what may free a step that failed with `code`."""
        daemon = self.daemon
        match step:
            case plan.Issue(name, _, authority):
                yield from (at for facts in (daemon.asked, daemon.changed) if (at := facts.get(name)))
                if code == "authority.unreachable" and authority in daemon.answered:
                    yield daemon.answered[authority]
                if code == "challenge.failed":
                    checks = (daemon.checks.get(i.value) for i in self.desired.certificates[name].identifiers)
                    yield from (c.mended_at for c in checks if c is not None and c.mended_at is not None)
            case plan.Publish(name):
                yield from (at for facts in (daemon.asked, daemon.changed) if (at := facts.get(name)))
            case plan.Revoke(name, number):
                yield daemon.revocations[name, number].asked_at

    # Orders

    def _orders_at(self, authority: str) -> list[str]:
        steps = (task.step for task in self.tasks)
        return [s.certificate for s in steps if isinstance(s, plan.Issue) and s.authority == authority]

    def _moving_at(self, authority: str) -> list[str]:
        """Return whose orders count there: all but those that stand still."""
        still = {n for n, at in self.moved.items() if not at <= self.now < at + STANDING_STILL}
        return [name for name in self._orders_at(authority) if name not in still]

    def _moves_at(self, authority: str) -> list[datetime]:
        """Return when each order that has a place there last got further."""
        return [self.moved[name] for name in self._orders_at(authority) if name in self.moved]

    def _check_issue(self, step: plan.Issue) -> None:
        name, authority = step.certificate, step.authority
        there, certificate = self._moving_at(authority), self.desired.certificates[name]
        must(len(there) < BEGUN * CAP, "an authority's cap holds")
        others = (self.desired.certificates[other] for other in self._orders_at(authority))
        must(
            all(other.identifiers != certificate.identifiers for other in others),
            "no two orders for the same names are under way",
        )
        if self._is_troubled(name, authority):
            troubled = sum(self._is_troubled(other, authority) for other in there)
            must(troubled < max(CAP // 2, 1), "what is in trouble takes half of the places")
        rolling = (task.step for task in self.tasks if isinstance(task.step, plan.RollAccountKey))
        must(authority not in {one.authority for one in rolling}, "no order begins under a key that changes")
        self.done["Issue.fallback"] += authority != certificate.authority
        self.done["Issue.exempt"] += step.exempt
        self.done["Issue.in_doubt"] += not self.trusted
        self.done[f"Issue.{step.reason}"] += 1
        self._check_where(step, certificate)
        self._check_path_first(step, certificate)
        self._check_reason(step)

    def _is_troubled(self, name: str, authority: str) -> bool:
        return order_subject(self.desired.certificates[name], authority) in self.daemon.attempts

    def _goes_on(self, step: plan.Issue, certificate: Certificate) -> Issuance | None:
        begun = self.daemon.open.get(step.certificate)
        if begun is None or begun.authority != step.authority or begun.order_url is None:
            return None
        return begun if begun.identifiers == certificate.identifiers else None

    def _check_where(self, step: plan.Issue, certificate: Certificate) -> None:
        if step.authority == certificate.authority:
            return
        must(step.authority in certificate.fallback, "only its authorities are asked")
        begun = self.daemon.open.get(step.certificate)
        if begun is not None and begun.authority == step.authority:
            return
        patience = FALLBACK_AFTER
        if known := self.daemon.generations.get(step.certificate):
            left = known[-1].not_after - 7 * DAY - self.now
            patience = min(patience, max(left / 2, timedelta(0)))
        ledger = self.observed().ledgers.get(certificate.authority)
        if ledger and (held := ledger.held(frozenset(map(str, certificate.identifiers)), self.now)):
            self.done["Issue.limited"] += held.until > self.now + patience
            if held.until > self.now + patience:
                return
        must(step.certificate in self.daemon.attempts, "a fallback is asked when the first has failed")
        since = self.failing_since.get(step.certificate)
        if since is None:  # the clock jumped since
            return
        patience = FALLBACK_AFTER
        if known := self.daemon.generations.get(step.certificate):
            left = known[-1].not_after - 7 * DAY - since
            patience = min(patience, max(left / 2, timedelta(0)))
        must(self.now >= since + patience, "a fallback is asked when the first has failed for long")

    def _check_path_first(self, step: plan.Issue, certificate: Certificate) -> None:
        begun = self._goes_on(step, certificate)
        if begun is not None and begun.answered:
            return
        for identifier in certificate.identifiers:
            check = self.daemon.checks.get(identifier.value)
            good = check is not None and check.problem is None
            must(
                good and check is not None and check.at <= self.now < check.at + 10 * MINUTE,
                "nothing is ordered before our own check has passed",
            )

    def _check_reason(self, step: plan.Issue) -> None:
        name, daemon = step.certificate, self.daemon
        generations = daemon.generations.get(name, ())
        if not generations:
            return
        newest, asked, info = generations[-1], daemon.asked.get(name), daemon.renewals.get(name)
        is_inside = info is not None and info.number == newest.number and info.start <= self.now < info.end
        must(
            not step.exempt or (is_inside and newest.authority == step.authority),
            "only a renewal inside the window of its authority is exempt",
        )
        if name in daemon.open:
            return
        must(
            newest.identifiers != frozenset(self.desired.certificates[name].identifiers)
            or self.is_spent(newest)
            or (asked is not None and asked > newest.issued_at)
            or (self.trusted and self.now >= self._due(newest)),
            f"nothing is ordered without a reason: {name}",
        )

    def _due(self, newest: Generation) -> datetime:
        """A pair that was rolled back to keeps half of what it had left, unless its deadline (7 d) is before that."""
        due = newest.not_before + LIFETIME * 2 / 3
        info = self.daemon.renewals.get(newest.certificate)
        if info is not None and info.number == newest.number and info.start < info.end:
            due = info.chosen if info.chosen <= newest.not_after else due
        if newest.copy_of is None:
            return due
        half = newest.issued_at + (newest.not_after - newest.issued_at) / 2
        return max(due, min(half, newest.not_after - 7 * DAY))

    def spent_keys(self, name: str) -> set[str]:
        """Return the keys of what is revoked, or is to be."""
        ended = self.daemon.revoked | self.daemon.revocations.keys()
        known = self.daemon.generations.get(name, ())
        return {g.key for g in known if (name, g.number) in ended}

    def is_spent(self, generation: Generation) -> bool:
        return generation.key in self.spent_keys(generation.certificate)

    def _begin(self, step: plan.Issue) -> bool:
        """Have an open try with a key that may be used; False when there was one."""
        name, daemon, certificate = step.certificate, self.daemon, self.desired.certificates[step.certificate]
        spent, generations = self.spent_keys(name), daemon.generations.get(name, ())
        begun = daemon.open.get(name)
        if begun is not None:
            is_good = begun.identifiers == certificate.identifiers
            is_good = is_good and daemon.keys[name, begun.generation] not in spent
            if is_good and begun.authority == step.authority:
                return False
            must(
                not is_good or self._is_troubled(name, begun.authority),
                "an open order is given up only when its authority is in trouble",
            )
            self.drop_order(name)
        number = 1 + max((g.number for g in generations), default=0)
        while daemon.keys.get((name, number)) in spent:
            number += 1
        if (name, number) not in daemon.keys:
            earlier = key_to_reuse(certificate, generations, spent, self.now)
            self.key_count += 1
            daemon.keys[name, number] = earlier.key if earlier is not None else f"key {self.key_count}"
        must(daemon.keys[name, number] not in spent, "a key that is or is to be revoked is never used again")
        replaces = self._predecessor(step, certificate)
        daemon.open[name] = Issuance(
            name,
            number,
            step.authority,
            certificate.identifiers,
            self.now,
            replaces=replaces,
            exempt=step.exempt and replaces is not None,
        )
        return True

    def _predecessor(self, step: plan.Issue, certificate: Certificate) -> str | None:
        known = self.daemon.generations.get(step.certificate, ())
        if not known or known[-1].authority != step.authority or known[-1].not_after <= self.now:
            return None
        newest = known[-1]
        is_revoked = (newest.certificate, newest.number) in self.daemon.revoked
        shares = newest.identifiers & frozenset(certificate.identifiers)
        return newest.fingerprint if shares and not is_revoked else None

    def _issue(self, step: plan.Issue, planned: Certificate) -> Work:  # noqa: C901 - one move a case
        name, ca, daemon = step.certificate, self.cas[step.authority], self.daemon
        if self._begin(step):
            yield None
        while not free_places(CAP, self._moves_at(step.authority), self.now):
            yield self.now + timedelta(seconds=1)
        # Not what the limits were asked about: begun as exempt, or for other names, as the config has changed since.
        excused = daemon.open[name].exempt or daemon.open[name].identifiers != planned.identifiers
        self.moved[name] = self.now
        order = last = None
        seen: dict[str, issuance.AuthorizationSeen] = {}
        while True:
            begun = daemon.open[name]
            move = issuance.next_move(begun, order, seen, self.now)
            if not isinstance(move, issuance.Wait):
                ca.must_answer()
            try:
                match move:
                    case issuance.NewOrder():
                        yield from self._new_order(ca, begun, excused=excused)
                    case issuance.LookAtOrder(url):
                        order = ca.seen(url)
                        if last is None or last.status is not order.status:
                            self.moved[name] = self.now
                        seen, last = dict(issuance.kept(last, order, seen)), order
                    case issuance.LookAtAuthorization(url):
                        seen[url] = ca.authorization(url)
                    case issuance.Answer(_, challenge):
                        ca.answer(challenge.url)
                        yield None
                        daemon.open[name] = replace(begun, answered=begun.answered | {challenge.url})
                    case issuance.Wait(until):
                        must(until > self.now, "a wait is in the future")
                        order = None
                        yield until
                    case issuance.Finalize():
                        assert begun.order_url is not None
                        ca.finalize(begun.order_url, daemon.keys[name, begun.generation])
                        order = None
                    case issuance.Download():
                        yield None
                        self._record_generation(ca, begun, excused=excused)
                        return
                    case issuance.StartOver() | issuance.GiveUp():
                        refused = [a for a in seen.values() if a.status is AuthorizationStatus.INVALID]
                        self.drop_order(name, failed=bool(refused))
                        raise Failure("challenge.failed")
            except Failure as failure:
                if failure.kind == "orderNotReady":
                    order = None
                    continue
                if failure.kind == "gone":
                    self.drop_order(name)
                raise
            yield None

    def _new_order(self, ca: Ca, begun: Issuance, *, excused: bool) -> Work:
        name, names = begun.certificate, frozenset(begun.identifiers)
        if not excused:
            held = until_free(
                self.known[ca.name], names, self.true, same_set=self._is_same_set(begun, ca.name)
            )
            must(held is None, f"nothing is ordered beyond a limit that is known: {name} {held}")
        try:
            url = ca.new_order(begun)
        except Failure as failure:
            self.done[f"NewOrder.{failure.kind}"] += 1
            if failure.kind != "alreadyReplaced":
                raise
            self.daemon.open[name] = replace(begun, replaces=None, exempt=False)
            return
        self.lost[name] += 1
        yield None
        self.lost[name] -= 1
        self._record_order(ca, begun, url, excused=excused)

    def _record_order(self, ca: Ca, begun: Issuance, url: str, *, excused: bool) -> None:
        daemon = self.daemon
        daemon.open[begun.certificate] = replace(begun, order_url=url)
        daemon.leftovers = [left for left in daemon.leftovers if left.order_url != url]
        if url not in ca.recorded:
            ca.recorded.add(url)
            self._count(SpendKind.ORDER, ca.name, begun, excused=excused)

    def _is_same_set(self, begun: Issuance, authority: str) -> bool:
        earlier = (
            g
            for g in self.daemon.generations.get(begun.certificate, ())
            if g.authority == authority and g.number < begun.generation
        )
        return any(g.identifiers == frozenset(begun.identifiers) for g in earlier)

    def _count(self, kind: SpendKind, authority: str, begun: Issuance, *, excused: bool) -> None:
        """Count as the store does, and in our own book."""
        same_set, names = self._is_same_set(begun, authority), frozenset(begun.identifiers)
        rows = self.daemon.spends.setdefault(authority, [])
        rows[:] = [replace(row, at=min(row.at, self.now)) for row in rows if row.at >= self.now - 30 * DAY]
        rows.append(Spend(kind, self.now, frozenset(map(str, names)), begun.exempt, same_set))
        if excused:
            return
        known = self.known[authority]
        known.append(Spent(kind, self.true, names, same_set))
        if kind is SpendKind.ORDER and LIMITS.orders is not None:
            new = [one.at for one in known if one.kind is kind and not one.same_set]
            must(most_in_a_window(new, LIMITS.orders) <= LIMITS.orders.count, "no window has too many orders")
        if kind is SpendKind.CERTIFICATE and LIMITS.certificates_per_set is not None:
            limit = LIMITS.certificates_per_set
            alike = [one.at for one in known if one.kind is kind and one.names == names]
            must(
                most_in_a_window(alike, limit) <= limit.count, "no window has too many certificates of a set"
            )

    def drop_order(self, name: str, *, failed: bool = False) -> None:
        begun = self.daemon.open.pop(name)
        if failed:
            self._count(SpendKind.FAILURE, begun.authority, begun, excused=begun.exempt)
        if begun.order_url is not None:
            self.given_up[name] += 1
            self.daemon.leftovers.append(Leftover(begun.order_url, begun.authority, self.now))

    def _record_generation(self, ca: Ca, begun: Issuance, *, excused: bool) -> None:
        name, daemon = begun.certificate, self.daemon
        assert begun.order_url is not None
        if ca.order(begun.order_url).key != daemon.keys[name, begun.generation]:
            self.drop_order(name)  # the order was given to two of us
            raise Failure("pki.pair_mismatch")
        generation = Generation(
            name,
            begun.generation,
            fingerprint=f"{name}@{begun.generation}",
            serial="01",
            identifiers=frozenset(begun.identifiers),
            key_type=KeyType.ECDSA_P256,
            authority=ca.name,
            not_before=self.true,
            not_after=self.true + LIFETIME,
            issued_at=self.now,
            key=daemon.keys[name, begun.generation],
        )
        before = daemon.generations.get(name, ())
        must(all(g.number < generation.number for g in before), "numbers only grow")
        ca.issue(generation, ca.order(begun.order_url))
        self._count(SpendKind.CERTIFICATE, ca.name, begun, excused=excused)
        daemon.generations[name] = (*before, generation)
        self.ask_from[name, begun.generation] = self.now + 6 * HOUR
        daemon.open.pop(name)
        self.succeeded(*self.order_subjects(name))

    # When to renew

    def _check_ask(self, name: str, number: int) -> None:
        newest = self.daemon.generations[name][-1]
        must(number == newest.number, "only the newest is asked about")
        must(self.now < newest.not_after, "nothing that has expired is asked about")
        must(self.now >= self.ask_from.get((name, number), self.now), "the authority is asked when it said")

    def _ask_renewal(self, name: str, number: int) -> Work:
        yield None
        daemon = self.daemon
        generation = next(g for g in daemon.generations[name] if g.number == number)
        ca = self.cas[generation.authority]
        ca.must_answer()
        window, before = ca.window(generation.fingerprint), daemon.renewals.get(name)
        info = renewal_info(generation, window, before, self.now, dice=self.dice.random())
        if before is not None and (before.number, before.start, before.end) == (number, info.start, info.end):
            must(before.chosen == info.chosen, "an instant is chosen once in a window")
        must(MINUTE <= info.ask_again_at - self.now <= DAY, "a Retry-After is clamped")
        must(
            info.start >= info.end or info.start <= info.chosen <= info.end,
            "an instant lies in its window",
        )
        daemon.renewals[name] = info
        self.ask_from[name, number] = info.ask_again_at
        self.succeeded(subject_of(plan.AskRenewal(name, number), self.desired))

    # Our own check

    def _look_at_path(self, identifier: str) -> Work:
        yield None
        problem = Problem("challenge.self_check_failed", "no") if identifier in self.blocked else None
        self.done["CheckPath.failed"] += problem is not None
        before = self.daemon.checks.get(identifier)
        turned = before is not None and (before.problem is None) != (problem is None)
        mended_at = before.mended_at if before is not None else None
        self.daemon.checks[identifier] = PathCheck(
            at=self.now,
            problem=problem,
            failures=(before.failures if before is not None else 0) + 1 if problem else 0,
            mended_at=self.now if turned and problem is None else mended_at,
        )
        self.succeeded(subject_of(plan.CheckPath(identifier), self.desired))

    # Revoking

    def _check_revoke(self, name: str, number: int, *, is_expired: bool) -> None:
        wish = self.daemon.revocations.get((name, number))
        must(wish is not None, "nothing is revoked that nobody asked for")
        issued = {g.number: g for g in self.daemon.generations[name]}
        must(is_expired == (issued[number].not_after <= self.now), "only what has expired is not asked for")
        if wish is None or wish.at_once or is_expired:
            return
        newer = {g.fingerprint for g in issued.values() if g.number > number and g.key != issued[number].key}
        for consumer in self.desired.certificates[name].consumers:
            proofs = self.daemon.proofs.get((name, consumer), ())
            for proof in proofs:
                heard_at = proof.heard_at
                is_fresh = heard_at is not None and self.now < heard_at + 2 * PROBE_INTERVAL
                is_newer = proof.health is Health.SERVED and proof.fingerprint in newer
                must(is_fresh and is_newer, "nothing is revoked before every endpoint proves a successor")
            must(bool(proofs), "nothing is revoked before every consumer proves a successor")

    def _revoke(self, name: str, number: int, *, is_expired: bool) -> Work:
        yield None
        generation = next(g for g in self.daemon.generations[name] if g.number == number)
        if is_expired:
            self.done["Revoke.expired"] += 1
        else:
            ca = self.cas[generation.authority]
            ca.must_answer()
            ca.revoked.add(generation.fingerprint)
            self.done[
                f"Revoke.{'at_once' if self.daemon.revocations[name, number].at_once else 'proven'}"
            ] += 1
        yield None
        same = [g for g in self.daemon.generations[name] if g.fingerprint == generation.fingerprint]
        self.daemon.revoked |= {(name, g.number) for g in same}
        self.daemon.revocations.pop((name, number), None)
        self.succeeded(subject_of(plan.Revoke(name, number), self.desired))

    # Our account

    def _give_up(self, name: str) -> Work:
        yield None
        self.done["GiveUpOrder.done"] += 1
        self.drop_order(name)

    def _tidy(self, authority: str) -> Work:
        yield None
        ca = self.cas[authority]
        ca.must_answer()
        while left := next((one for one in self.daemon.leftovers if one.authority == authority), None):
            ca.deactivate(left.order_url)
            self.daemon.leftovers.remove(left)
            yield None
        self.succeeded(subject_of(plan.TidyOrders(authority), self.desired))

    def _roll_account_key(self, authority: str) -> Work:
        yield None
        ca = self.cas[authority]
        ca.must_answer()
        if ca.keeps_key:
            raise Failure("authority.refused")
        yield None
        self.daemon.rollovers.discard(authority)
        self.done["RollAccountKey.done"] += 1
        self.succeeded(subject_of(plan.RollAccountKey(authority), self.desired))
