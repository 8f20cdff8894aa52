"""The two ways of telling, against a real program and a real mail server, and how the config names them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope

from certfan.daemon.config import loading
from certfan.daemon.config.notify import CommandChannel, MailChannel
from certfan.daemon.listeners import Listener
from certfan.daemon.notifying import command, mail
from certfan.daemon.notifying.message import message
from certfan.daemon.notifying.notices import Notice, Stage
from certfan.daemon.status import app
from certfan.daemon.status.control.notify import notify_routes
from certfan.errors import NotifyFailed
from tests.unit.status_parts import DOORS, NOW, Admin
from tests.unit.test_config import MAIN, problems_of, write

EVIL = "it said $(touch /tmp/x) `id` \u00e4 \"'; rm -rf /"
NEWS = (Notice(Stage.PROBLEM, "www.test", "order.failed", EVIL, "run: certfan why www.test", NOW, None),)
TOLD = message("example", NOW, "abc123", NEWS, summary="0 of 1 proven")
# By a program


def program(folder: Path, script: str, *words: str, timeout: float = 30) -> CommandChannel:
    path = folder / "tell"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return CommandChannel(name="chat", argv=(str(path), *words), timeout=timedelta(seconds=timeout))


async def test_a_program_gets_json_on_its_stdin_and_nothing_else(tmp_path: Path) -> None:
    """Its words are the config's, unparsed; the environment is bare; what it says is let go."""
    script = f'cat > {tmp_path}/stdin; printf "%s|" "$@" > {tmp_path}/argv; env > {tmp_path}/env; yes | head -c 300000'
    os.environ["CERTFAN_TEST_CANARY"] = "in our environment"
    try:
        await command.run(program(tmp_path, script, "--to", "a b; $(id)"), TOLD)
    finally:
        del os.environ["CERTFAN_TEST_CANARY"]

    told = json.loads((tmp_path / "stdin").read_text())
    assert (told["version"], told["fleet"], told["id"], told["test"]) == (1, "example", "abc123", False)
    assert [(one["stage"], one["subject"], one["detail"]) for one in told["changes"]] == [
        ("problem", "www.test", EVIL)
    ]
    assert (tmp_path / "argv").read_text() == "--to|a b; $(id)|"
    assert "CANARY" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo the door is locked >&2; exit 3", "ended with 3: the door is locked"),
        ("kill -9 $$", "ended with -9"),
        ("exec sleep 600", "took longer than 0.5 s and was killed"),
    ],
)
async def test_a_program_that_fails_says_why(tmp_path: Path, script: str, expected: str) -> None:
    """With the end of what it said, and a command to try it."""
    with pytest.raises(NotifyFailed) as failed:
        await command.run(program(tmp_path, script, timeout=0.5 if "sleep" in script else 30), TOLD)

    assert expected in failed.value.text
    assert failed.value.hint == "run: certfan notify test chat"


async def test_what_a_program_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    """A child in the background that holds its output makes nobody wait, and does not stay."""
    begun = time.monotonic()
    await command.run(program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; cat > /dev/null"), TOLD)

    assert time.monotonic() - begun < 25
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.01)


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No traceback: a file that cannot be run."""
    channel = CommandChannel(name="chat", argv=(str(tmp_path / "gone"),), timeout=timedelta(seconds=5))

    with pytest.raises(NotifyFailed, match="gone cannot be run: No such file"):
        await command.run(channel, TOLD)


# By mail


class Box:
    """Where mail arrives."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Envelope, address: str, _: Any) -> str:  # noqa: N802
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return "250 OK"


class Post:
    """A mail server with a certificate of a CA of its own, and a user whose password is in a file."""

    def __init__(self, folder: Path) -> None:
        self.box, self.ca = Box(), trustme.CA()
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert("localhost").configure_cert(self.tls)
        self.ca_file, self.password = folder / "ca.pem", folder / "password"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.password.write_text("open sesame\n")

    @contextlib.asynccontextmanager
    async def open(self, tls: str) -> AsyncIterator[MailChannel]:
        def server() -> SMTP:
            return SMTP(
                self.box,
                hostname="localhost",
                tls_context=self.tls if tls == "starttls" else None,
                require_starttls=tls == "starttls",
                auth_required=tls != "off",
                auth_require_tls=tls == "starttls",
                authenticator=self._knows,
            )

        context = self.tls if tls == "implicit" else None
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
        async with listening:
            yield MailChannel(
                name="admins",
                server="localhost",
                port=listening.sockets[0].getsockname()[1],
                tls=tls,
                ca_file=self.ca_file,
                user="certfan" if tls != "off" else None,
                password_file=self.password if tls != "off" else None,
                sender="certfan@example.org",
                to=("root@example.org", "ops@example.org"),
            )

    def _knows(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, shown: Any) -> AuthResult:
        return AuthResult(
            success=(shown.login, shown.password) == (b"certfan", b"open sesame"), handled=False
        )


@pytest.fixture
def post(tmp_path: Path) -> Post:
    return Post(tmp_path)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it cannot see TLS below it
@pytest.mark.parametrize("tls", ["starttls", "implicit", "off"])
async def test_a_mail_reaches_its_readers(post: Post, tls: str) -> None:
    """Over TLS that verifies and with the password of the file, or on this machine without both."""
    async with post.open(tls) as channel:
        await mail.send(channel, TOLD)

    (envelope,) = post.box.mails
    assert isinstance(envelope.content, bytes)
    got = message_from_bytes(envelope.content, policy=policy.default)
    assert envelope.rcpt_tos == ["root@example.org", "ops@example.org"]
    assert (
        got["Subject"].split() == TOLD.subject.split()
    )  # the library folds what is not ASCII with blanks of its own
    assert got["Message-ID"] == "<abc123@example.certfan.invalid>"
    assert got["Auto-Submitted"] == "auto-generated"
    assert "certfan why www.test" in got.get_content()
    assert EVIL in got.get_content()


