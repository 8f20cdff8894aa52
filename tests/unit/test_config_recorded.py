"""Configs of releases before this one: they load, whatever was added since (recorded/config-VERSION)."""

import shutil
from pathlib import Path

import pytest

from certfan.agent.config import load as load_agent
from certfan.daemon.config.loading import load

RECORDED = sorted((Path(__file__).parent / "recorded").glob("config-*"))


@pytest.fixture(params=RECORDED, ids=lambda folder: folder.name)
def laid(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recorded config with the files that it names, in the modes that they must have."""
    place = tmp_path / "etc"
    shutil.copytree(request.param, place)
    for name in ("ca.pem", "roots.pem", "eab.key"):
        (place / name).write_text("x")
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644)
    return place


def test_the_daemon_loads_a_config_of_an_earlier_release(laid: Path) -> None:
    """No key has gone or changed its type, and what it asks for is asked for."""
    config = load(laid / "certfan.toml")

    assert {"letsencrypt", "staging"} <= set(config.desired.authorities)
    assert {"www.example.org", "mail", "pinned"} <= set(config.desired.certificates)
    assert config.desired.certificates["mail"].fallback == ("staging",)


def test_the_agent_loads_a_config_of_an_earlier_release(laid: Path) -> None:
    """The same for agent.toml."""
    config = load_agent(laid / "agent.toml", with_systemd=True)

    assert [service.name for service in config.services] == ["apache2", "postfix", "tomcat"]
