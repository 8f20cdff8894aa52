"""What certfan knows about the services it reloads: one file a service, all of it overridable in agent.toml."""

from __future__ import annotations

from collections.abc import Mapping

from certfan.agent.recipes.apache2 import APACHE2
from certfan.agent.recipes.dovecot import DOVECOT
from certfan.agent.recipes.haproxy import HAPROXY
from certfan.agent.recipes.nginx import NGINX
from certfan.agent.recipes.postfix import POSTFIX
from certfan.agent.recipes.recipe import Argv, Recipe

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe for recipe in (APACHE2, DOVECOT, HAPROXY, NGINX, POSTFIX)
}

__all__ = ["RECIPES", "Argv", "Recipe"]
