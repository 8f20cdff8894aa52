"""What every test may use: figures that are worth reading although it passed, and who runs beside whom."""

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

PROJECT = Path(__file__).parents[1]
# Unit tests that take five seconds or more.
LONG = frozenset(
    f"tests/unit/test_{name}.py"
    for name in (
        *("apply", "ca_rotation", "channel_fleet", "cli", "cli_following", "own_keys"),
        *("share", "share_audit", "share_worker", "swap_cuts", "world"),
    )
)


gc.disable()  # until all tests are collected: what they bring stays to the end, and is looked through for nothing


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: a quarter of a million objects, a twentieth of the tests' time."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what keeps a line for the end of the run: seeds, ratios, how often a sweep struck."""
    return lambda line: request.node.user_properties.append(("said", line))


@pytest.fixture(autouse=True)
def _logs_as_ever() -> Iterator[None]:
    """Undo what a command that ran in this process did to the logs: its stderr is closed by now."""
    yield
    structlog.reset_defaults()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have said, in whichever process they ran."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    lines = [line for one in reports for what, line in one.user_properties if what == "said"]
    if lines:
        terminalreporter.section("said")
        for line in lines:
            terminalreporter.write_line(line)


class _Together(LoadScopeScheduling):
    """Each file in one process, and all files on the one fleet in the same: bringing it up costs half a minute."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "fleet" if _is_on_the_fleet(file) else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Give what takes long first: at the end short files keep every process at work to the same moment."""
        self.workqueue.move_to_end(min(self.workqueue, key=_turn), last=False)
        super()._assign_work_unit(node)


def _turn(scope: str) -> int:
    """Lower is earlier; of the same turn, what has more tests is first, as ever."""
    if scope == "fleet":
        return 0
    return 1 if scope in LONG or scope.startswith("tests/real/") else 2


@functools.cache
def _is_on_the_fleet(file: str) -> bool:
    path = PROJECT / file
    return path.parent.name == "real" and "(fleet: Fleet" in path.read_text().replace("\n    ", "")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Have pytest-xdist keep together what belongs together, with whichever `--dist`."""
    return _Together(config, log)
