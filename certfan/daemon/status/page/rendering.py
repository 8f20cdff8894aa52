"""From values to HTML: the templates, and the files beside them under names that change with their contents.

Every value is escaped where it is put in, and nothing in it can hide or turn a line around: names come from the
config, but texts come from authorities, agents and whoever answers at an endpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from importlib import resources
from typing import Any

from certfan import __version__, log
from certfan.daemon.status.page import words
from certfan.daemon.status.page.matrix import Cell

_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "ok.svg": "image/svg+xml",
    "working.svg": "image/svg+xml",
    "problem.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that a browser may keep for ever: another content has another name."""

    name: str
    content_type: str
    body: bytes


@cache
def assets() -> Mapping[str, Asset]:
    """Return every file by its plain name."""
    return {name: _asset(name, content_type) for name, content_type in _FILES.items()}


def _asset(name: str, content_type: str) -> Asset:
    body = _folder().joinpath("static", name).read_bytes()
    stem, _, ending = name.partition(".")
    return Asset(f"{stem}.{hashlib.sha256(body).hexdigest()[:16]}.{ending}", content_type, body)


def render(template: str, *, now: datetime, **values: Any) -> str:
    """Return one page. Should key material have come that far, it is replaced."""
    text = (
        _environment()
        .get_template(template)
        .render(
            now=now,
            data=_data(now),
            day=partial(_day, now),
            when=partial(_when, now),
            ago=partial(_relative, now),
            **values,
        )
    )
    return str(log.redact(text))


@cache
def _environment() -> Any:
    import jinja2  # whoever never opens the page need not load it

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(
        asset={name: f"/static/{one.name}" for name, one in assets().items()}, version=__version__
    )
    environment.filters.update(
        said=words.said,
        counted=words.counted,
        absolute=words.absolute,
        iso=words.iso,
        command=words.command,
        tone=words.tone,
        lateness=words.LATENESS.__getitem__,
        span=words.span,
        grouped=lambda text: " ".join(text[i : i + 4] for i in range(0, len(text), 4)),
    )
    return environment


def _folder() -> Any:
    return resources.files("certfan.daemon.status.page")


def _source(name: str) -> str:
    return str(_folder().joinpath("templates", name).read_text(encoding="utf-8"))


def _finalize(value: Any) -> Any:
    """What is no HTML of ours is text, also what only becomes one here: an endpoint is spelled by its agent."""
    return value if hasattr(value, "__html__") else words.visible(str(value))


def _when(now: datetime, at: datetime | None) -> Any:
    """Return an instant in both forms, the absolute one last."""
    from markupsafe import Markup

    if at is None:
        return "-"
    said = words.iso(at), words.relative(at, now), words.absolute(at)
    return Markup('<time datetime="%s">%s <small>%s UTC</small></time>') % said


def _day(now: datetime, at: datetime) -> Any:
    """Return both forms where a day says enough and a line has no room for more."""
    from markupsafe import Markup

    said = words.iso(at), words.relative(at, now), words.absolute(at)[:10]
    return Markup('<time datetime="%s">%s <small>%s</small></time>') % said


def _data(now: datetime) -> Callable[[Cell | None], Any]:
    """Return what makes a cell of the matrix; most of thousands are alike, so each kind is made once."""
    from markupsafe import Markup

    known: dict[Cell | None, Any] = {None: Markup('<td class="none"></td>')}
    shape = Markup('<td class="%s" data-consumer="%s">%s <b>%s</b>%s</td>')
    late = Markup(" <small>due %s</small>")

    def data(cell: Cell | None) -> Any:
        html = known.get(cell)
        if html is None:
            assert cell is not None
            due = late % _relative(now, cell.by) if cell.by else ""
            html = known[cell] = shape % (cell.tone, cell.consumer, cell.text, cell.count, due)
        return html

    return data


def _relative(now: datetime, at: datetime) -> Any:
    """Return the near form alone, where a table says the other one once."""
    from markupsafe import Markup

    return Markup('<time datetime="%s">%s</time>') % (words.iso(at), words.relative(at, now))
