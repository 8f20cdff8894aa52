"""The command line as a person meets it: a real control socket, real processes where no daemon is asked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from certfan.cli import main
from certfan.cli.authorities import REASONS
from certfan.cli.control import socket_path
from certfan.cli.lines import columns
from certfan.cli.lines.page import page_lines
from certfan.core.model import PathCheck, RenewalInfo, Revocation, RevocationReason
from certfan.daemon.status.control import authorities as authority_control
from certfan.daemon.status.model import as_json
from certfan.daemon.status.view import view
from tests.unit.command import CLEAN, certfan
from tests.unit.status_parts import (
    DAY,
    NOW,
    WHERE,
    Admin,
    AuthorityAdmin,
    control_socket,
    deployment,
    generation,
    proof,
    things,
)
from tests.unit.test_config_watch import MAIN, certificate
from tests.unit.test_status_authorities import BROKEN, REFUSED, due, failed, used_up

HEAVY = ("acme", "sqlalchemy", "aiohttp", "pydantic", "asyncio", "ssl", "cryptography", "structlog", "idna")
EXAMPLES = Path(__file__).parents[2] / "config"


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """Do what `certfan` does, here: a process of its own costs twenty times as much, most of it for imports."""
    done = CliRunner(env={"CERTFAN_CONFIG": None}).invoke(
        main, words, prog_name="certfan", catch_exceptions=False
    )
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


async def against(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Admin]:
    """Type a command while the daemon's application answers on its control socket."""
    admin = Admin()
    async with control_socket(folder, admin) as config:
        done = await asyncio.to_thread(typed, *words, "--config", str(config))
    return done, admin


@pytest.mark.parametrize("words", [["--help"], ["agent", "--help"], ["status", "--help"]])
def test_help_pays_for_nothing_it_does_not_show(words: list[str]) -> None:
    """No wing and no heavy library is loaded."""
    script = (
        "import sys; from certfan.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY!r} or m.startswith(('certfan.daemon', 'certfan.agent'))])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_a_help_that_is_as_cheap() -> None:
    """Of all commands in one process: a sentence and a description of each option, and still nothing heavy."""
    script = (
        "import sys, click; from certfan.cli import main\n"
        "def walk(command, words):\n"
        "    ctx = click.Context(command, info_name=' '.join(words))\n"
        "    assert command.help and command.get_help(ctx), words\n"
        "    for one in command.params:\n"
        "        assert isinstance(one, click.Argument) or one.help, (words, one.name)\n"
        "    for name in getattr(command, 'commands', {}): walk(command.commands[name], [*words, name])\n"
        "walk(main, ['certfan'])\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY!r} or m.startswith(('certfan.daemon', 'certfan.agent'))])\n"
        "print(len(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    heavy, count = done.stdout.splitlines()
    assert "[]" == heavy
    assert (
        int(count) < 220
    )  # `certfan --help` took 90 ms with 180 of them, most of it click and the interpreter


def test_with_the_agents_part_alone_a_command_of_the_daemon_says_what_to_install() -> None:
    """`pip install certfan` is the agent: the daemon's libraries are missing, and no traceback tells so."""
    script = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from certfan.cli import main; main(['daemon', '--config', sys.argv[1]])"
    )
    argv = [sys.executable, "-c", script, str(EXAMPLES / "certfan.toml")]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "which is not installed here: no module sqlalchemy" in done.stderr
    assert (
        done.stderr.splitlines()[-1] == "try: apt install certfan-daemon, or: pip install 'certfan[daemon]'"
    )


def test_the_reasons_of_a_revocation_are_the_cores() -> None:
    """They are spelled out at the command line, which does not load the core for them."""
    assert [reason.value for reason in RevocationReason] == list(REASONS)


def test_check_says_what_a_good_config_asks_for(examples: Path) -> None:
    """The example is good."""
    done = certfan("check", "--config", str(examples / "certfan.toml"))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("certfan.toml: good: 3 certificates, 2 consumers, 2 authorities\n")


def test_check_tells_every_problem_and_exits_78(tmp_path: Path) -> None:
    """One line a problem, and nothing on stdout."""
    path = tmp_path / "certfan.toml"
    path.write_text((EXAMPLES / "certfan.toml").read_text().replace("fleet =", "flet ="))

    done = certfan("check", "--config", str(path))

    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        f"certfan: error: {path}: fleet: is missing",
        f'certfan: error: {path}: flet: unknown key, did you mean "fleet"?',
        "try: certfan check",
    ]


