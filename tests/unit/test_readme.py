"""What the README shows is what certfan takes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from certfan.agent import config as agent_config
from certfan.cli import main
from certfan.daemon.config import loading as daemon_config

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Every code block of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every certfan command in a shell block or a row of a table, without its arguments' values."""
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    lines += [told for row in README.splitlines() if row[:1] == "|" for told in re.findall("`([^`]+)`", row)]
    return [line.split(">")[0].strip() for line in lines if line.startswith("certfan ")]


def test_its_configs_are_good(tmp_path: Path) -> None:
    """The daemon's, the agent's, and the file that adds a name."""
    daemon, agent = blocks("toml")
    added = re.search(r"<<'EOF'\n(.*?)EOF", README, re.DOTALL)
    assert added
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "certfan.toml").write_text(daemon)
    (tmp_path / "conf.d" / "www.toml").write_text(added[1])
    (tmp_path / "agent.toml").write_text(agent)

    config = daemon_config.load(tmp_path / "certfan.toml")
    services = agent_config.load(tmp_path / "agent.toml", with_systemd=True).services

    assert list(config.desired.certificates) == ["www.example.org"]
    assert [service.name for service in services] == ["apache2"]


@pytest.mark.parametrize("line", commands())
def test_its_commands_exist(line: str) -> None:
    """Each word up to the first argument is a command of ours."""
    command: click.Command = main
    for word in line.split()[1:]:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, word
        command = found

    assert not isinstance(command, click.Group)


def test_it_names_both_commands_of_the_project() -> None:
    """One runs the main job, one passes the tests."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()

    for target in ("demo", "test", "check", "sweep", "bench"):
        assert f"`make {target}`" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
