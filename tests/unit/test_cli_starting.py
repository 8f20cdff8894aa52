"""`certfan init` and `certfan completion`: the first minutes at a new command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from certfan.cli.first_config import Answers, first_config
from certfan.daemon.config.loading import load
from tests.unit.command import CLEAN, certfan
from tests.unit.status_parts import Admin, control_socket

ALL = ("--fleet", "home", "--address", "192.0.2.1", "--share", "/srv/le", "--authority", "letsencrypt")


def answers(**changes: Any) -> Answers:
    usual: dict[str, Any] = {
        "fleet": "home",
        "address": "192.0.2.1",
        "share": "/srv/le",
        "mount": True,
        "authority": "letsencrypt",
        "contact": "me@example.org",
        "consumers": ("web1=192.0.2.5", "mail1"),
        "certificates": (("www.example.org", "example.org"), ("mail.example.org",)),
    }
    return Answers(**(usual | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"consumers": (), "certificates": ()},
        {"authority": "letsencrypt-staging", "contact": ""},
        {"authority": "https://ca.int:14000/dir", "mount": False},
        {"address": "fd00::1", "share": '/srv/"le" \\ x'},
    ],
)
def test_a_first_config_is_a_good_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whatever was answered stands in it as it was typed."""
    told = answers(**changes)
    path = tmp_path / "certfan.toml"
    path.write_text(first_config(told))
    config = load(path)

    assert (told.fleet, Path(told.share), told.mount) == (
        config.fleet,
        config.share.path,
        config.share.require_mount,
    )
    assert {one.partition("=")[0] for one in told.consumers} == config.desired.consumers.keys()
    assert {one[0] for one in told.certificates} == config.desired.certificates.keys()
    assert told.address == config.http01[0].host


def test_every_setting_of_a_first_config_has_a_comment() -> None:
    """A newcomer reads the file, not the manual."""
    sections = first_config(answers()).split("\n\n")

    assert [] == [one for one in sections if one.strip() and "#" not in one and "staging" not in one]


def test_init_writes_a_config_and_says_what_comes_next(tmp_path: Path) -> None:
    """With --yes nothing is asked; what the machine lacks is told, and the commands that follow."""
    path = tmp_path / "etc" / "certfan.toml"
    words = ("--consumer", "web1", "--names", "www.example.org,example.org", "--config", str(path))
    done = certfan("init", "--yes", *ALL, *words)
    check = certfan("check", "--config", str(path))

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"{path} is written, and good\n")
    assert "bad   share        /srv/le is not mounted" in done.stdout
    assert f"  certfan consumer add web1 --config {path}" in done.stdout.splitlines()
    assert (0o644, 0) == (path.stat().st_mode & 0o7777, check.returncode)


def test_init_never_overwrites(tmp_path: Path) -> None:
    """A config that is there is somebody's work."""
    path = tmp_path / "certfan.toml"
    path.write_text("fleet = 1\n")
    done = certfan("init", "--yes", *ALL, "--config", str(path))

    assert (1, "fleet = 1\n") == (done.returncode, path.read_text())
    assert done.stderr.startswith(f"certfan: error: {path} exists\n")


def test_answers_that_make_no_config_write_none(tmp_path: Path) -> None:
    """The problem names the setting, as `check` would."""
    path = tmp_path / "certfan.toml"
    words = ("--fleet", "No Fleet", "--address", "cert.int", "--config", str(path))
    done = certfan("init", "--yes", *words)

    assert (78, False) == (done.returncode, path.exists())
    assert "fleet: " in done.stderr
    assert "http01.listen" in done.stderr


def test_init_asks_for_what_no_option_says(tmp_path: Path) -> None:
    """Enter takes the default; questions are on stderr, and the terms are asked for last."""
    path = tmp_path / "certfan.toml"
    typed = "web1\nwww.example.org\nmyfleet\n\n\n\nme@example.org\ny\n"
    done = certfan("init", "--json", "--config", str(path), stdin=typed)
    refused = certfan("init", "--config", str(tmp_path / "x"), stdin="web1\n\n\n\n\n\n\nn\n")
    config = load(path)

    assert (0, str(path)) == (done.returncode, json.loads(done.stdout)["config"])
    assert ("myfleet", ("mailto:me@example.org",)) == (
        config.fleet,
        config.desired.authorities["letsencrypt"].contact,
    )
    assert (1, False) == (refused.returncode, (tmp_path / "x").exists())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str) -> None:
    """It calls us back in that shell's own way."""
    done = certfan("completion", shell)

    assert 0 == done.returncode
    assert f"_CERTFAN_COMPLETE={shell}_complete" in done.stdout


def completed(*words: str) -> list[str]:
    env = {**CLEAN, "_CERTFAN_COMPLETE": "bash_complete"}
    env |= {"COMP_WORDS": " ".join(("certfan", *words)), "COMP_CWORD": str(len(words))}
    script = "import sys; sys.argv[0] = 'certfan'; from certfan.cli import main; main(prog_name='certfan')"
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


async def test_commands_and_names_are_completed(tmp_path: Path) -> None:
    """Names are those that the running daemon knows; without it there are none, and no error."""
    async with control_socket(tmp_path, Admin()) as config:
        names = await asyncio.to_thread(completed, "renew", "--config", str(config), "w")

    assert ["why"] == completed("wh")
    assert ["www.test"] == names
    assert [] == completed("renew", "--config", str(config), "w")