def test_errors_of_json_commands_are_json(tmp_path: Path) -> None:
    """A program reads code, detail and every problem."""
    path = tmp_path / "certfan.toml"

    done = certfan("check", "--json", "--config", str(path))

    assert done.returncode == 78
    assert json.loads(done.stderr)["error"]["problems"] == [
        f"{path}: cannot be read: No such file or directory"
    ]
    assert json.loads(done.stderr)["error"]["code"] == "config.invalid"


@pytest.mark.parametrize("words", [["status"], ["renew", "www.test"]])
def test_a_daemon_that_does_not_run_is_said_so(tmp_path: Path, words: list[str]) -> None:
    """Exit code 75, and the command that shows why."""
    config = tmp_path / "certfan.toml"
    config.write_text(f'[control]\nsocket = "{tmp_path}/none.sock"\n')

    done = certfan(*words, "--config", str(config))

    assert done.returncode == 75
    assert done.stderr.splitlines() == [
        f"certfan: error: the daemon does not answer on {tmp_path}/none.sock",
        "try: systemctl status certfan",
    ]


async def test_status_is_a_table_or_json(tmp_path: Path) -> None:
    """Off a terminal there is no colour; the raw form is the page itself."""
    plain, _ = await against(tmp_path, "status")
    raw, _ = await against(tmp_path, "status", "--json")

    assert plain.stdout.startswith("example: ok, 1 of 1 proven\n")
    assert "\x1b" not in plain.stdout
    assert json.loads(raw.stdout)["summary"]["proven"] == 1


async def test_renew_asks_the_daemon(tmp_path: Path) -> None:
    """The daemon's action gets the name and who asked."""
    done, admin = await against(tmp_path, "renew", "www.test")

    assert done.returncode == 0
    assert admin.asked == [("renew", "www.test", os.getuid())]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["rollback", "www.test"], ("rollback", "www.test None")),
        (["rollback", "www.test", "--to", "2"], ("rollback", "www.test 2")),
        (["forget", "old.test"], ("forget", "old.test")),
        (["forget", "--consumer", "web9"], ("forget consumer", "web9")),
    ],
    ids=" ".join,
)
async def test_going_back_and_forgetting_ask_the_daemon(
    tmp_path: Path, words: list[str], asked: tuple[str, str]
) -> None:
    """The action gets the name, the number if one was given, and who asked; what is said is one line or JSON."""
    done, admin = await against(tmp_path, *words)
    raw, _ = await against(tmp_path, *words, "--json")

    assert (0, 1, [(*asked, os.getuid())]) == (done.returncode, len(done.stdout.splitlines()), admin.asked)
    assert json.loads(raw.stdout).get("to") == {"rollback": 2 if "--to" in words else 1}.get(words[0])


async def asked_of_authorities(
    folder: Path, *words: str, stdin: str = "", run: Any = None
) -> tuple[subprocess.CompletedProcess[str], AuthorityAdmin]:
    """Run a command about authorities while the daemon's application answers."""
    admin = AuthorityAdmin()
    async with control_socket(folder, Admin(), admin) as config:
        run = run or (partial(certfan, stdin=stdin) if stdin else typed)
        done = await asyncio.to_thread(run, *words, "--config", str(config))
    return done, admin