async def test_a_password_never_goes_to_a_server_that_is_not_trusted(post: Post, tmp_path: Path) -> None:
    """A certificate of another CA, a server without STARTTLS: nothing is sent, and the text says so."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with post.open("starttls") as channel:
        with pytest.raises(
            NotifyFailed, match=r"localhost:\d+ cannot be reached: .*certificate verify failed"
        ):
            await mail.send(replace(channel, ca_file=other), TOLD)
    async with post.open("off") as plain:
        with pytest.raises(NotifyFailed, match="STARTTLS"):
            await mail.send(replace(plain, tls="starttls", user="certfan", password_file=post.password), TOLD)

    assert post.box.mails == []


async def test_what_a_server_refuses_is_told_without_the_password(post: Post) -> None:
    """A wrong password, a reader that it does not know, nobody at the port."""
    post.password.write_text("wrong")
    async with post.open("starttls") as channel:
        with pytest.raises(NotifyFailed, match="said 535") as refused:
            await mail.send(channel, TOLD)
    async with post.open("off") as channel:
        with pytest.raises(NotifyFailed, match="takes no mail for nobody@example"):
            await mail.send(replace(channel, to=("nobody@example.org",)), TOLD)
    with pytest.raises(NotifyFailed, match="cannot be reached: Connection refused"):
        await mail.send(channel, TOLD)

    assert "wrong" not in refused.value.text


# In the config


def test_ways_of_telling_become_values(tmp_path: Path) -> None:
    """Files beside the config, the usual port of each kind of TLS."""
    (tmp_path / "smtp.password").write_text("x")
    (tmp_path / "smtp.password").chmod(0o600)
    lines = """
[notify]
gather = "2m"
[notify.exec.chat]
command = ["/usr/local/bin/tell", "--x"]
timeout = "45s"
[notify.mail.admins]
server = "mail.example.org"
user = "certfan"
password_file = "smtp.password"
from = "certfan@example.org"
to = ["root@example.org"]
"""
    notify = loading.load(write(tmp_path, MAIN + lines)).notify

    chat, admins = notify.channels
    assert notify.gather == timedelta(minutes=2)
    assert chat == CommandChannel(
        name="chat", argv=("/usr/local/bin/tell", "--x"), timeout=timedelta(seconds=45)
    )
    assert isinstance(admins, MailChannel)
    assert (admins.port, admins.tls, admins.password_file) == (587, "starttls", tmp_path / "smtp.password")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            '[notify.exec.chat]\ncommand = ["tell"]',
            "notify.exec.chat.command: must begin with the absolute path",
        ),
        ('[notify.exec.chat]\ncommand = "/bin/tell x"', "notify.exec.chat.command: "),
        (
            '[notify.mail.a]\nserver = "m"\nfrom = "a@b"\nto = ["x@y\\nBcc: z@z"]',
            "notify.mail.a.to[0]: must be one",
        ),
        (
            '[notify.mail.a]\nserver = "m"\nfrom = "a@b"\nto = ["x@y"]\nuser = "u"',
            "notify.mail.a.password_file: is missing",
        ),
        (
            '[notify.mail.a]\nserver = "m"\nfrom = "a@b"\nto = ["x@y"]\nuser = "u"\npassword_file = "p"\ntls = "off"',
            "notify.mail.a.tls: a password is never sent in the clear",
        ),
        (
            '[notify.mail.a]\nserver = "m"\nfrom = "a@b"\nto = ["x@y"]\n[notify.exec.a]\ncommand = ["/b"]',
            "there is a notify.exec.a already",
        ),
        ("[notify.sms.a]\nx = 1", "notify.sms: unknown key"),
    ],
)
def test_what_is_wrong_with_them_is_told_by_key_path(tmp_path: Path, lines: str, expected: str) -> None:
    """All of it, before anybody waits for a message that cannot come."""
    assert expected in "\n".join(problems_of(write(tmp_path, f"{MAIN}{lines}\n")))


def test_a_password_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    """As with every secret."""
    (tmp_path / "p").write_text("x")
    (tmp_path / "p").chmod(0o644)
    lines = '[notify.mail.a]\nserver = "m"\nfrom = "a@b"\nto = ["x@y"]\nuser = "u"\npassword_file = "p"\n'

    (problem,) = problems_of(write(tmp_path, MAIN + lines))

    assert problem.startswith(
        "certfan.toml: notify.mail.a.password_file: p holds a secret that others can read"
    )


async def test_the_command_tells_what_became_of_each_test(tmp_path: Path) -> None:
    """One line a way; it fails when one of them does, and asks over the control socket only."""
    asked: list[str | None] = []

    async def test(name: str | None) -> dict[str, str | None]:
        asked.append(name)
        return {"chat": None, "admins": "mail server m:25 said 535 no"}

    application = app.make_app(DOORS, Admin(), others=notify_routes(test))
    config = tmp_path / "certfan.toml"
    config.write_text(f'[control]\nsocket = "{tmp_path}/s"\n')
    runner = await app.start(application, (Listener(path=f"{tmp_path}/s"),))
    try:
        words = (sys.executable, "-m", "certfan", "notify", "test", "--config", str(config))
        process = await asyncio.create_subprocess_exec(*words, stdout=-1, stderr=-1)
        told, complained = await process.communicate()
    finally:
        await runner.cleanup()

    assert asked == [None]
    assert told.decode().splitlines() == ["chat: ok", "admins: mail server m:25 said 535 no"]
    assert (process.returncode, "admins could not tell" in complained.decode()) == (1, True)
