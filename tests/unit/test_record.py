"""What the agent remembers survives it, and a damaged memory is none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan.agent.record import Record
from certfan.core.agent_steps import Assignment, Outcome, TryState
from certfan.core.model import Endpoint, Problem
from certfan.errors import StateTooOpen

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FAILED = Outcome(TryState.FAILED, NOW, failures=2, not_before=NOW, problem=Problem("service.down", "it died"))
HTTPS = Endpoint("apache2", "tls", "2001:db8::1", 443, "www.example.org")


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    """Outcomes, what worked before, and the assignments are durable when the call returns."""
    before = Record(tmp_path / "agent")
    before.remember_outcomes({("www", 7): FAILED})
    before.remember_outcomes({("www", 8): Outcome(TryState.TRYING, NOW)})
    before.remember_worked(frozenset({("www", HTTPS)}))
    before.remember_assignments(
        {"www": Assignment("www", 8, fingerprint="ab", identifiers=("www.example.org",))}
    )

    after = Record(tmp_path / "agent")

    assert {("www", 7): FAILED, ("www", 8): Outcome(TryState.TRYING, NOW)} == after.outcomes
    assert (before.worked_before, before.assignments) == (after.worked_before, after.assignments)


def test_a_damaged_file_counts_as_none_and_takes_nothing_else_with_it(tmp_path: Path) -> None:
    """A memory decides nothing alone, so losing it must not stop the agent."""
    record = Record(tmp_path / "agent")
    record.remember_outcomes({("www", 7): FAILED})
    record.remember_worked(frozenset({("www", HTTPS)}))
    (tmp_path / "agent" / "outcomes.json").write_text('{"www": {"7": {"state": "prov')

    again = Record(tmp_path / "agent")

    assert {} == again.outcomes
    assert frozenset({("www", HTTPS)}) == again.worked_before


def test_what_was_forgotten_stays_forgotten(tmp_path: Path) -> None:
    """Outcomes of bundles that are gone do not come back after a restart."""
    record = Record(tmp_path / "agent")
    record.remember_outcomes({("www", 6): FAILED, ("www", 7): FAILED})

    record.forget_outcomes(frozenset({("www", 6)}))

    assert {("www", 7): FAILED} == Record(tmp_path / "agent").outcomes


def test_a_memory_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The folder holds bundles too."""
    (tmp_path / "agent").mkdir(mode=0o755)

    with pytest.raises(StateTooOpen, match="mode 0755"):
        Record(tmp_path / "agent")