async def test_revoke_waits_for_the_successor_unless_told_otherwise(tmp_path: Path) -> None:
    """The newest generation and no reason by default; --now, --generation and --reason are passed on."""
    waiting, admin = await asked_of_authorities(tmp_path, "revoke", "www.test")
    at_once, other = await asked_of_authorities(
        tmp_path, "revoke", "www.test", "--generation", "2", "--reason", "keyCompromise", "--now", "--json"
    )

    assert [("revoke", "www.test", None, "unspecified", False, os.getuid())] == admin.asked
    assert waiting.stdout == (
        "www.test@1 (serial 1): revoked once every endpoint proves a successor with another key;"
        " follow it with: certfan status\n"
    )
    assert [("revoke", "www.test", 2, "keyCompromise", True, os.getuid())] == other.asked
    assert [2] == [one["generation"] for one in json.loads(at_once.stdout)["revoking"]]


async def test_an_account_is_shown_and_gets_a_new_key(tmp_path: Path) -> None:
    """With what is used of the limits, and when that is less."""
    shown, _ = await asked_of_authorities(tmp_path, "account", "show", "pebble")
    rolled, admin = await asked_of_authorities(tmp_path, "account", "rollover", "pebble")

    assert shown.stdout.splitlines() == [
        "authority: pebble",
        "directory: https://ca.int/dir",
        "account:   https://ca.int/account/1, since 2026-11-22 12:00 UTC",
        f"key:       SHA-256 {'ab' * 32}",
        "contact:   mailto:me@www.test",
        "used:      3 of 50 certificates per domain www.test in 7 d, less from 2026-11-23 12:00 UTC",
    ]
    assert (0, [("rollover", "pebble", os.getuid())]) == (rolled.returncode, admin.asked)


async def test_an_exported_account_is_what_import_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From stdin or a file, as the export or the bare key; off a terminal the export warns nobody."""
    monkeypatch.setattr(authority_control, "caller", lambda _: 0)  # it would be whoever runs the tests
    exported, _ = await asked_of_authorities(tmp_path, "account", "export", "pebble")
    (tmp_path / "key.pem").write_text(AuthorityAdmin.EXPORTED_KEY)
    whole, first = await asked_of_authorities(tmp_path, "account", "import", "pebble", stdin=exported.stdout)
    bare, second = await asked_of_authorities(
        tmp_path, "account", "import", "pebble", str(tmp_path / "key.pem"), "--json"
    )

    assert ("", {"authority", "directory", "uri", "key"}) == (
        exported.stderr,
        json.loads(exported.stdout).keys(),
    )
    key = AuthorityAdmin.EXPORTED_KEY.encode()
    assert [("import", "pebble", key, "https://ca.int/dir", 0)] == first.asked
    assert [("import", "pebble", key, None, 0)] == second.asked
    assert whole.stdout == "the account at pebble is now https://ca.int/account/2\n"
    assert json.loads(bare.stdout)["uri"] == "https://ca.int/account/2"


@pytest.mark.parametrize("given", ['{"key": "canary"', '{"key": ["canary"], "directory": "x"}'])
async def test_what_is_no_export_is_not_repeated(tmp_path: Path, given: str) -> None:
    """The daemon is not even asked, and the text holds nothing of what was read."""
    done, admin = await asked_of_authorities(tmp_path, "account", "import", "pebble", stdin=given)

    assert (1, []) == (done.returncode, admin.asked)
    assert done.stderr.startswith("certfan: error: that is no exported account\n")
    assert "canary" not in done.stderr


def on_a_terminal(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command whose stdout is a terminal of its own."""
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(its, "wb") as stdout:
        argv = [sys.executable, "-m", "certfan", *words]
        done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, env=CLEAN, timeout=60)
        return subprocess.CompletedProcess(
            argv, done.returncode, terminal.read(1 << 16).decode(), done.stderr
        )


async def test_a_key_on_a_terminal_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that what is on stdout is the export all the same."""
    monkeypatch.setattr(authority_control, "caller", lambda _: 0)  # it would be whoever runs the tests
    done, _ = await asked_of_authorities(tmp_path, "account", "export", "pebble", run=on_a_terminal)

    assert done.stderr.startswith("certfan: warning: whoever has read this key can act as you")
    assert json.loads(done.stdout)["key"] == AuthorityAdmin.EXPORTED_KEY


def checking(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a whole config that names the same socket."""
    config = Path(words[-1])
    control = f'[control]\nsocket = "{config.parent}/control.sock"\n'
    config.write_text(MAIN + control + certificate("broken.test") + certificate("www.test"))
    return certfan(*words)


