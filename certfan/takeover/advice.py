"""What must change outside of certfan before the first renewal, in words with the command that helps."""

from __future__ import annotations

from collections.abc import Sequence

from certfan.takeover.servers import Kind, Line
from certfan.takeover.tree import Way

_SNIPPETS = {"apache": "apache", "nginx": "nginx"}


def way_text(way: Way, responder: str) -> str:
    """Return how challenges were answered so far, and what must become of it."""
    snippet = f"certfan snippet {_SNIPPETS.get(way.authenticator, 'apache')}"
    proxy = f"proxy /.well-known/acme-challenge/ to {responder} (run: {snippet})"
    match way.authenticator:
        case "webroot":
            roots = " and ".join(way.webroots) or "a folder"
            return f"challenges were answered out of {roots}: have the vhosts {proxy}"
        case "standalone":
            return f"challenges were answered on port 80 by the program itself: have a web server there {proxy}, or let [http01] listen on port 80"
        case "apache" | "nginx" as server:
            return f"challenges were answered by changing the config of {server} for a moment: have its vhosts {proxy}"
        case "manual":
            return f"challenges were answered by hand or a hook: have the vhosts {proxy}"
        case other:
            return f"names were proven by {other}; certfan proves them over HTTP: have the vhosts {proxy}"


def line_texts(lines: Sequence[Line], responder: str, install_to: str) -> list[str]:
    """Return the lines of servers' configs that are to change, under what they are to become."""
    heads = {
        Kind.PROXY: f"these send challenges elsewhere; let them lead to {responder}:",
        Kind.CHALLENGE: f"these deal with challenges; whatever is asked for there must come to {responder}:",
        Kind.PAIR: f"these load the pairs that were taken over; once certfan-agent has installed its own, name {install_to}/live/CERTIFICATE/:",
    }
    found = []
    for kind, said in heads.items():
        if own := [f"  {line}" for line in lines if line.kind is kind]:
            found += [said, *own]
    return found
