"""What the agent's plan speaks in: the facts of one consumer, and the steps that can follow from them.

The agent's promises that the plan builds on are said at the fields of `AgentFacts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from certfan.core.model import Attempt, Endpoint, Problem, Proof

Key: TypeAlias = tuple[str, ...]
Pair: TypeAlias = tuple[str, int]  # (certificate, generation); generation 0 is the placeholder

APPLY_KEY: Key = ("apply",)
PLACEHOLDER = 0  # its generation


class TryState(StrEnum):
    """What came of a generation on this consumer."""

    TRYING = "trying"
    PROVEN = "proven"
    FAILED = "failed"


class Why(StrEnum):
    """Why pairs are applied."""

    INSTALL = "install"
    REPAIR = "repair"  # the generation is right; a reload was lost or did nothing, or the pair is misplaced
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be signed with a key that is made here; `key` is the one (by SPKI hash) to use again."""

    generation: int
    identifiers: tuple[str, ...]
    key_type: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the daemon assigned; generation 0 and no fingerprint: nothing issued yet."""

    certificate: str
    generation: int
    fingerprint: str = field(default="", kw_only=True)
    identifiers: tuple[str, ...] = field(default=(), kw_only=True)
    bundle: str = field(default="", kw_only=True)  # which sealing of its key; "": not sealed, or nobody said
    request: Asked | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Staged:
    """A bundle on local disk, verified."""

    fingerprint: str
    not_after: datetime
    staged_at: datetime = field(kw_only=True)
    bundle: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation fares here; durable, written before anything depends on it.

    `failures` counts tries that failed, `repairs` reloads that did nothing since it was last proven. `group`
    is how many pairs its last try held: one that failed together with others is tried alone, at once. `problem`
    says why it failed; before that, what its hook said: it is loaded, and its hook is due again.
    """

    state: TryState
    at: datetime
    failures: int = field(default=0, kw_only=True)
    repairs: int = field(default=0, kw_only=True)
    group: int = field(default=1, kw_only=True)
    not_before: datetime | None = field(default=None, kw_only=True)
    problem: Problem | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """One service of agent.toml: the certificates it takes, and its endpoints for each."""

    certificates: frozenset[str]
    endpoints: Mapping[str, tuple[Endpoint, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """Everything the agent's plan looks at."""

    assignments: Mapping[str, Assignment] = field(default_factory=dict)
    staged: Mapping[Pair, Staged] = field(default_factory=dict)
    live: Mapping[str, int] = field(default_factory=dict)  # the local pointer; 0 placeholder, absent nothing
    outcomes: Mapping[Pair, Outcome] = field(default_factory=dict)
    # Certificates whose live pair lies where it should not: on a share that no longer shows it, or as a copy although
    # it is wished in place and the share shows it.
    misplaced: frozenset[str] = frozenset()
    # Pairs whose Apply ended well in this process. Memory only: after a restart a `trying` pair is applied again.
    applied: frozenset[Pair] = frozenset()
    services: Mapping[str, ServiceFacts] = field(default_factory=dict)
    # The latest of each, seen after the last reload: an Apply that starts empties this, and a probe that began
    # before that Apply ended is not put in. `at` is when the probe began.
    proofs: Mapping[tuple[str, Endpoint], Proof] = field(default_factory=dict)
    # (certificate, endpoint) that completed a handshake before the current try; durable, from `marks`.
    worked_before: frozenset[tuple[str, Endpoint]] = frozenset()
    fetch_attempts: Mapping[str, Attempt] = field(default_factory=dict)  # by certificate
    apply_attempts: Mapping[str, Attempt] = field(default_factory=dict)  # by certificate, from `setback`
    csr_not_before: Mapping[Pair, datetime] = field(default_factory=dict)  # when one is sent, or sent again
    # By certificate: the config test of a service that takes it passes again (from `aftermath`). Lifts a wait for it.
    cleared_at: Mapping[str, datetime] = field(default_factory=dict)
    in_flight: frozenset[Key] = frozenset()  # read before everything else, as the daemon's
    probe_interval: timedelta = timedelta(minutes=5)
    quiet: timedelta = timedelta(seconds=2)
    longest_quiet: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get a bundle, verify it, and put it on local disk."""

    certificate: str
    generation: int
    bundle: str = ""

    @property
    def key(self) -> Key:
        """One fetch a certificate."""
        return ("fetch", self.certificate)


@dataclass(frozen=True, slots=True)
class SendCsr:
    """Have a key made here, and hand its CSR in."""

    certificate: str
    asked: Asked

    @property
    def key(self) -> Key:
        """One a certificate."""
        return ("csr", self.certificate)


@dataclass(frozen=True, slots=True)
class LayPlaceholders:
    """Put placeholders where nothing of ours or anybody's is, then test and reload once.

    A vhost may be waiting for the files: its challenge can only be answered once it is loaded.
    """

    certificates: tuple[str, ...]

    @property
    def key(self) -> Key:
        """One at a time on a consumer."""
        return ("placeholder",)


@dataclass(frozen=True, slots=True)
class Apply:
    """Install pairs, then one config test, one reload a service, the hooks. `marks` must be durable before it starts.

    Ended well, `live` shows the pairs, and the caller adds them to `applied` and records what `aftermath` says.
    When it fails the privileged half has put its pointers back already; the caller records what `setback` says.
    """

    pairs: tuple[Pair, ...]
    why: Why

    @property
    def key(self) -> Key:
        """One at a time on a consumer."""
        return APPLY_KEY


@dataclass(frozen=True, slots=True)
class Probe:
    """Look what the endpoints of one certificate serve. Every endpoint gets a proof, `unreachable` too."""

    certificate: str
    endpoints: tuple[Endpoint, ...]

    @property
    def key(self) -> Key:
        """One round a certificate."""
        return ("probe", self.certificate)


@dataclass(frozen=True, slots=True)
class Conclude:
    """Make an outcome durable: the proofs have decided."""

    certificate: str
    generation: int
    outcome: Outcome

    @property
    def key(self) -> Key:
        """One conclusion a certificate."""
        return ("conclude", self.certificate)


Step: TypeAlias = Fetch | SendCsr | LayPlaceholders | Apply | Probe | Conclude


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """Steps, at most one a key and none in flight; `wake_at` is when to plan again at the latest."""

    steps: tuple[Step, ...] = ()
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """What must be durable before an Apply moves a pointer."""

    outcomes: Mapping[Pair, Outcome]  # to add to the facts'
    worked_before: frozenset[tuple[str, Endpoint]]  # to replace the facts'


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What is to be recorded after an Apply ended well; both are to be added to the facts'."""

    outcomes: Mapping[Pair, Outcome]
    cleared_at: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class Setback:
    """What is to be recorded after an Apply failed; both are to be added to the facts'."""

    outcomes: Mapping[Pair, Outcome]
    apply_attempts: Mapping[str, Attempt]
