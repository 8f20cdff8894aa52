"""What the status page is made from, seen at one instant. What the page says is in model.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certfan.core.model import Desired, Problem
from certfan.core.plan import Key, Observed, Step
from certfan.core.resets import Boot
from certfan.core.rotation import InternalCa
from certfan.daemon.status.model import RemoteLog
from certfan.daemon.store.facts import AccountFact, ConfigFact, Run, StoreFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOfThings:
    """Everything that the page is made from, seen at one instant."""

    now: datetime
    fleet: str
    desired: Desired
    facts: StoreFacts
    observed: Observed  # what the plan would be made from
    accounts: Mapping[str, AccountFact] = field(default_factory=dict)  # by authority
    probe_interval: timedelta = timedelta(minutes=5)
    config: ConfigFact | None = None
    config_problems: tuple[Problem, ...] = ()
    share_problem: Problem | None = None
    share_lost_at: datetime | None = None
    clock_problem: Problem | None = None
    remote_log: RemoteLog | None = None
    boots: tuple[Boot, ...] = ()  # of all machines that were heard of in the last 24 hours
    consumer_problems: Mapping[str, Problem] = field(default_factory=dict)
    notify_problems: Mapping[str, Problem] = field(default_factory=dict)  # by channel
    since: Mapping[str, datetime] = field(default_factory=dict)  # by subject: when this run saw its problem
    internal_ca: InternalCa | None = None
    live: Mapping[tuple[str, str], int] = field(default_factory=dict)  # the share's pointers
    in_flight: Mapping[Key, Step] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()  # newest first
