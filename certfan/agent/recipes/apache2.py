"""Apache 2.4. Its reload says 0 on a pair that does not match, and the server is dead: hence test and proof."""

from certfan.agent.recipes.recipe import Recipe

APACHE2 = Recipe(
    "apache2",
    unit="apache2.service",
    test=("apache2ctl", "configtest"),
    reload=("apache2ctl", "graceful"),
    start=("apache2ctl", "start"),
    active=("pgrep", "-F", "/run/apache2/apache2.pid", "apache2"),
    ports={443: "tls"},
)
