"""`certfan why`, `plan` and `reload` through a real control socket: their words and codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certfan.core.model import Problem
from tests.unit.command import certfan
from tests.unit.status_parts import Admin
from tests.unit.test_cli import against
from tests.unit.test_config_watch import MAIN
from tests.unit.test_config_watch import certificate as table


async def test_why_tells_state_next_try_and_timeline(tmp_path: Path) -> None:
    """What is wanted and served, what happens next, how to force it, then what happened."""
    done, _ = await against(tmp_path, "why", "www.test", "--last", "1")
    lines = done.stdout.splitlines()

    assert (0, "") == (done.returncode, done.stderr)
    assert lines[0] == "www.test: ok"
    assert lines[1:3][0] == "  identifiers: www.test"
    assert "  to force it: certfan renew www.test (nothing waits; it orders a new generation now)" in lines
    assert lines[-1].split()[2:4] == ["endpoint.proven", "www.test/web1"]


async def test_why_is_the_page_of_one_certificate_for_a_program(tmp_path: Path) -> None:
    """The certificate as the status has it, and its events."""
    raw, _ = await against(tmp_path, "why", "www.test", "--json")
    told = json.loads(raw.stdout)

    assert ("www.test", "generation.published") == (told["certificate"]["name"], told["events"][0]["name"])


async def test_a_consumer_is_shown_with_its_endpoints(tmp_path: Path) -> None:
    """When it was heard, what it serves, what happened; a name that is none is guessed at."""
    done, _ = await against(tmp_path, "consumer", "show", "web1")
    raw, _ = await against(tmp_path, "consumer", "show", "web1", "--json")
    wrong, _ = await against(tmp_path, "consumer", "show", "web2")

    assert (0, "web1") == (done.returncode, done.stdout.splitlines()[1].split()[0])
    assert any("proven" in line and "www.test" in line for line in done.stdout.splitlines())
    assert ["www.test"] == [row["certificate"] for row in json.loads(raw.stdout)["endpoints"]]
    assert (1, True) == (wrong.returncode, 'did you mean "web1"?' in wrong.stderr)


async def test_why_of_a_name_that_is_not_there_guesses(tmp_path: Path) -> None:
    """Exit code 1 and the name that was meant."""
    done, _ = await against(tmp_path, "why", "ww.test")

    assert done.returncode == 1
    assert 'did you mean "www.test"?' in done.stderr


async def test_plan_is_the_daemons_own(tmp_path: Path) -> None:
    """One line a step; the raw form has each kind apart."""
    done, _ = await against(tmp_path, "plan")
    raw, _ = await against(tmp_path, "plan", "--json")

    assert (0, "") == (done.returncode, done.stderr)
    assert "next by itself: renew www.test in " in done.stdout
    assert {"orders", "publications", "reloads", "steps"} <= json.loads(raw.stdout).keys()


async def test_plan_with_another_config_tells_what_it_would_change(tmp_path: Path) -> None:
    """The file need not be readable by the daemon; a bad one is refused as `check` does."""
    other = tmp_path / "other" / "certfan.toml"
    other.parent.mkdir()
    other.write_text(MAIN + table("www.test") + table("new.test"))
    done, _ = await against(tmp_path, "plan", "--with", str(other))
    other.write_text(other.read_text().replace("fleet =", "flet ="))
    bad = certfan("plan", "--with", str(other), "--config", str(tmp_path / "certfan.toml"))

    assert "config: new certificate new.test" in done.stdout.splitlines()
    assert any(line.startswith("order") and "new.test" in line for line in done.stdout.splitlines())
    assert (78, "") == (bad.returncode, bad.stdout)


async def test_reload_fails_when_the_config_before_stays_in_force(tmp_path: Path) -> None:
    """The problems of the file, and the exit code that `systemctl reload` shows."""
    done, _ = await against(tmp_path, "reload")

    assert (78, "certfan.toml: flet: unknown key\n") == (done.returncode, done.stdout)


async def test_reload_is_done_when_only_a_restart_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what waits for the restart; the rest is in force."""
    waits = Problem(
        "config.needs_restart", "certfan.toml: fleet has changed", "run: systemctl restart certfan"
    )
    monkeypatch.setattr(Admin, "config_problems", (waits,))
    done, _ = await against(tmp_path, "reload")
    raw, _ = await against(tmp_path, "reload", "--json")

    assert (0, "certfan.toml: fleet has changed\n") == (done.returncode, done.stdout)
    assert json.loads(raw.stdout)["in_force"]
