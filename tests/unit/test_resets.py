"""Which machines were reset, together or alone: from what agents say of their boots and what our own runs know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from certfan.agent.record import Record
from certfan.cli.lines.page import reset_lines
from certfan.core.model import Consumer, Desired
from certfan.core.resets import LONGEST_UP, OURS, Boot, Reset, booted_at, resets
from certfan.daemon.status.model import as_json
from certfan.daemon.status.view import view
from certfan.daemon.store import Store
from certfan.protocol.messages import Report
from certfan.protocol.wire import decode
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW
from tests.unit.status_parts import NOW as PAGE_NOW
from tests.unit.status_parts import things

VMS = ("web1", "web2", "mail1")


def boot(
    machine: str, at: datetime, *, reset: bool | None = True, heard: datetime = NOW, ident: str = ""
) -> Boot:
    return Boot(
        machine=machine, boot_id=ident or f"{machine} {at}", booted_at=at, heard_at=heard, reset=reset
    )


def long_up(*machines: str, until: datetime = NOW) -> list[Boot]:
    return [boot(one, NOW - 3 * DAY, reset=None, heard=until) for one in machines]


def test_a_host_that_was_reset_takes_every_machine_along() -> None:
    """They come up one after the other; none of them was heard of again in the boot before."""
    before = long_up(*VMS, until=NOW - 2 * HOUR)
    after = [boot(one, NOW - HOUR + n * MINUTE) for n, one in enumerate(VMS)]

    reset = Reset(at=NOW - HOUR, daemon=False, consumers=tuple(sorted(VMS)), machines=3, all_together=True)
    assert (reset,) == resets(before + after)


def test_one_machine_alone_leaves_the_host_out_of_it() -> None:
    """And two of three, while the third went on, are some."""
    alone = [*long_up("web2", "mail1"), boot("web1", NOW - HOUR)]
    some = [*long_up("mail1"), boot("web1", NOW - HOUR), boot("web2", NOW - HOUR + MINUTE)]

    assert [(("web1",), False)] == [(one.consumers, one.all_together) for one in resets(alone)]
    assert [(("web1", "web2"), False)] == [(one.consumers, one.all_together) for one in resets(some)]


def test_a_machine_that_is_off_for_long_does_not_speak_for_the_host() -> None:
    """Nobody has heard of it since, so nobody knows that it stayed up."""
    off = long_up("web2", until=NOW - 2 * DAY)
    found = resets([*off, boot("web1", NOW - HOUR), boot("mail1", NOW - HOUR)])

    assert [True] == [one.all_together for one in found]


def test_a_shutdown_and_what_nobody_knows_is_no_reset() -> None:
    """An admin who reboots has told the machine before."""
    assert () == resets([boot("web1", NOW - HOUR, reset=False), boot("web2", NOW - HOUR, reset=None)])


def test_resets_apart_are_several_and_the_newest_comes_first() -> None:
    """One machine twice within minutes, and again much later."""
    times = (NOW - 5 * HOUR, NOW - 5 * HOUR + 2 * MINUTE, NOW - HOUR)

    assert tuple(reversed(times)) == tuple(one.at for one in resets(boot("web1", at) for at in times))


def test_a_consumer_on_the_daemons_machine_is_no_other_machine() -> None:
    """The same boot, told by an agent and by our runs; either may know that it was a reset."""
    ours = boot(OURS, NOW - HOUR, ident="b")
    theirs = boot("mail1", NOW - HOUR + MINUTE, ident="b", reset=None)

    (found,) = resets([ours, theirs])
    assert (True, ("mail1",), 1, False) == (found.daemon, found.consumers, found.machines, found.all_together)
    assert [(True, ())] == [(one.daemon, one.consumers) for one in resets([ours])]


def test_another_machines_clock_moves_no_boot() -> None:
    """Only the span between its own two instants counts; absurd ones are bounded, whatever was sent."""
    wrong = NOW + 700 * DAY

    assert NOW - HOUR == booted_at(NOW, wrong, wrong - HOUR)
    assert NOW == booted_at(NOW, NOW, NOW + HOUR)
    far = datetime.max.replace(tzinfo=NOW.tzinfo), datetime.min.replace(tzinfo=NOW.tzinfo)
    assert NOW - LONGEST_UP == booted_at(NOW, *far)


def test_an_agent_knows_whether_the_boot_before_had_an_end(tmp_path: Path) -> None:
    """First life: nobody knows; a restart of the agent alone changes nothing; a stop in good order is no reset."""
    assert None is Record(tmp_path).begin_boot("one")
    again = Record(tmp_path)
    assert None is again.begin_boot("one")
    crashed = Record(tmp_path)
    assert True is crashed.begin_boot("two")
    restarted = Record(tmp_path)
    assert True is restarted.begin_boot("two")
    restarted.end_boot()
    assert False is Record(tmp_path).begin_boot("three")


def test_a_report_of_an_agent_of_before_says_nothing_of_its_boot() -> None:
    """And one that does comes through as it was sent."""
    said = Report.of(
        [], [], boot_id="b", sequence=1, sent_at=NOW, version="1", booted_at=NOW - HOUR, reset=True
    )
    old = said.model_dump_json(exclude={"booted_at", "reset"}).encode()

    assert said == decode(Report, said.encode())
    assert (None, None) == (decode(Report, old).booted_at, decode(Report, old).reset)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


async def test_a_boot_is_noted_once_and_kept_with_what_is_heard_later(store: Store) -> None:
    """Its instant stays where it was first computed; a report that counts moves only when it was heard."""
    await store.record_report("web1", "b", 1, [], {}, NOW)
    first = await store.note_boot("web1", "b", NOW - HOUR, True)
    again = await store.note_boot("web1", "b", NOW - MINUTE, False)
    await store.record_report("web1", "b", 2, [], {}, NOW + MINUTE)

    assert (True, False) == (first, again)
    assert (boot("web1", NOW - HOUR, ident="b", heard=NOW + MINUTE),) == await store.boots(NOW - DAY, NOW)
    assert () == await store.boots(NOW + DAY, NOW + DAY)


async def test_our_own_boots_come_out_of_our_runs(store: Store) -> None:
    """Two runs of one boot are one; a boot whose run before had no end was a reset."""
    await store.begin_run("one", 1, NOW - 5 * HOUR, booted_for=HOUR)
    await store.begin_run("one", 2, NOW - 4 * HOUR, booted_for=2 * HOUR)
    await store.begin_run("two", 3, NOW - HOUR, booted_for=MINUTE)
    await store.end_run(NOW - 30 * MINUTE)
    await store.begin_run("three", 4, NOW - 20 * MINUTE, booted_for=MINUTE)

    found = await store.boots(NOW - DAY, NOW)

    assert [
        boot(OURS, NOW - 6 * HOUR, ident="one", reset=None, heard=NOW - 4 * HOUR),
        boot(OURS, NOW - HOUR - MINUTE, ident="two", reset=True, heard=NOW - 30 * MINUTE),
        boot(OURS, NOW - 21 * MINUTE, ident="three", reset=False, heard=NOW),
    ] == list(found)


def test_the_page_has_the_resets_of_the_last_day_and_the_status_a_line() -> None:
    """Together and alone, each with its count; what left the config and what is older is not told."""
    at = [PAGE_NOW - n * HOUR for n in (40, 9, 6)]
    names = ("web1", "mail1", "gone")
    boots = [boot(one, when, heard=when + HOUR) for when in at for one in (*names, OURS)]
    boots.append(boot(OURS, PAGE_NOW - 3 * HOUR, heard=PAGE_NOW))
    boots.append(boot("mail1", at[2] + HOUR, reset=False, heard=PAGE_NOW))
    page: Any = as_json(view(replace(things(), boots=tuple(boots), desired=with_consumers(*names[:2]))))

    assert [(1, False), (3, True), (3, True)] == [
        (one["machines"], one["all_together"]) for one in page["resets"]
    ]
    assert [
        "reset in the last 24 h, last 3 h ago: this machine alone 1 time; every machine together (the host) 2 times"
    ] == reset_lines(page, PAGE_NOW)
    assert [] == reset_lines({**page, "resets": []}, PAGE_NOW)


def with_consumers(*names: str) -> Desired:
    known = things().desired
    return replace(known, consumers={**known.consumers, **{name: Consumer(name) for name in names}})
