"""Nginx. Its reload returns before it is effective, so a first probe may still see the old leaf."""

from certfan.agent.recipes.recipe import Recipe

NGINX = Recipe(
    "nginx",
    unit="nginx.service",
    test=("nginx", "-t"),
    reload=("nginx", "-s", "reload"),
    start=("nginx",),
    active=("pgrep", "-F", "/run/nginx.pid", "nginx"),
    ports={443: "tls"},
)