async def test_check_order_tries_one_certificate_after_another(tmp_path: Path) -> None:
    """A line each as soon as it is known: ok, or the reason and what to try; one that fails is exit code 1."""
    done, admin = await asked_of_authorities(tmp_path, "check", "--order", run=checking)
    lines = [re.sub(r"\d+\.\d s", "0.1 s", line) for line in done.stdout.splitlines()]

    assert lines == [
        f"{tmp_path}/certfan.toml: good: 2 certificates, 1 consumer, 1 authority",
        "broken.test: http://broken.test/: answered 404 (0.1 s)",
        "try: look at the vhost",
        "www.test: ok at staging (0.1 s)",
    ]
    assert (1, "") == (done.returncode, done.stderr)
    assert [("trial", name, None, os.getuid()) for name in ("broken.test", "www.test")] == admin.asked


async def test_check_order_takes_names_and_another_authority(tmp_path: Path) -> None:
    """For a program the trials are part of the answer."""
    done, admin = await asked_of_authorities(
        tmp_path, "check", "--order", "--authority", "other", "www.test", "--json", run=checking
    )

    (trial,) = json.loads(done.stdout)["trials"]
    assert (0, True, "other", ["www.test"]) == (
        done.returncode,
        trial["ok"],
        trial["authority"],
        trial["names"],
    )
    assert [("trial", "www.test", "other", os.getuid())] == admin.asked


async def test_check_order_needs_a_good_config_and_a_running_daemon(tmp_path: Path) -> None:
    """A problem of the file, or of the socket, is told once and not for every certificate."""
    config = tmp_path / "certfan.toml"
    dead = checking("check", "--order", "--config", str(config))
    config.write_text(config.read_text().replace("fleet =", "flet ="))
    bad = certfan("check", "--order", "--config", str(config))

    assert (75, 1) == (dead.returncode, dead.stderr.count("does not answer"))
    assert (78, "") == (bad.returncode, bad.stdout)


async def test_a_refusal_of_the_daemon_is_shown_as_its_own(tmp_path: Path) -> None:
    """Text, hint and exit code are those of the leaf that the daemon raised."""
    done, _ = await against(tmp_path, "renew", "ww.test")

    assert done.returncode == 1
    assert done.stderr.splitlines() == ["certfan: error: no certificate ww.test", "try: certfan status"]


async def test_consumer_add_prints_the_line_to_paste(tmp_path: Path) -> None:
    """Nothing else is on stdout."""
    done, _ = await against(tmp_path, "consumer", "add", "web1")

    assert done.stdout == "certfan agent enrol certfan1:192.0.2.1:8057:token:hash\n"


async def test_consumers_are_listed_and_revoked(tmp_path: Path) -> None:
    """The list says when each was heard."""
    listed, _ = await against(tmp_path, "consumer", "list")
    revoked, admin = await against(tmp_path, "consumer", "revoke", "web1")

    assert listed.stdout.splitlines() == [
        "CONSUMER  STATE  LAST HEARD  VERSION  INSTALLS",
        "web1      heard  1 min ago   0.1.0    in-place",
    ]
    assert revoked.returncode == 0
    assert admin.asked == [("revoke", "web1", os.getuid())]


async def test_events_are_lines(tmp_path: Path) -> None:
    """Instant, name, subject, fields."""
    done, _ = await against(tmp_path, "events", "--last", "2")

    assert (
        done.stdout.splitlines()[0]
        == "2026-11-22 12:00:00      generation.published      www.test@1  took=0.8"
    )
    assert "abc" not in done.stdout


SNIPPETS = {
    "apache": ("<Macro le_proxy>", "<Macro le_sslredir>", "<Macro le_hsts>"),
    "nginx": ("location ^~ ", "return 301 ", "add_header "),
    "haproxy": ("http-request allow ", "http-request redirect ", "http-after-response ", "backend le_proxy"),
    "caddy": ("(le_proxy) {", "(le_sslredir) {", "(le_hsts) {"),
}


