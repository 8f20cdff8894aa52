"""What `certfan plan` says. JSON in, lines out; no clock, no terminal."""

from __future__ import annotations

from collections.abc import Iterator

from certfan.cli.lines.columns import Json, clean, instant, when_said


def plan_lines(plan: Json, *, colour: bool = False) -> list[str]:
    """Return a line for each thing that is to be done, in the order in which one follows from another."""
    import click

    lines = [*_difference(plan["difference"])] if plan["difference"] else []
    doing = [*_orders(plan), *_publications(plan), *_reloads(plan), *_steps(plan)]
    width = max((len(verb) for verb, _, _ in doing), default=0)
    for verb, told, held in doing:
        word = verb.ljust(width)
        lines.append(f"{click.style(word, fg='cyan') if colour else word}  {clean(told)}")
        lines += [f"{' ' * width}  waits: {clean(held)}"] if held else []
    if not doing:
        lines.append("nothing is to be done")
    return [*lines, *_upcoming(plan)]


_Line = tuple[str, str, str]


def _difference(found: Json) -> Iterator[str]:
    for key, word in (("added", "new"), ("changed", "changed"), ("removed", "no longer")):
        yield from (f"config: {word} certificate {clean(name)}" for name in found[key])
    for key, word in (("consumers_added", "new"), ("consumers_removed", "no longer")):
        yield from (f"config: {word} consumer {clean(name)}" for name in found[key])
    if not any(found.values()):
        yield "config: asks for what the one in force does"


def _orders(plan: Json) -> Iterator[_Line]:
    for one in plan["orders"]:
        names = " ".join(one["identifiers"])
        told = f"{one['certificate']} ({names}) at {one['authority']}: {one['reason']}"
        yield "order", told + _now(one), _held(one, plan)


def _publications(plan: Json) -> Iterator[_Line]:
    for one in plan["publications"]:
        what = (
            f"{one['certificate']}@{one['generation']}"
            if one["generation"]
            else f"{one['certificate']}, when it is there,"
        )
        yield "publish", f"{what} for {one['consumer']}" + _now(one), _held(one, plan)


def _reloads(plan: Json) -> Iterator[_Line]:
    for one in plan["reloads"]:
        services = ", ".join(one["services"]) or "services (none reported yet)"
        certificates = ", ".join(one["certificates"])
        yield "reload", f"{services} on {one['consumer']} for {certificates}: {', '.join(one['reasons'])}", ""


def _steps(plan: Json) -> Iterator[_Line]:
    for one in plan["steps"]:
        yield one["step"], f"{one['subject']}: {one['reason']}" + _now(one), ""


def _now(one: Json) -> str:
    return ", under way" if one["under_way"] else ""


def _held(one: Json, plan: Json) -> str:
    held, now = one["held"], instant(plan["now"])
    assert now is not None
    if not held:
        return ""
    return f"{held['why']}{', until ' + when_said(held['until'], now) if held['until'] else ''}"


def _upcoming(plan: Json) -> Iterator[str]:
    now = instant(plan["now"])
    assert now is not None
    for one in plan["upcoming"]:
        yield f"next by itself: renew {clean(one['certificate'])} {when_said(one['at'], now)}"
