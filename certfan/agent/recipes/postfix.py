"""Postfix. Whenever one of its processes starts it reads the pair anew, so the pair on disk must always match.

Debian's `postfix.service` is an empty shell that is active whatever happens; the instance `postfix@-` is the real one.
"""

from certfan.agent.recipes.recipe import Recipe

POSTFIX = Recipe(
    "postfix",
    unit="postfix@-.service",
    test=("postfix", "check"),
    reload=("postfix", "reload"),
    start=("postfix", "start"),
    active=("postfix", "status"),
    ports={25: "smtp", 465: "tls", 587: "smtp"},
)
