"""The main job on real parts, told as it happens: from a name in certfan.toml to every endpoint proven.

Every line of the timeline is an event of the daemon's own journal; every proof is confirmed by openssl.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from tests.lab import machine
from tests.lab.fleet import NAME, Fleet, Seen

PATIENCE = 60.0  # seconds for a generation to be proven everywhere
WORDS = {
    "config.taken": "config seen",
    "order.created": "order",
    "challenge.fetched": "challenge answered",
    "generation.issued": "issued",
    "generation.published": "published",
    "generation.offered": "offered",
    "deployment.installed": "installed",
    "deployment.reloaded": "reloaded",
    "endpoint.proven": "PROVEN",
    "renewal.asked": "renewal asked for",
}
DETAILS = ("consumer", "through", "endpoint", "serial")


class Place(Protocol):
    """Where the job runs."""

    mode: str
    omitted: tuple[str, ...]
    status_url: str
    endpoints: tuple[Seen, ...]

    def up(self, *, keep: bool = False) -> object: ...
    def down(self) -> None: ...
    def add_certificate(self) -> None: ...
    def renew(self) -> None: ...
    def events(self, after: int) -> Sequence[Mapping[str, Any]]: ...
    def certificate(self) -> Mapping[str, Any]: ...
    def serial(self, endpoint: Seen) -> str: ...
    def logs(self) -> str: ...


class NotProven(Exception):
    """The demo's failure: names what is missing."""


def main() -> int:
    """Run the demo; 0 when every endpoint was proven twice and openssl agreed."""
    arguments = _arguments()
    place = _place(arguments.mode)
    print(f"mode={place.mode}" + "".join(f"\n  left out: {one}" for one in place.omitted), flush=True)
    began = time.monotonic()
    place.up(keep=arguments.keep)
    print(
        f"everything stands after {time.monotonic() - began:.1f} s; the config has no certificate yet\n",
        flush=True,
    )
    try:
        story = Story(place)
        story.tell(place.add_certificate, generation=1)
        print("\nnow a renewal is forced", flush=True)
        story.tell(place.renew, generation=2)
        print(
            f"\nstatus: {place.status_url}/api/v1/status   (total {time.monotonic() - began:.1f} s)",
            flush=True,
        )
    except (NotProven, machine.NotInTime) as error:
        print(f"\nFAILED: {error}\n{place.logs()}", file=sys.stderr, flush=True)
        return 1
    finally:
        if not arguments.keep:
            place.down()
    if arguments.keep:
        print(_how_to_look(place))
    return 0


class Story:
    """Follows the journal and prints what the admin wants to know."""

    def __init__(self, place: Place) -> None:
        self._place = place
        known = place.events(-1)
        self._last = max((int(event["id"]) for event in known), default=0)
        self._began: datetime | None = None
        self._before: datetime | None = None

    def tell(self, begin: Any, *, generation: int) -> None:
        """Do `begin`, print the timeline until all endpoints serve that generation, and confirm each by openssl.

        Raises:
            NotProven: naming the endpoints that lack it.
        """
        self._began = self._before = None
        before = time.monotonic()
        begin()
        deadline = before + PATIENCE
        while not self._all_proven(generation):
            self._print_news()
            if time.monotonic() > deadline:
                raise NotProven(f"{NAME}@{generation} is not proven: {', '.join(self._missing(generation))}")
            time.sleep(0.1)
        self._print_news()
        self._confirm()
        print(
            f"{NAME}@{generation} proven everywhere {time.monotonic() - before:.1f} s after it was asked for",
            flush=True,
        )

    def _print_news(self) -> None:
        news = self._place.events(self._last)
        self._last = max((int(event["id"]) for event in news), default=self._last)
        # An agent's word reaches the journal later than what it speaks of.
        for event in sorted(news, key=lambda event: str(event["at"])):
            at = datetime.fromisoformat(event["at"])
            self._began = self._began or at
            since, between = (at - then for then in (self._began, self._before or at))
            if word := WORDS.get(event["name"]):
                fields = event["fields"]
                details = "  ".join(str(fields[key]) for key in DETAILS if key in fields)
                seconds = f"{since.total_seconds():6.2f} s {between.total_seconds():+6.2f}"
                print(f"  {seconds}  {word:<19} {event['subject']:<16} {details}", flush=True)
                self._before = at
            elif event["name"].endswith((".failed", ".problem", ".lost")):
                print(f"           {event['name']} {event['subject']} {event['fields']}", flush=True)

    def _all_proven(self, generation: int) -> bool:
        view = _quietly(self._place)
        return view.get("generation") == generation and not self._lacking(view)

    def _lacking(self, view: Mapping[str, Any]) -> list[str]:
        rows = view.get("endpoints", [])
        lacking = [_row_text(row) for row in rows if row["verdict"] != "proven"]
        return lacking if rows else ["no endpoint was reported"]

    def _missing(self, generation: int) -> list[str]:
        view = _quietly(self._place)
        if view.get("generation") != generation:
            problem = view.get("problem") or {}
            return [f"not issued ({problem.get('detail', 'no problem known')}; {problem.get('hint', '')})"]
        return self._lacking(view)

    def _confirm(self) -> None:
        """Dial every endpoint with openssl and compare."""
        wanted = self._place.certificate()["serial"]
        for endpoint in self._place.endpoints:
            seen = self._place.serial(endpoint)
            if seen != wanted:
                raise NotProven(
                    f"openssl sees serial {seen or 'nothing'} at {endpoint.label}, status says {wanted}"
                )
            print(f"  openssl agrees     {endpoint.label:<28} serial {seen}", flush=True)


def _row_text(row: Mapping[str, Any]) -> str:
    where = row["endpoint"]["url"] if row["endpoint"] else "no endpoint reported"
    return (
        f"{row['consumer']} {where}: {row['verdict']} ({(row['problem'] or {}).get('detail', row['reason'])})"
    )


def _quietly(place: Place) -> Mapping[str, Any]:
    """Return the certificate's page, or nothing while the daemon does not know it yet."""
    try:
        return place.certificate()
    except (machine.CommandFailed, KeyError, ValueError):
        return {}


def _place(mode: str) -> Place:
    missing = machine.capabilities()
    if mode == "full" and missing:
        sys.exit("mode=full is not to be had here:\n  " + "\n  ".join(missing))
    if missing or mode == "loopback":
        from tests.lab.loopback import Loopback

        return Loopback(print, missing)
    return Fleet(print)


def _how_to_look(place: Place) -> str:
    if isinstance(place, Fleet):
        prefix = place.farm.lab.prefix
        run = f".venv/bin/python -m tests.lab.farm exec {prefix}"
        return (
            f"left running:\n  {run} cert certfan status\n  {run} cert curl -s {place.status_url}/api/v1/status"
            f"\nto end it: .venv/bin/python -m tests.lab.farm down {prefix}"
        )
    return f"left running: certfan status, or curl -s {place.status_url}/api/v1/status"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--mode", choices=("auto", "full", "loopback"), default="auto")
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
