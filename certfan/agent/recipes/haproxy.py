"""HAProxy. Its reload tells the master process, which returns at once; a config that fails leaves the old workers."""

from certfan.agent.recipes.recipe import Recipe

HAPROXY = Recipe(
    "haproxy",
    unit="haproxy.service",
    test=("haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"),
    reload=("pkill", "-USR2", "-F", "/run/haproxy.pid", "haproxy"),
    start=("haproxy", "-W", "-D", "-f", "/etc/haproxy/haproxy.cfg", "-p", "/run/haproxy.pid"),
    active=("pgrep", "-F", "/run/haproxy.pid", "haproxy"),
    ports={443: "tls"},
    output="pem",
)