@pytest.mark.parametrize("server", SNIPPETS)
def test_a_snippet_has_the_configs_responder_filled_in(server: str) -> None:
    """Where the daemon answers, and what browsers are promised; nothing is left to fill in."""
    done = certfan("snippet", server, "--config", str(EXAMPLES / "certfan.toml"))

    assert all(line in done.stdout for line in SNIPPETS[server])
    assert "192.168.1.1:8055" in done.stdout
    assert '"max-age=31536000; includeSubDomains"' in done.stdout
    assert "@responder@" not in done.stdout
    assert "@hsts@" not in done.stdout


def test_a_snippet_needs_no_config_where_the_responder_is_told(tmp_path: Path) -> None:
    """On a consumer there is none; a part goes to a file of its own."""
    words = ["--config", str(tmp_path / "none"), "--responder", "[fd00::1]:8055", "--hsts", "300"]

    proxy = certfan("snippet", "nginx", "--part", "le_proxy", *words).stdout
    hsts = certfan("snippet", "nginx", "--part", "le_hsts", "--no-subdomains", *words).stdout
    untold = certfan("snippet", "nginx", *words[:2])

    assert "proxy_pass http://[fd00::1]:8055;" in proxy
    assert "add_header" not in proxy
    assert 'Strict-Transport-Security "max-age=300" always' in hsts
    assert untold.returncode == 1
    assert "--responder ADDRESS:PORT" in untold.stderr


@pytest.mark.parametrize(
    "wrong", ["8055", "a:b", "[::1]", "1.2.3.4:8055/x", "x:1\nLoadModule y", 'x":1', "-a:1"]
)
def test_what_is_no_address_gets_into_no_config(wrong: str) -> None:
    """The text goes into a root's file: nothing but a name or an address, and a port."""
    done = certfan("snippet", "apache", "--responder", wrong)

    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(("words", "stdin"), [(["nonsense"], ""), (["-"], "certfan agent enrol nonsense\n")])
def test_enrol_takes_the_line_from_argument_or_stdin(tmp_path: Path, words: list[str], stdin: str) -> None:
    """A line that is none is refused before anything is made or sent."""
    config = tmp_path / "agent.toml"
    config.write_text(f'[agent]\nstate = "{tmp_path}/state"\ntrust = "{tmp_path}/trust"\nuser = "root"\n')

    done = certfan("agent", "enrol", *words, "--config", str(config), stdin=stdin)

    assert done.returncode == 1
    assert "line" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_file_that_cannot_be_opened_is_no_traceback(tmp_path: Path) -> None:
    """`agent run` without a config says which file it missed."""
    done = certfan("agent", "run", "--config", str(tmp_path / "agent.toml"))

    assert done.returncode == 78
    assert f"{tmp_path}/agent.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_socket_comes_from_the_config_or_is_the_default(tmp_path: Path) -> None:
    """Who may use the socket need not be able to read the config."""
    config = tmp_path / "c.toml"
    assert socket_path(config) == "/run/certfan/control.sock"
    config.write_text('[control]\nsocket = "/run/x.sock"\n')
    assert socket_path(config) == "/run/x.sock"
    config.write_text("[control\n")
    assert socket_path(config) == "/run/certfan/control.sock"


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(days=3, hours=4, minutes=9), "in 3 d 4 h"),
        (timedelta(days=3, minutes=9), "in 3 d"),
        (timedelta(minutes=12, seconds=5), "in 12 min 5 s"),
        (timedelta(seconds=5), "in 5 s"),
        (timedelta(0), "0 s ago"),
        (-timedelta(hours=2), "2 h ago"),
    ],
)
def test_instants_are_said_in_two_units(length: timedelta, expected: str) -> None:
    """As a person says it."""
    assert columns.when(NOW + length, NOW) == expected


def page(**facts: Any) -> Any:
    return as_json(view(things(**facts)))


