"""What README, tutorial and how-to show is what certfan takes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from certfan.agent import config as agent_config
from certfan.cli import main
from certfan.daemon.config import loading as daemon_config

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
TUTORIAL = (PROJECT / "docs" / "tutorial.md").read_text()
PAGES = README + TUTORIAL + (PROJECT / "docs" / "how-to.md").read_text()


def written(machine: str, folder: Path) -> None:
    """Write the config files that the tutorial has somebody write on a machine."""
    marked = rf"<!-- {machine}: write /etc/certfan/(\S+) -->\n```toml\n(.*?)```"
    for name, text in re.findall(marked, TUTORIAL, re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def commands() -> set[str]:
    """Every certfan command in a shell block or in a sentence, without what is redirected."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines += [
        " ".join(told.split())
        for told in re.findall("`([^`]+)`", re.sub("```.*?```", "", PAGES, flags=re.DOTALL))
    ]
    return {
        line.split(">")[0].strip() for line in lines if line.startswith("certfan ") and "COMMAND" not in line
    }


def test_the_tutorials_configs_are_good(tmp_path: Path) -> None:
    """The daemon's with both names, and both agents'."""
    for machine in ("cert", "web1"):
        (tmp_path / machine).mkdir()
        written(machine, tmp_path / machine)

    config = daemon_config.load(tmp_path / "cert" / "certfan.toml")
    services = {
        machine: [
            one.name
            for one in agent_config.load(tmp_path / machine / "agent.toml", with_systemd=True).services
        ]
        for machine in ("cert", "web1")
    }

    assert list(config.desired.certificates) == ["mail.example.org", "www.example.org"]
    assert services == {"cert": ["postfix", "dovecot"], "web1": ["apache2"]}


@pytest.mark.parametrize("line", sorted(commands()))
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
    makefile = (PROJECT / "Makefile").read_text()

    for target in ("demo", "test", "check", "sweep", "bench"):
        assert f"`make {target}`" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
