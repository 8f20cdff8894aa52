"""A real daemon that tells a real program of what changes, over a restart and a kill."""

import json
from pathlib import Path

import pytest

from tests.real.daemon_place import Place, authority, certificate

pytestmark = pytest.mark.real

TELL = """#!/bin/sh
# One file a message; a name that is not there yet.
cat > "$1/.new" && mv "$1/.new" "$1/$(date +%s%N)"
"""


def messages(box: Path) -> list[Path]:
    """What the program has kept, in order."""
    return sorted(box.glob("[0-9]*"))


def told(box: Path) -> list[tuple[str, str]]:
    """What the program was told, in order."""
    bodies = [json.loads(path.read_text()) for path in messages(box)]
    return [(one["stage"], one["subject"]) for body in bodies for one in body["changes"]]


def test_what_changes_is_told_once_over_a_restart_and_a_kill(daemons: Place, tmp_path: Path) -> None:
    """An order fails, the daemon is restarted and killed, the order passes: one message of each, and a test between."""
    ca, box = daemons.faulty(), tmp_path / "box"
    box.mkdir()
    tell = tmp_path / "tell"
    tell.write_text(TELL)
    tell.chmod(0o755)
    ca.behaviour.blocked = ("b.test",)
    notify = f'[notify]\ngather = "0s"\n[notify.exec.box]\ncommand = ["{tell}", "{box}"]\n'
    with daemons.running(notify, authority("ca", ca), certificate("b.test")) as daemon:
        daemon.failure("b.test")
        daemon.wait(lambda: ("problem", "b.test") in told(box), "the problem to be told", 90)
        # What was sent and is not yet written down as such may be sent again.
        daemon.wait(lambda: len(daemon.events("notification.sent")) == len(messages(box)), "that to be kept")
        daemon.restart()
        daemon.kill()
        daemon.start()
        assert daemon.certfan("notify", "test", "box").strip() == "box: ok"
        ca.behaviour.blocked = ()
        daemon.renew("b.test")
        daemon.issued("b.test")
        daemon.wait(lambda: ("recovered", "b.test") in told(box), "the recovery to be told", 90)
        everything = told(box)

    assert [one for one in everything if one[1] == "b.test"] == [
        ("problem", "b.test"),
        ("recovered", "b.test"),
    ]
    assert len(everything) == len(set(everything))