def test_what_needs_you_comes_first_with_what_to_try() -> None:
    """Summary, problems with hints, certificates, then endpoints."""
    lines = page_lines(page(proofs={WHERE: (proof(heard_ago=DAY),)}, deployments={WHERE: (deployment(1),)}))

    assert lines[:6] == [
        "example: problem, 0 of 1 proven (1 unheard), worst deadline in 82 d",
        "  web1: 1 endpoint unheard, deadline in 82 d: web1 was last heard at 2026-11-21 12:00 UTC",
        "",
        "problem: web1: web1 was last heard at 2026-11-21 12:00 UTC",
        "  try: run on web1: systemctl status certfan-agent",
        "",
    ]
    assert lines[-1].split("  ")[0] == "www.test"
    assert "@1 00000000" in lines[-1]


def test_columns_stand_below_their_heads_and_colour_takes_no_width() -> None:
    """With colour taken away, the coloured page is the plain one."""
    facts = {"proofs": {WHERE: (proof(),)}, "deployments": {WHERE: (deployment(1),)}}
    plain, coloured = page_lines(page(**facts)), page_lines(page(**facts), colour=True)

    assert plain != coloured
    assert plain == [re.sub(r"\x1b\[\d*m", "", line) for line in coloured]
    head, row = plain[-2:]
    assert row.index("proven") == head.index("VERDICT")
    assert row.index("probe in 4 min") == head.index("NEXT")


def test_what_lags_what_was_rolled_back_and_what_is_orphaned_is_shown() -> None:
    """Each with what to do about it, after the headline, in the table, and below it."""
    copy = dataclasses.replace(generation(3), fingerprint=f"{1:064x}", copy_of=1)
    told = page(
        generations={"www.test": (generation(1), copy), "old.test": (generation(1),)}, enrolled={"web9": NOW}
    )
    lines = page_lines(told)

    assert lines[1].startswith("  web1: 1 endpoint pending, deadline ")
    assert any("3 (pair of 1)" in line for line in lines)
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["ORPHANED", "NAME"],
        ["certificate", "old.test"],
        ["consumer", "web9"],
    ]
    assert lines[-1].endswith("certfan forget --consumer web9")


def test_what_orders_wait_for_is_told_below_the_certificates() -> None:
    """Until when and why, whom it goes to instead, what is broken, what is to be revoked; then the authorities."""
    info = RenewalInfo(
        "www.test",
        1,
        start=NOW,
        end=NOW + DAY,
        chosen=NOW + DAY / 2,
        ask_again_at=NOW,
        explanation_url="https://ca.int/why",
    )
    wish = Revocation(RevocationReason.SUPERSEDED, False, NOW)
    waiting = due(
        seen={"ledgers": used_up(), "self_check": True},
        renewal_infos={("www.test", 1): info},
        revocations={("www.test", 1): wish},
        checks={"www.test": PathCheck(at=NOW, problem=BROKEN, since=NOW - DAY)},
    )
    elsewhere = due(attempts=failed(since=NOW - 2 * DAY))

    lines = page_lines(as_json(view(waiting)))
    other = page_lines(as_json(view(elsewhere)))

    assert lines[lines.index("www.test: no answer at www.test since 1 d ago") - 2 :][:8] == [
        "www.test: waits, again in 6 h: pebble: 2 certificates for exactly www.test in 7 days are used up",
        "www.test: pebble wants it renewed in 12 h; why: https://ca.int/why",
        "www.test: no answer at www.test since 1 d ago",
        "www.test@1: to be revoked (superseded), waits for a successor with another key",
        "",
        "AUTHORITY  STATE  ORDERS  MOST USED LIMIT                                    ACCOUNT",
        "pebble     ok     0       2 of 2 certificates per set www.test, less in 6 h  -",
        "second     ok     0       -                                                  -",
    ]
    assert f"www.test: goes to second instead: {REFUSED.detail}" in other


def test_what_a_service_printed_cannot_move_the_cursor() -> None:
    """Escape sequences in details do not reach the terminal."""
    assert columns.clean("a\x1b[2Jb\r\nc") == "a [2Jb  c"
