"""The house tests: who may import whom, which words are banned, how big a room may be."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "certfan"

GROUND = frozenset(
    {
        "errors",
        "log",
        "files",
        "pki",
        "share_worker",
        "probe",
        "systemd",
        "tls",
        "toml",
        "loop",
        "syslog",
        "log_sender",
    }
)
CORE_STDLIB = frozenset(
    {
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "datetime",
        "enum",
        "functools",
        "ipaddress",
        "itertools",
    }
    | {"math", "operator", "re", "types", "typing"}
)
# Which rooms a room may import, its own aside. `certfan` itself stands for the version.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "protocol": frozenset({"core.model", "errors", "pki"}),
    "daemon": GROUND | {"core", "protocol", "certfan"},
    "agent": GROUND | {"core", "protocol", "certfan"},
    # A wing's composition roots, and the ground floor; a test below holds that it happens lazily.
    "cli": GROUND
    | {
        "certfan",
        "daemon.main",
        "daemon.config",
        "daemon.share.setup",
        "daemon.offline",
        "daemon.backup",
        "daemon.restoring",
        "agent.main",
        "agent.apply",
        "agent.boot",
        "agent.enrolment",
        "agent.config",
        "agent.check",
    }
    | {"core.model", "takeover"},
    "takeover": GROUND | {"core.model"},
    **{room: GROUND | {"certfan"} for room in GROUND},
}
# Inside a wing: main > reconciler > issuer/installer > edges; an edge never imports an edge.
EDGES = {
    "daemon": frozenset(
        {"authority", "challenges", "share", "channel", "status", "store", "state", "config.watch"}
        | {"notifying.command", "notifying.mail"}
    ),
    "agent": frozenset(
        {"link", "shelf", "installer", "reloader", "prober", "privileged", "staging", "record"}
    ),
}
BANNED_NAMES = frozenset(
    {"utils", "util", "common", "helpers", "helper", "base", "manager", "handler", "misc"}
)
AGENT_NEVER_LOADS = (
    "acme",
    "dns",
    "jinja2",
    "josepy",
    "sqlalchemy",
    "alembic",
    "watchfiles",
    "publicsuffixlist",
)


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name below `certfan` and path of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every imported module of a file (absolute), and whether the import stands at module level."""
    return tuple(_imports(path, ast.parse(path.read_text()), at_top=True))


def _imports(path: Path, node: ast.AST, *, at_top: bool) -> Iterator[tuple[str, bool]]:
    """Those inside a node; one inside a function is not at module level."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, at_top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            is_module = inner.startswith("certfan") and _is_module(inner)
            yield (inner if is_module else str(node.module)), at_top
    elif not isinstance(node, ast.expr):  # which holds no import
        at_top = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from _imports(path, child, at_top=at_top)


def _is_module(dotted: str) -> bool:
    path = PROJECT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def ours(dotted: str) -> str | None:
    """The name below `certfan`, `certfan` for the package itself, None for a foreign module."""
    if dotted == "certfan":
        return "certfan"
    return dotted.removeprefix("certfan.") if dotted.startswith("certfan.") else None


def allowed(room: str, target: str) -> bool:
    """Whether `room` may import the module `target`."""
    return any(target == one or target.startswith(one + ".") for one in MAY_IMPORT[room] | {room})


def edge_of(wing: str, name: str) -> str | None:
    """The edge of `wing` that the module `name` belongs to."""
    return next((one for one in EDGES[wing] if f"{name}.".startswith(f"{wing}.{one}.")), None)


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if "." in m[0] or m[0] in GROUND])
def test_a_room_imports_only_what_the_import_law_allows(name: str, path: Path) -> None:
    """Core knows nobody, protocol knows core's nouns, the wings never meet."""
    room = name.split(".", maxsplit=1)[0]

    broken = [target for dotted, _ in imports(path) if (target := ours(dotted)) and not allowed(room, target)]

    assert broken == []


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if m[0].split(".")[0] == "core"])
def test_core_uses_a_short_list_of_the_standard_library(name: str, path: Path) -> None:
    """No asyncio, time, random, os, socket or logging can come into a decision."""
    foreign = {d.split(".")[0] for d, _ in imports(path) if ours(d) is None} - CORE_STDLIB

    assert foreign == set(), name


@pytest.mark.parametrize("wing", ["daemon", "agent"])
def test_an_edge_never_imports_an_edge(wing: str) -> None:
    """Two outside things are joined by the reconciler or the issuer, nowhere else."""
    broken = [
        (name, target)
        for name, path in modules()
        if (edge := edge_of(wing, name))
        for dotted, _ in imports(path)
        if (target := ours(dotted))
        and edge_of(wing, target) not in (None, edge)
        and target != "daemon.store.facts"  # values, not an edge: what is known, as any room may say it
    ]

    assert broken == []


def test_the_command_line_imports_a_wing_only_inside_a_command() -> None:
    """`certfan --help` must not pay for a wing."""
    early = [
        (name, dotted)
        for name, path in modules()
        if name.split(".")[0] == "cli"
        for dotted, at_top in imports(path)
        if at_top
        and (dotted.startswith(("certfan.daemon", "certfan.agent")) or dotted.split(".")[0] == "aiohttp")
    ]

    assert early == []


def test_the_agent_loads_none_of_the_daemons_libraries() -> None:
    """A consumer VM needs only the small half of the dependencies."""
    script = (
        "import sys, certfan.agent.main, certfan.agent.apply\n"
        f"print([m for m in {AGENT_NEVER_LOADS!r} if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_who_never_opens_the_page_does_not_pay_for_its_library() -> None:
    """What renders templates is loaded by the first page, not by the daemon's start."""
    early = [
        name
        for name, path in modules()
        for dotted, at_top in imports(path)
        if at_top and dotted.split(".")[0] in {"jinja2", "markupsafe"}
    ]

    assert early == []


def test_no_room_is_a_lumber_room() -> None:
    """A module is named for the part it plays."""
    assert [name for name, _ in modules() if set(name.split(".")) & BANNED_NAMES] == []
