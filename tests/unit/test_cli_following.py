"""`certfan status --watch` and `certfan renew --wait`: progress as lines, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from certfan.cli.lines.page import page_lines
from certfan.cli.lines.progress import bar, stage
from certfan.core.issuance import Issuance
from certfan.core.model import DeploymentState, Identifier, Proof
from certfan.daemon.status.model import as_json
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from tests.unit.command import CLEAN, certfan
from tests.unit.status_parts import (
    DOORS,
    HTTPS,
    MINUTE,
    NOW,
    WHERE,
    Admin,
    control_socket,
    deployment,
    generation,
    proof,
    things,
)
from tests.unit.test_status_authorities import failed

ORDER = Issuance("www.test", 2, "pebble", (Identifier("www.test"),), NOW - MINUTE, "https://ca.int/order/1")
AT_MAIL = dataclasses.replace(HTTPS, service="postfix", port=465)


def ordering(**more: Any) -> StateOfThings:
    """www.test@1 is served, @2 is ordered."""
    return things(proofs={WHERE: (proof(),)}, issuances=(ORDER,), asked={"www.test": NOW}, **more)


def fanning_out(*proofs: Proof) -> StateOfThings:
    """www.test@2 is there."""
    generations = {"www.test": (generation(1), generation(2))}
    deployments = {WHERE: (deployment(2, DeploymentState.INSTALLED),)}
    return things(
        generations=generations, offered={WHERE: 2}, proofs={WHERE: proofs}, deployments=deployments
    )


HALF = fanning_out(proof(2), dataclasses.replace(proof(1), endpoint=AT_MAIL))
SERVED = fanning_out(proof(2), dataclasses.replace(proof(2), endpoint=AT_MAIL))


def certificate(of: StateOfThings) -> Any:
    return as_json(view(of).certificates[0])


def test_what_is_under_way_is_shown_above_the_tables_while_watching() -> None:
    """The order with its age and challenges, the fan-out with a bar; a page that is looked at once has neither."""
    lines = page_lines(as_json(view(ordering())), progress=True)
    half = page_lines(as_json(view(HALF)), progress=True)

    order = "www.test@2: ordered at pebble for 1 min, 0 of 1 challenges answered"
    assert order in lines
    assert order not in page_lines(as_json(view(ordering())))
    assert "www.test@2: [##########..........] 1 of 2 endpoints proven, not yet on web1" in half


def test_a_bar_is_full_only_when_all_is_done() -> None:
    """And empty of nothing."""
    assert ["[....................]", "[###################.]", "[####################]"] == [
        bar(0, 0),
        bar(999, 1000),
        bar(1, 1),
    ]


def test_a_renewal_is_followed_through_its_stages() -> None:
    """Waiting, ordered, on its way, served."""
    stages = [stage(certificate(one), 1, NOW) for one in (ordering(), HALF, SERVED)]
    waits = stage(certificate(things(attempts=failed(), generations={})), 0, NOW)

    assert stages == [
        "www.test@2: ordered at pebble for 1 min, 0 of 1 challenges answered",
        "www.test@2: [##########..........] 1 of 2 endpoints proven, not yet on web1",
        "www.test@2: proven everywhere",
    ]
    assert waits.startswith("www.test: waits: authority pebble refused new order: caa, until in ")


class Renewing(Admin):
    """A daemon in which each look after the wish shows the next of some states."""

    def __init__(self, *states: StateOfThings) -> None:
        super().__init__()
        self.states = list(states)

    async def things(self) -> StateOfThings:
        if self.asked and len(self.states) > 1:
            self.states.pop(0)
        return self.states[0]


async def renewed(
    folder: Path, *words: str, states: tuple[StateOfThings, ...]
) -> subprocess.CompletedProcess[str]:
    daemon = Renewing(*states)
    doors = dataclasses.replace(DOORS, things=daemon.things)
    async with control_socket(folder, daemon, doors=doors) as config:
        return await asyncio.to_thread(
            certfan, "renew", "www.test", "--wait", *words, "--config", str(config)
        )


async def test_renew_waits_until_every_endpoint_proves_the_new_one(tmp_path: Path) -> None:
    """A line for each stage on stderr, the outcome on stdout."""
    done = await renewed(tmp_path, "--json", states=(things(), ordering(), HALF, SERVED))

    assert (0, {"certificate": "www.test", "generation": 2}) == (done.returncode, json.loads(done.stdout))
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["www.test@2"] * 3


async def test_renew_tells_that_an_order_failed_since(tmp_path: Path) -> None:
    """Exit code 1 with the problem; one that failed before the wish is not taken for it."""
    refused = things(attempts=failed(), asked={"www.test": NOW}, generations={})
    before = things(generations={})

    done = await renewed(tmp_path, states=(before, refused))

    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.splitlines()[-2:] == [
        "certfan: error: authority pebble refused new order: caa",
        "try: let the CAA records allow it",
    ]


def on_one_terminal(*words: str) -> str:
    """Run a command whose stdout and stderr are one terminal; return what was written to it."""
    ours, its = pty.openpty()
    argv = [sys.executable, "-m", "certfan", *words]
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        with os.fdopen(its, "wb") as end:
            subprocess.run(argv, stdout=end, stderr=end, env=CLEAN, timeout=60, check=True)
        return terminal.read(1 << 16).decode()


async def test_on_a_terminal_progress_makes_way_for_the_outcome(tmp_path: Path) -> None:
    """Each stage in place of the one before; what is left at the end is the outcome alone."""
    daemon = Renewing(things(), ordering(), HALF, SERVED)
    async with control_socket(
        tmp_path, daemon, doors=dataclasses.replace(DOORS, things=daemon.things)
    ) as config:
        words = ("renew", "www.test", "--wait", "--config", str(config))
        shown = await asyncio.to_thread(on_one_terminal, *words)

    outcome = shown.rpartition("\x1b[K")[2]
    assert 3 == sum(stage.startswith("www.test@2: ") for stage in shown.split("\x1b[K\r"))
    assert "www.test@2 is served and proven by every endpoint\r\n" == outcome


async def test_a_roll_back_is_followed_as_a_renewal_is(tmp_path: Path) -> None:
    """It begins with a copy instead of an order, and ends when that is served."""
    back = things(proofs={WHERE: (proof(),)}, rolled_back={"www.test": 1})
    daemon = Renewing(things(), back, SERVED)
    async with control_socket(
        tmp_path, daemon, doors=dataclasses.replace(DOORS, things=daemon.things)
    ) as config:
        words = ("rollback", "www.test", "--wait", "--config", str(config))
        done = await asyncio.to_thread(certfan, *words)

    assert (0, "www.test@2 is served and proven by every endpoint\n") == (done.returncode, done.stdout)
    assert "www.test: about to be rolled back" == done.stderr.splitlines()[0]


async def test_renew_gives_up_waiting_and_not_the_order(tmp_path: Path) -> None:
    """Exit code 75, how far it has come, and where to look."""
    done = await renewed(tmp_path, "--timeout", "0", states=(things(), HALF))

    assert 75 == done.returncode
    assert done.stderr.splitlines()[-2:] == [
        "certfan: error: www.test@2: [##########..........] 1 of 2 endpoints proven, not yet on web1",
        "try: certfan why www.test",
    ]


def watched(config: Path, **env: str) -> tuple[bytes, int]:
    """Run `status --watch` on a terminal, press Ctrl-C after the second page, and return what was shown."""
    ours, its = pty.openpty()
    argv = [sys.executable, "-m", "certfan", "status", "--watch", "--config", str(config)]
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        # Whoever runs the tests in the background has SIGINT ignored, which a child would inherit.
        subprocess.Popen(
            ["env", "--default-signal=INT", *argv], stdin=its, stdout=its, stderr=its, env={**CLEAN, **env}
        ) as process,
    ):
        os.close(its)
        shown = b""
        while shown.count(b"\x1b[J") < 2:
            shown += terminal.read(1 << 16)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while chunk := terminal.read(1 << 16):
                shown += chunk
        return shown, process.wait(60)


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
async def test_watching_shows_the_page_in_place_until_ctrl_c(
    tmp_path: Path, env: dict[str, str], coloured: bool
) -> None:
    """In colour unless its owner minds; the terminal is left as it was, and Ctrl-C is no failure."""
    async with control_socket(tmp_path, Admin()) as config:
        shown, code = await asyncio.to_thread(watched, config, **env)

    assert 0 == code
    assert 2 <= shown.count(b"\x1b[Hexample: ")
    assert coloured == (b"\x1b[32m" in shown)
    assert b"\x1b[?7h" in shown.rpartition(b"\x1b[J")[2]
