"""How commands say what they found: as text or JSON, in colour or not, and how far long work has come."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from certfan.cli.lines.progress import bar

_T = TypeVar("_T")


def say(answer: Any, text: str, as_json: bool) -> None:
    """Print an answer in the form that was asked for."""
    click.echo(json.dumps(answer) if as_json else text)


def utc_now() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


def in_colour() -> bool:
    """Whether stdout is a terminal whose owner does not mind colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield how to say how far something has come: in place on a terminal, a line each elsewhere; never on stdout.

    What was said last makes way for what comes after.
    """
    in_place = sys.stderr.isatty()

    def tell(line: str) -> None:
        click.echo(f"{line}\x1b[K\r" if in_place else f"{line}\n", nl=False, err=True)

    try:
        yield tell
    finally:
        if in_place:
            click.echo("\x1b[K", nl=False, err=True)


@contextlib.contextmanager
def counting(what: str, of: int) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each of so many, which says on a terminal how far that is."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            tell(f"{what}: {bar(done, of)} {done} of {of}")

    with progress() as tell:
        yield step


def counted(what: str, those: Sequence[_T]) -> Iterator[_T]:
    """Yield each of those, and say on a terminal how far that is."""
    with counting(what, len(those)) as step:
        for one in those:
            yield one
            step()
