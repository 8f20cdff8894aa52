"""An admin's day at the command line, against a real daemon with a real agent and an authority."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from certfan import pki
from tests.lab import machine
from tests.real.daemon_consumer import Consumer
from tests.real.daemon_place import CONSUMER, Daemon, Place, authority, certificate

pytestmark = pytest.mark.real


def said(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    """Run a command whatever its exit code; return that and what it printed."""
    argv = [sys.executable, "-m", "certfan", *words, "--config", str(daemon.config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def told(daemon: Daemon, *words: str) -> Mapping[str, Any]:
    """What a command answers a program."""
    found: dict[str, Any] = json.loads(daemon.certfan(*words, "--json"))
    return found


def test_a_certificate_is_planned_ordered_followed_explained_and_gone_back_from(
    daemons: Place, tmp_path: Path
) -> None:
    """`plan --with` says what a config would do and does nothing; `renew --wait` returns when it is served."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca)) as daemon, Consumer(daemon).enrolled() as consumer:
        other = tmp_path / "certfan.toml"
        other.write_text(daemon.config.read_text() + certificate("a.test"))
        before = told(daemon, "plan", "--with", str(other))
        nothing = told(daemon, "plan")
        daemon.write("a", certificate("a.test"))
        consumer.wait_proven(["a.test"])
        code, out, err = said(daemon, "renew", "a.test", "--wait")
        renewed = consumer.serial("a.test")
        why = daemon.certfan("why", "a.test").splitlines()
        daemon.certfan("rollback", "a.test")
        consumer.wait_proven({"a.test": 3})
        copy = told(daemon, "why", "a.test")["certificate"]
        shown = told(daemon, "consumer", "show", CONSUMER)
        status = daemon.certfan("status").splitlines()

        assert (["a.test"], 1) == (before["difference"]["added"], len(before["orders"]))
        assert [] == nothing["orders"]
        assert 3 == len(ca.records.orders) + 1  # one for each generation, none for the copy
        assert (0, "a.test@2 is served and proven by every endpoint\n") == (code, out)
        assert "a.test@2: proven everywhere" in err.splitlines()
        assert why[0] == "a.test: ok"
        assert any("generation.issued" in line and "a.test@2" in line for line in why)
        assert renewed != consumer.serial("a.test")
        assert (1, 3) == (copy["copy_of"], copy["generation"])
        assert (True, ["a.test"]) == (
            shown["consumer"]["heard"],
            [row["certificate"] for row in shown["endpoints"]],
        )
        assert status[0].startswith("story: ok, 1 of 1 proven")


def test_the_config_is_read_at_a_reload_and_at_a_hang_up(daemons: Place) -> None:
    """A bad one is refused with its problems and 78, and the one before stays; a good one is in force on return."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca), top="[watch]\nforce_polling = true") as daemon:
        daemon.edit('fleet = "story"', 'flet = "story"')
        code, out, _ = said(daemon, "reload")
        status = told(daemon, "status")
        daemon.edit('flet = "story"', 'fleet = "story"')
        (daemon.here / "conf.d" / "a.toml").write_text(certificate("a.test"))
        good = said(daemon, "reload")
        wanted = [one["name"] for one in told(daemon, "status")["certificates"]]
        (daemon.here / "conf.d" / "b.toml").write_text(certificate("b.test"))
        assert daemon._process is not None
        os.kill(daemon._process.pid, signal.SIGHUP)
        daemon.issued("b.test")

        assert (78, True) == (code, 'flet: unknown key, did you mean "fleet"?' in out)
        assert any(one["subject"] == "config" for one in status["problems"])
        assert (0, "the config in force is what is written\n", "") == good
        assert ["a.test"] == wanted


def test_yesterdays_backup_serves_on_another_machine(daemons: Place, tmp_path: Path) -> None:
    """Taken while the daemon works; restored, the same keys, the same account, and numbers that go on."""
    ca = daemons.faulty()
    file = tmp_path / "certfan.tar"
    with daemons.running(authority("ca", ca), certificate("a.test")) as daemon:
        pair = daemon.issued("a.test")
        account = told(daemon, "account", "show", "ca")["uri"]
        told(daemon, "backup", str(file))
        live = said(daemon, "restore", str(file), "--user", "root")
    other = daemons.fresh(authority("ca", ca), certificate("a.test"))
    restored = told(other, "restore", str(file), "--user", "root")
    with other.started():
        again = other.issued("a.test")
        other.renew("a.test")
        other.issued("a.test", 2)
        moved = told(other, "account", "show", "ca")["uri"]
        doctor = said(other, "doctor", "--json")

    findings = json.loads(doctor[1])["findings"]
    assert (75, "", True) == (live[0], live[1], "is held by process" in live[2])
    assert (pair.key_pem, account) == (again.key_pem, moved)
    assert restored["files"] > 6
    assert [] == [
        one for one in findings if one["area"] in {"config", "clock", "share"} and one["grade"] == "bad"
    ]
    assert {"authority", "caa", "permissions", "path", "agents"} <= {one["area"] for one in findings}


def test_the_internal_ca_is_replaced_under_a_running_agent(daemons: Place) -> None:
    """Nobody does anything on the consumer; what is on the share is signed anew, and a renewal afterwards is served."""
    ca = daemons.faulty()
    with (
        daemons.running(authority("ca", ca), certificate("a.test")) as daemon,
        Consumer(daemon).enrolled() as consumer,
    ):
        consumer.wait_proven(["a.test"])
        before = (daemon.here / "state/ca/ca.pem").read_bytes()
        begun = told(daemon, "ca", "rotate")
        daemon.wait(lambda: daemon.events("ca.dropped"), "the old CA to be dropped", 120)
        settled = told(daemon, "ca", "show")
        share = told(daemon, "share", "verify")
        daemon.certfan("renew", "a.test", "--wait")

        after = (daemon.here / "state/ca/ca.pem").read_bytes()
        pinned = json.loads(next(daemon.here.rglob("fleet.json")).read_text())["ca"].encode()
        assert (["overlap", "settled"], []) == ([begun["phase"], settled["phase"]], settled["waits_for"])
        assert (True, (after,)) == (before != after, pki.anchors(pinned))
        assert [] == share["differences"]
        names = [one["name"] for one in daemon.events() if one["name"].startswith("ca.")]
        assert ["ca.rotating", "ca.promoted", "ca.dropped"] == names
        with pytest.raises(machine.CommandFailed):
            daemon.certfan("why", "nobody.test")
