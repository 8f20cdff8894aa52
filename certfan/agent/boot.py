"""Before the services start: every pair they name is there and matches. No network, no share, no reload.

For each certificate: what was last proven, else the newest that has not failed, else a placeholder. A service whose
files are missing does not start, and with Apache that takes every other name of the machine with it. What was in place
becomes a copy of the bundle that the agent has staged: whether the share will be mounted, nobody knows yet.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

from certfan import files, log, pki
from certfan.agent import config as agent_config
from certfan.agent.apply import lock_path
from certfan.agent.bundled import Bundled
from certfan.agent.config import AgentConfig
from certfan.agent.config_schema import Install
from certfan.agent.forms import Layout
from certfan.agent.identity import read_trust
from certfan.agent.installer import Installer, Laid
from certfan.agent.journal import Journal
from certfan.core.model import CERTIFICATE_NAME
from certfan.errors import CertfanError, InstallFailed

PATIENCE = timedelta(seconds=10)
MAX_OUTCOMES = 8 << 20


@dataclass(frozen=True, slots=True)
class Tried:
    """What the agent has noted about one generation."""

    state: str
    at: datetime


def run(config_path: Path) -> None:
    """Bring every certificate to a pair that loads, within ten seconds; what cannot be brought is logged.

    Safe to repeat and to cut off.

    Raises:
        ConfigError: agent.toml cannot be used.
        StateLocked: the privileged half is at work, and knows better.
    """
    log.set_up()
    config = agent_config.load(config_path)
    config.install_to.mkdir(mode=0o755, parents=True, exist_ok=True)
    with files.locked(lock_path(config)):
        lay_all(config, lambda: datetime.now(UTC), deadline=monotonic() + PATIENCE.total_seconds())


def lay_all(config: AgentConfig, clock: Callable[[], datetime], *, deadline: float) -> dict[str, int]:
    """Lay each certificate's best pair; return what is live now, as far as time sufficed."""
    logger = log.get("boot")
    installer = Installer(config.install_to)
    stock = _Stock(config, installer, clock)
    outcomes = _outcomes(config.outcomes)
    live: dict[str, int] = {}
    for name in sorted({*installer.names(), *outcomes, *config.literal_names}):
        if monotonic() > deadline:
            logger.error("boot.cut_short", certificate=name, hint="run: certfan agent boot")
            return live
        try:
            laid = stock.lay(name, outcomes.get(name, {}))
        except (CertfanError, OSError) as error:
            logger.warning("pair.not_laid", certificate=name, problem=str(error))
            continue
        live[name] = laid.generation
        write = logger.info if laid.generation else logger.warning
        write("pair.laid", certificate=name, generation=laid.generation, folder=laid.folder)
    if installer.generations.is_dir():
        # What a swap was cut off in is decided now: services start on what was just laid.
        Journal(installer.generations).clear()
    return live


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A generation that could be laid: a folder of ours, or a bundle that is staged."""

    generation: int
    laid: Laid | None


class _Stock:
    """What this machine has on its own disk."""

    def __init__(self, config: AgentConfig, installer: Installer, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._installer = installer
        self._clock = clock
        self._bundled: Bundled | None = None
        with suppress(CertfanError):
            self._bundled = Bundled(config, installer, read_trust(config.trust), clock)

    def lay(self, name: str, tried: Mapping[int, Tried]) -> Laid:
        """Point live/NAME at the best pair there is."""
        layout = self._config.layout(name)
        current = self._installer.pointer(name)
        # A copy is laid at every installation; what was in place has left nothing but its bundle.
        was_in_place = self._config.install is Install.IN_PLACE or bool(current and current.mounted)
        chosen, pair = self._best(name, tried, untried=was_in_place)
        if pair is None and current is not None and current.generation == 0:
            chosen, pair = _Candidate(0, current), self._installer.read(name, current)
        if chosen is None or pair is None:
            laid = self._installer.put_placeholder(name, self._clock(), layout)
        elif chosen.laid is None:
            laid = self._installer.put(name, chosen.generation, pair, layout)
        else:
            laid = chosen.laid
            _complete(self._installer, name, laid, pair, layout)
        self._installer.point(name, laid)
        return laid

    def _best(
        self, name: str, tried: Mapping[int, Tried], *, untried: bool
    ) -> tuple[_Candidate | None, pki.Pair | None]:
        """Return the first candidate that loads and matches; one that has expired only when no other is left."""
        expired: tuple[_Candidate | None, pki.Pair | None] = (None, None)
        for candidate in _in_order(self._candidates(name, tried, untried=untried), tried):
            pair = self._read(name, candidate)
            if pair is None:
                continue
            if pair.leaf.not_after > self._clock():
                return candidate, pair
            if expired[0] is None:
                expired = candidate, pair
        return expired

    def _candidates(self, name: str, tried: Mapping[int, Tried], *, untried: bool) -> Iterator[_Candidate]:
        """Tell every folder, then the bundles that were, or may have been, laid: their folders may be lost or broken."""
        stored = self._installer.stored(name)
        yield from (_Candidate(laid.generation, laid) for laid in stored if laid.generation)
        numbers = self._bundled.numbers(name) if self._bundled is not None else frozenset()
        # Also of what is stored: a copy that a power cut left unfinished is no reason to pass a generation over.
        yield from (_Candidate(number, None) for number in numbers if untried or number in tried)

    def _read(self, name: str, candidate: _Candidate) -> pki.Pair | None:
        if candidate.laid is not None:
            return self._installer.read(name, candidate.laid)
        with suppress(CertfanError):
            if self._bundled is not None:
                return self._bundled.pair(name, candidate.generation)
        return None


def _complete(installer: Installer, name: str, laid: Laid, pair: pki.Pair, layout: Layout) -> None:
    """Add what a power cut or a change of agent.toml left out; what cannot be added holds up no other service."""
    try:
        installer.complete(name, laid, pair, layout)
    except CertfanError as error:
        log.get("boot").warning("pair.incomplete", certificate=name, problem=error.text, hint=error.hint)


def _in_order(candidates: Iterable[_Candidate], tried: Mapping[int, Tried]) -> Iterator[_Candidate]:
    """Tell generations in the order of trust: proven, the last one first, then untold and trying, the newest first."""
    generations = sorted(candidates, key=lambda one: -one.generation)
    proven = [one for one in generations if _state(one, tried) == "proven"]
    yield from sorted(proven, key=lambda one: tried[one.generation].at, reverse=True)
    yield from (one for one in generations if _state(one, tried) not in {"proven", "failed"})


def _state(one: _Candidate, tried: Mapping[int, Tried]) -> str:
    known = tried.get(one.generation)
    return known.state if known else ""


def _outcomes(path: Path) -> dict[str, dict[int, Tried]]:
    """Read what the agent has noted, as a stranger's file; what does not parse is as if it were not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InstallFailed(f"{path} is no file", subject=str(path))
            document = json.loads(file.read(MAX_OUTCOMES))
        return {
            name: {int(number): _tried(one) for number, one in noted.items()}
            for name, noted in document.items()
            if CERTIFICATE_NAME.fullmatch(name)
        }
    except FileNotFoundError:
        return {}
    except (OSError, CertfanError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.get("boot").warning("outcomes.unreadable", problem=f"{type(error).__name__}: {error}")
        return {}


def _tried(document: Mapping[str, str]) -> Tried:
    at = datetime.fromisoformat(document["at"])
    return Tried(document["state"], at if at.tzinfo else at.replace(tzinfo=UTC))
