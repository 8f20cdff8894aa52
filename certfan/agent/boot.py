"""Before the services start: every pair they name is there and matches. No network, no share, no reload.

For each certificate: what was last proven, else the newest that has not failed, else a placeholder. A service whose
files are missing does not start, and with Apache that takes every other name of the machine with it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

from certfan import files, log, pki
from certfan.agent import config as agent_config
from certfan.agent.apply import lock_path
from certfan.agent.config import AgentConfig
from certfan.agent.forms import Layout
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
    outcomes = _outcomes(config.outcomes)
    live: dict[str, int] = {}
    for name in sorted({*installer.names(), *outcomes, *config.literal_names}):
        if monotonic() > deadline:
            logger.error("boot.cut_short", certificate=name, hint="run: certfan agent boot")
            return live
        try:
            laid = _lay(config, installer, name, outcomes.get(name, {}), clock())
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


def _lay(
    config: AgentConfig, installer: Installer, name: str, tried: Mapping[int, Tried], now: datetime
) -> Laid:
    current = installer.pointer(name)
    layout = config.layout(name)
    chosen, pair = _best(installer, name, tried, now)
    if chosen is None and current is not None and current.generation == 0:
        chosen, pair = current, installer.read(name, current)
    if chosen is None or pair is None:
        chosen = installer.put_placeholder(name, now, layout)
    else:
        _complete(installer, name, chosen, pair, layout)
    installer.point(name, chosen)
    return chosen


def _complete(installer: Installer, name: str, laid: Laid, pair: pki.Pair, layout: Layout) -> None:
    """Add what a power cut or a change of agent.toml left out; what cannot be added holds up no other service."""
    try:
        installer.complete(name, laid, pair, layout)
    except CertfanError as error:
        log.get("boot").warning("pair.incomplete", certificate=name, problem=error.text, hint=error.hint)


def _best(
    installer: Installer, name: str, tried: Mapping[int, Tried], now: datetime
) -> tuple[Laid, pki.Pair] | tuple[None, None]:
    """Return the first candidate that loads and matches; one that has expired only when no other is left."""
    expired: tuple[Laid, pki.Pair] | None = None
    for laid in _candidates(installer.stored(name), tried):
        pair = installer.read(name, laid)
        if pair is None:
            continue
        if pair.leaf.not_after > now:
            return laid, pair
        expired = expired or (laid, pair)
    return expired or (None, None)


def _candidates(stored: tuple[Laid, ...], tried: Mapping[int, Tried]) -> Iterator[Laid]:
    """Tell generations in the order of trust: proven, the last one first, then untold and trying, the newest first."""
    generations = [laid for laid in stored if laid.generation]
    proven = [laid for laid in generations if _state(laid, tried) == "proven"]
    yield from sorted(proven, key=lambda laid: tried[laid.generation].at, reverse=True)
    yield from (laid for laid in generations if _state(laid, tried) not in {"proven", "failed"})


def _state(laid: Laid, tried: Mapping[int, Tried]) -> str:
    known = tried.get(laid.generation)
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
