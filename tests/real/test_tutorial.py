"""docs/tutorial.md done word for word on the farm: its files are written, its commands run, its promises looked at.

Only what differs between two networks is replaced: addresses, the zone, the authority. What is marked as prepared (packages,
mounts) the farm has in its own way; tests/real/test_debian_packages.py installs the packages.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.farm import Farm
from tests.lab.vm import Vm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
HERE = {
    "192.168.1.1": "10.62.0.10",
    "192.0.2.10": "10.61.0.20",
    "2001:db8::10": "fd61::20",
    "192.0.2.25": "10.61.0.10",
    "2001:db8::25": "fd61::10",
    "example.org": "example.test",
}
OWN_COMMANDS = 10


@dataclass(frozen=True)
class Block:
    """A code block with the remark before it: on which machine, what is done with it, and where."""

    machine: str
    verb: str
    place: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]


def blocks() -> list[Block]:
    found = re.findall(
        r"<!-- (cert|web1): (\w+)(?: ([^\n]*?))? -->\n```\w*\n(.*?)```", TUTORIAL.read_text(), re.DOTALL
    )
    return [Block(*parts) for parts in found]


def test_it_takes_ten_commands_to_a_proven_certificate() -> None:
    """Counted as a newcomer does: every line of a shell block until the first proof."""
    typed: list[str] = []
    for block in blocks():
        if block.verb in {"run", "proven"} or block.place in {"install", "mount"}:
            typed += block.commands
        if block.verb == "proven":
            break

    assert len(typed) == OWN_COMMANDS, typed


class Follower:
    """Whoever does what the tutorial says."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._line = ""

    def translate(self, text: str) -> str:
        for theirs, ours in HERE.items():
            text = re.sub(
                rf"(?<![\w.:]){re.escape(theirs)}(?![\d])" if theirs[0].isdigit() else re.escape(theirs),
                ours,
                text,
            )
        trust = 'ca_file = "pebble.pem"\nroots_file = "roots.pem"\nagree_to_terms = true'
        text = text.replace("agree_to_terms = true", trust)
        text = text.replace("https://acme-v02.api.letsencrypt.org/directory", self._farm.pebble.directory_url)
        return text.replace("certfan1:...", self._line)

    def follow(self, block: Block) -> None:
        vm = {"cert": self._farm.cert, "web1": self._farm.web1}[block.machine]
        text = self.translate(block.text)
        match block.verb:
            case "write":
                vm.run(["mkdir", "-p", str(Path(block.place).parent)])
                vm.run(
                    ["sh", "-c", f"cat > {block.place}.new && mv {block.place}.new {block.place}"], input=text
                )
            case "run" | "edit":
                for command in block.commands:  # one may print what the next one needs
                    self._run(vm, self.translate(command))
            case "proven":
                self._wait_until_proven(vm, self.translate(block.place), text.strip())

    def _run(self, vm: Vm, command: str) -> None:
        said = vm.run(["sh", "-c", command], timeout=120).stdout
        if found := re.search(r"certfan1:\S+", said):
            self._line = found[0]
        if command == "certfan share setup":
            self._farm.mount_consumers()

    def _wait_until_proven(self, vm: Vm, name: str, command: str) -> None:
        argv = ["certfan", "status", "--json"]

        def proven() -> bool:
            page = json.loads(vm.run(argv, check=False).stdout or "{}")
            return any(one["name"] == name and one["state"] == "ok" for one in page.get("certificates", ()))

        try:
            machine.wait_until(proven, f"{name} to be proven", 120)
        except machine.NotInTime as why:
            raise AssertionError(f"{why}\n{vm.run(['certfan', 'status'], check=False).stdout}") from why
        assert name in vm.run(["sh", "-c", command], check=False).stdout


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm(say=print).up(hooks={"cert": _trust}, sites=()) as farm:
        for name, file in (("pebble", farm.pebble.ca_file), ("roots", farm.pebble.roots_file)):
            farm.cert.run(["tee", f"/etc/certfan/{name}.pem"], input=file.read_text())
        yield farm


def _trust(root: Path) -> None:
    (root / "etc/certfan").mkdir(parents=True, exist_ok=True)


def test_what_the_tutorial_says_is_what_happens(farm: Farm) -> None:
    """Every block in its order: both certificates end proven, and Apache and Postfix serve them to a stranger."""
    follower = Follower(farm)
    for block in blocks():
        if block.verb != "prepared":
            follower.follow(block)

    roots = str(farm.pebble.roots_file)
    for connect, name, words in (
        ("10.61.0.20:443", "www.example.test", []),
        ("[fd61::20]:443", "www.example.test", []),
        ("10.61.0.10:25", "mail.example.test", ["-starttls", "smtp"]),
    ):
        argv = ["openssl", "s_client", "-connect", connect, "-servername", name, "-verify_hostname", name]
        shown = farm.ca.run([*argv, "-CAfile", roots, *words], input="", check=False, timeout=30).stdout
        assert "Verify return code: 0 (ok)" in shown, (connect, shown[-500:])
