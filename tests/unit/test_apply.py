"""The privileged half and the boot unit, on real sockets and with real commands as services."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from certfan import files, pki
from certfan.agent import apply, boot, bundled, config, reloader
from certfan.agent import swap as swap_module
from certfan.agent.forms import KeyFile, Layout
from certfan.errors import BundleInvalid, MessageInvalid, StateLocked
from certfan.protocol import manifest
from tests.unit.apply_parts import MAIL, NOW, WWW, Machine, in_child, killed_at, request, states, swap

NOBODY = 65534


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(reloader, "SETTLE", timedelta(0))
    return Machine(tmp_path)


async def test_a_group_is_laid_tested_once_and_reloaded_once(machine: Machine) -> None:
    """Two certificates of one service cost one test, one reload, and a hook each."""
    machine.service("web")
    for name in (WWW, MAIL):
        machine.stage(name, 3)

    answer = await machine.asks((WWW, 3), (MAIL, 3))
    installed_at, reloaded_at = (
        datetime.fromisoformat(answer.pop(k)) for k in ("installed_at", "reloaded_at")
    )

    assert installed_at <= reloaded_at
    assert answer == {
        "services": [{"name": "web", "certificates": [WWW, MAIL], "state": "reloaded", "problem": None}],
        "installed": {WWW: 3, MAIL: 3},
        "rolled_back": False,
        "problem": None,
        "hooks": {},
        "csr": "",
    }
    assert machine.log("web") == ["test", "reload", "hook", "hook"]
    assert [machine.live(n) for n in (WWW, MAIL)] == [machine.staged_fingerprint(n, 3) for n in (WWW, MAIL)]


async def test_only_concerned_services_are_touched(machine: Machine) -> None:
    """A service that loads none of the names hears nothing."""
    machine.service("web", "www.*")
    machine.service("mail", "mail.*")
    machine.stage(WWW, 1)

    answer = await machine.asks((WWW, 1))

    assert states(answer) == {"web": "reloaded", "mail": "unconcerned"}
    assert machine.log("mail") == []


async def test_hooks_get_certbots_environment(machine: Machine) -> None:
    """From the verified certificate and the local config, never from the wire."""
    machine.service("web")
    machine.stage(WWW, 3)
    machine.does("web", "hook", "env | grep -E '^(RENEWED|CERTFAN)_' > environment")
    await machine.asks((WWW, 3))

    said = (machine.root / "web" / "environment").read_text().splitlines()
    assert dict(line.split("=", 1) for line in said) == {
        "RENEWED_LINEAGE": f"{machine.root}/etc/live/{WWW}",
        "RENEWED_DOMAINS": WWW,
        "CERTFAN_CERTIFICATE": WWW,
        "CERTFAN_GENERATION": "3",
        "CERTFAN_FINGERPRINT": machine.staged_fingerprint(WWW, 3),
        "CERTFAN_SERVICE": "web",
    }


async def test_a_failed_config_test_brings_the_group_back(machine: Machine) -> None:
    """The pointers are where they were, nothing was reloaded, and the test's words are in the answer."""
    machine.service("web", "www.*")
    machine.service("mail")
    for number in (1, 2):
        machine.stage(WWW, number)
        machine.stage(MAIL, number)
    await machine.asks((WWW, 1))
    machine.does("mail", "test", "echo 'bad config in line 3' >&2; exit 1")
    (machine.root / "web" / "log").write_text("")

    answer = await machine.asks((WWW, 2), (MAIL, 2))

    assert states(answer) == {"web": "untouched", "mail": "config_test_failed"}
    assert (answer["rolled_back"], answer["installed"]) == (True, {WWW: 1, MAIL: None})
    assert answer["problem"]["code"] == "service.config_test_failed"
    assert answer["problem"]["output"] == "bad config in line 3"
    assert answer["problem"]["hint"].startswith("run: ")
    assert machine.live(WWW) == machine.staged_fingerprint(WWW, 1)
    assert machine.log("web") == ["test"]


async def test_a_service_that_dies_of_its_reload_goes_back_and_is_started(machine: Machine) -> None:
    """As Apache does on a bad pair: the reload says 0 and the server is gone."""
    machine.service("web")
    machine.service("mail")
    for number in (1, 2):
        machine.stage(WWW, number)
    await machine.asks((WWW, 1))
    machine.does("web", "reload", "rm runs")
    for name in ("web", "mail"):
        (machine.root / name / "log").write_text("")

    answer = await machine.asks((WWW, 2))

    assert states(answer) == {"web": "down", "mail": "reloaded"}
    assert (answer["rolled_back"], answer["installed"]) == (True, {WWW: 1})
    assert answer["problem"]["code"] == "service.down"
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    assert (machine.root / "web" / "runs").exists()
    said = (machine.root / "web" / "log").read_text().splitlines()
    assert said[-1] == f"start ../generations/{WWW}/1"  # only after the pointer went back
    assert machine.log("mail") == ["test", "reload", "reload"]  # and the other one took the old pair again


async def test_a_reload_that_fails_while_the_service_runs_is_told_and_kept(machine: Machine) -> None:
    """Nothing became worse: the old leaf is still served, and the agent asks again."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.does("web", "reload", "exit 1")

    answer = await machine.asks((WWW, 1))

    assert states(answer) == {"web": "reload_failed"}
    assert (answer["rolled_back"], answer["installed"]) == (False, {WWW: 1})
    assert answer["problem"]["code"] == "service.reload_failed"


async def test_a_dead_service_is_started_and_a_stopped_one_left_alone(machine: Machine) -> None:
    """What crashed comes back with the new pair; what the admin stopped stays stopped."""
    machine.service("web")
    machine.service("mail")
    (machine.root / "web" / "runs").unlink()
    text = machine.path.read_text()
    stopped = '["sh", "-c", "echo inactive; exit 3"]'
    machine.path.write_text(text.replace(f'["{machine.root}/ctl", "{machine.root}/mail", "active"]', stopped))
    machine.stage(WWW, 1)

    answer = await machine.asks((WWW, 1))

    assert states(answer) == {"web": "reloaded", "mail": "down"}
    assert (machine.log("web")[:2], machine.log("mail")) == (["test", "start"], ["test"])
    assert (answer["rolled_back"], answer["problem"]) == (False, None)


async def test_a_failed_hook_is_told_with_its_certificate_and_takes_nothing_back(machine: Machine) -> None:
    """Its pair is live and reloaded all the same, and the other certificate's hook has run."""
    machine.service("web")
    for name in (WWW, MAIL):
        machine.stage(name, 1)
    machine.does("web", "hook", f'[ "$CERTFAN_CERTIFICATE" = {MAIL} ] || {{ echo no space left; exit 3; }}')

    answer = await machine.asks((WWW, 1), (MAIL, 1))
    machine.does("web", "hook", "")
    again = await machine.asks((WWW, 1))

    assert (states(answer), answer["problem"], answer["rolled_back"]) == ({"web": "reloaded"}, None, False)
    assert answer["installed"] == {WWW: 1, MAIL: 1}
    assert {name: one["code"] for name, one in answer["hooks"].items()} == {WWW: "service.hook_failed"}
    assert answer["hooks"][WWW]["output"] == "no space left"
    assert answer["hooks"][WWW]["detail"] == "hook of web failed with exit code 3"
    assert again["hooks"] == {}
    assert machine.log("web") == ["test", "reload", "hook", "test", "reload", "hook"]


async def test_many_failing_hooks_fit_into_one_answer(machine: Machine) -> None:
    """Each is told, the first ones with all they said."""
    machine.service("web")
    names = [f"n{number}.example.org" for number in range(swap_module.HOOKS_THAT_SPEAK + 2)]
    pair = pki.load_pair(*pki.make_placeholder(names, NOW))
    for name in names:
        machine.stage(name, 1, machine.bundle(name, 1, pair=pair))
    machine.does("web", "hook", "echo no space left; exit 3")

    answer = await machine.asks(*((name, 1) for name in names))

    assert set(answer["hooks"]) == set(names)
    assert [one["output"] for one in answer["hooks"].values()].count("") == 2


async def test_a_pair_that_the_config_test_refuses_is_told_from_a_broken_config(machine: Machine) -> None:
    """With the former pair the same test passes; what it said of the new one is kept, and nothing was reloaded."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(WWW, 2)
    await machine.asks((WWW, 1))
    machine.does("web", "test", "readlink ../etc/live/* | grep -q /1$ || { echo weak key; exit 1; }")
    (machine.root / "web" / "log").write_text("")

    refused = await machine.asks((WWW, 2))
    machine.does("web", "test", "exit 1")
    broken = await machine.asks((WWW, 2))

    assert refused["problem"]["code"] == "service.pair_refused"
    assert "passes with the former" in refused["problem"]["detail"]
    assert refused["problem"]["output"] == "weak key"
    assert broken["problem"]["code"] == "service.config_test_failed"
    assert (refused["installed"], refused["rolled_back"]) == ({WWW: 1}, True)
    assert machine.log("web") == ["test"] * 4


async def test_a_config_that_was_mended_takes_the_repeated_request_with_one_reload(machine: Machine) -> None:
    """Repeating the request is repeating the test: nothing is reloaded until it passes, and then at once."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(WWW, 2)
    await machine.asks((WWW, 1))
    machine.does("web", "test", "exit 1")
    (machine.root / "web" / "log").write_text("")
    for _ in range(3):
        await machine.asks((WWW, 2))
    said = machine.log("web")
    machine.does("web", "test", "")

    answer = await machine.asks((WWW, 2))

    assert set(said) == {"test"}
    assert machine.log("web")[len(said) :] == ["test", "reload", "hook"]
    assert answer["installed"] == {WWW: 2}


async def test_a_vhost_that_waits_for_its_files_is_loaded_once_its_placeholder_is_there(
    machine: Machine,
) -> None:
    """The service's own test fails as long as a file is missing; pointer first, then test, then reload."""
    machine.service("web")
    for command in ("test", "reload"):
        machine.does("web", command, f"cat ../etc/live/{WWW}/fullchain.pem > /dev/null || exit 1")

    answer = await machine.asks((WWW, 0))

    assert (states(answer), answer["problem"]) == ({"web": "reloaded"}, None)
    said = (machine.root / "web" / "log").read_text().splitlines()
    assert [line.partition("placeholder")[0] for line in said] == [
        f"{command} ../generations/{WWW}/" for command in ("test", "reload")
    ]


async def test_a_placeholder_is_laid_and_loaded_and_gives_way(machine: Machine) -> None:
    """Generation 0 stands until a pair comes, and comes back when nothing else is left."""
    machine.service("web")
    first = await machine.asks((WWW, 0))
    placeholder = machine.live()
    again = await machine.asks((WWW, 0))
    kept = machine.live()
    machine.stage(WWW, 1)
    await machine.asks((WWW, 1))

    assert (first["installed"], states(first)) == ({WWW: 0}, {"web": "reloaded"})
    assert (again["installed"], kept) == ({WWW: 0}, placeholder)
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    back = await machine.asks((WWW, 0))
    assert back["installed"] == {WWW: 0}


async def test_an_older_generation_comes_back_from_the_local_tree(machine: Machine) -> None:
    """The agent need not have kept its bundle: root has laid it once."""
    machine.service("web")
    one = machine.stage(WWW, 1)
    fingerprint = machine.staged_fingerprint(WWW, 1)
    machine.stage(WWW, 2)
    await machine.asks((WWW, 1))
    await machine.asks((WWW, 2))
    for path in one.iterdir():
        path.unlink()
    one.rmdir()

    answer = await machine.asks((WWW, 1))

    assert (answer["installed"], machine.live()) == ({WWW: 1}, fingerprint)


async def test_forms_go_live_and_back_with_the_pair(machine: Machine) -> None:
    """One pointer: when another service's test fails, the keystore and the one PEM are the former ones too."""
    machine.service("web")
    machine.service("proxy", more='output = "pem"')
    machine.keystore("store")
    for number in (1, 2):
        machine.stage(WWW, number)
    first = await machine.asks((WWW, 1))
    laid = machine.live()
    machine.does("web", "test", "exit 1")

    second = await machine.asks((WWW, 2))

    assert (first["problem"], laid) == (None, machine.staged_fingerprint(WWW, 1))
    assert (second["rolled_back"], machine.live()) == (True, laid)
    names = {path.name for path in (machine.root / "etc" / "live" / WWW).iterdir()}
    assert {"proxy.pem", "store.p12", "privkey.pem"} <= names


async def test_a_password_is_in_no_answer_argv_or_log(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not when all is well, and not when its file is open to others, which stops the group."""
    password = machine.keystore("store")
    machine.does("store", "reload", "cat /proc/*/cmdline > cmdlines 2>/dev/null; env >> cmdlines; true")
    machine.stage(WWW, 1)
    good = await machine.asks((WWW, 1))
    password.chmod(0o644)
    machine.stage(WWW, 2)
    bad = await machine.asks((WWW, 2))

    assert (good["problem"], bad["problem"]["code"]) == (None, "service.install_failed")
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    said = capsys.readouterr()
    told = [
        json.dumps([good, bad]),
        said.out,
        said.err,
        (machine.root / "store" / "cmdlines").read_text("latin-1"),
    ]
    assert [text for text in told if "sesame" in text] == []


def mutated(machine: Machine, what: str) -> dict[str, bytes]:
    good = machine.bundle(WWW, 1)
    other = machine.bundle(WWW, 1)
    match what:
        case "another generation":
            return machine.bundle(WWW, 2)
        case "another consumer":
            return machine.bundle(WWW, 1, consumer="mail1")
        case "another fleet":
            return machine.bundle(WWW, 1, fleet="away")
        case "another certificate":
            return machine.bundle(MAIL, 1)
        case "another key":
            return good | {"privkey.pem": other["privkey.pem"]}
        case "another chain":
            return good | {"fullchain.pem": other["fullchain.pem"], "cert.pem": other["cert.pem"]}
        case "a flipped byte in the manifest":
            return good | {
                "manifest.json": good["manifest.json"].replace(b'"generation":1', b'"generation":2')
            }
        case "no signature":
            return good | {"manifest.sig": b""}
        case "another signer":
            signer = pki.InternalCA.create("home", NOW).issue_signer(NOW)
            sealed = manifest.seal(good["manifest.json"], signer.key_pem, signer.cert_pem)
            return good | {"manifest.sig": sealed}
        case "too long":
            return good | {"chain.pem": b"x" * (manifest.MAX_FILE + 1)}
    raise AssertionError(what)


MUTATIONS = [
    "another generation",
    "another consumer",
    "another fleet",
    "another certificate",
    "another key",
    "another chain",
    "a flipped byte in the manifest",
    "no signature",
    "another signer",
    "too long",
]


@pytest.mark.parametrize("what", MUTATIONS)
async def test_a_bundle_that_is_not_genuine_touches_nothing(machine: Machine, what: str) -> None:
    """Not one file, not one test or reload, for the good pair beside it neither."""
    machine.service("web")
    machine.stage(MAIL, 1)
    machine.stage(WWW, 1, mutated(machine, what))

    answer = await machine.asks((MAIL, 1), (WWW, 1))

    assert answer["problem"]["code"] in {"pki.signature_invalid", "share.bundle_invalid", "pki.pair_mismatch"}
    assert (answer["services"], machine.log("web")) == ([], [])
    assert not [path for path in machine.laid() if not path.name.endswith(".lock")]


async def test_a_signed_pair_that_does_not_match_touches_nothing(machine: Machine) -> None:
    """A daemon's mistake ends here: Apache would reload with 0 and be dead."""
    machine.service("web")
    one, other = (pki.load_pair(*pki.make_placeholder([WWW], NOW)) for _ in range(2))
    mixed = replace(one, key_pem=other.key_pem)
    machine.stage(WWW, 1, machine.bundle(WWW, 1, pair=mixed))

    answer = await machine.asks((WWW, 1))

    assert (answer["problem"]["code"], machine.log("web")) == ("pki.pair_mismatch", [])
    assert machine.live() is None


@pytest.mark.parametrize("what", ["symlink", "fifo", "folder", "symlinked folder", "symlinked bundles"])
def test_staged_files_are_read_as_a_strangers(machine: Machine, what: str) -> None:
    """The agent's user owns the folder: no link leads root elsewhere, and nothing makes it wait."""
    folder = machine.stage(WWW, 1)
    key = folder / "privkey.pem"
    match what:
        case "symlink":
            key.rename(machine.root / "elsewhere")
            key.symlink_to(machine.root / "elsewhere")
        case "fifo":
            key.unlink()
            os.mkfifo(key)
        case "folder":
            key.unlink()
            key.mkdir()
        case "symlinked folder":
            folder.rename(machine.root / "elsewhere")
            folder.symlink_to(machine.root / "elsewhere")
        case "symlinked bundles":
            bundles = machine.root / "state" / "bundles"
            bundles.rename(machine.root / "elsewhere")
            bundles.symlink_to(machine.root / "elsewhere")

    with pytest.raises(BundleInvalid):
        bundled.staged(machine.root / "state", WWW, 1)


BAD_REQUESTS = [
    b"",
    b"\n",
    b"{}\n",
    b"null",
    b"[]",
    b'["certificate", "generation"]',
    b'[["certificate", "a.example.org"], ["generation", 1]]',
    b'{"certificate": "www.example.org"}',
    b'{"certificate": "www.example.org", "generation": "1"}',
    b'{"certificate": "www.example.org", "generation": 1.0}',
    b'{"certificate": "www.example.org", "generation": true}',
    b'{"certificate": "www.example.org", "generation": -1}',
    b'{"certificate": "www.example.org", "generation": 1e3}',
    b'{"certificate": "www.example.org", "generation": 9999999999999999}',
    b'{"certificate": "../../../etc", "generation": 1}',
    b'{"certificate": "a/b", "generation": 1}',
    b'{"certificate": "", "generation": 1}',
    b'{"certificate": "www.example.org\\u0000", "generation": 1}',
    b'{"certificate": "www.example.org", "generation": 1, "argv": ["sh"]}',
    b'{"certificate": "www.example.org", "certificate": "mail.example.org", "generation": 1}',
    b'{"certificate": "www.example.org", "generation": 1}\n\n{"certificate": "mail.example.org", "generation": 1}',
    b'{"certificate": "www.example.org", "generation": 1}\n{"certificate": "www.example.org", "generation": 2}',
    b'{"certificate": "www.example.org", "generation": 1} {}',
    b"[" * 60_000,
    b"\xff\xfe",
    request(*((f"n{i}.example.org", 1) for i in range(1001))),
    b" " * 70_000 + request((WWW, 1)),
]


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
async def test_anything_but_a_request_is_refused(machine: Machine, bad: bytes) -> None:
    """Even beside a good bundle nothing is done."""
    machine.service("web")
    for name in (WWW, MAIL):
        machine.stage(name, 1)
    async with machine.serving():
        answer = await machine.says(bad)

    assert answer["problem"]["code"] == "channel.message_invalid"
    assert (machine.laid(), machine.log("web")) == ([], [])


LINES = st.one_of(
    st.binary(max_size=300),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(WWW),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["certificate", "generation", "x"]) | st.text(max_size=5), inner, max_size=3
            )
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(LINES, max_size=5))
@example(lines=[request((WWW, 1))])
def test_a_request_parses_to_names_and_numbers_or_not_at_all(lines: list[bytes]) -> None:
    """Random bytes and random JSON: no other exception, and nothing odd comes through."""
    try:
        found = apply.parse(b"\n".join(lines))
    except MessageInvalid:
        return

    assert all(apply.CERTIFICATE_NAME.fullmatch(name) and number >= 0 for name, number in found)
    assert apply.parse(request(*found)) == found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(LINES, min_size=1, max_size=4))
def test_the_socket_survives_noise_and_lays_nothing(machine: Machine, noise: list[bytes]) -> None:
    """Whatever one caller sends, the next one is answered."""
    refused = b"\n".join(noise) + b"\n?"

    async def scenario() -> tuple[dict[str, Any], dict[str, Any]]:
        async with machine.serving():
            return await machine.says(refused), await machine.says(b"?")

    answers = asyncio.run(scenario())

    assert [answer["problem"]["code"] for answer in answers] == ["channel.message_invalid"] * 2
    assert machine.laid() == []


async def test_a_caller_that_is_neither_root_nor_the_agent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SO_PEERCRED decides, not the mode of the socket."""
    machine = Machine(tmp_path, user="0")
    machine.service("web")
    machine.stage(WWW, 1)
    async with machine.serving():
        folder = tmp_path / "run"
        folder.chmod(0o755)
        (folder / "apply.sock").chmod(0o666)
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as caller:
            with someone_else():
                caller.connect("apply.sock")
            caller.sendall(request((WWW, 1)))
            caller.shutdown(socket.SHUT_WR)
            answer = json.loads(await asyncio.to_thread(caller.recv, 65536))

    assert answer["problem"]["code"] == "channel.not_allowed"
    assert (machine.laid(), machine.log("web")) == ([], [])


@contextlib.contextmanager
def someone_else() -> Iterator[None]:
    """Be nobody for a moment; who is not root is someone else already."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_request_that_never_ends_does_not_keep_others_waiting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent caller is let go, and the next is served."""
    monkeypatch.setattr(apply, "PATIENCE", timedelta(seconds=0.1))
    monkeypatch.setattr(apply, "PARTING", timedelta(seconds=0.1))
    machine.service("web")
    machine.stage(WWW, 1)
    async with machine.serving():
        _, silent = await asyncio.open_unix_connection(machine.root / "run" / "apply.sock")
        answer = await machine.says(request((WWW, 1)))
        silent.close()

    assert answer["installed"] == {WWW: 1}


async def test_it_ends_when_idle(machine: Machine) -> None:
    """Socket activation starts it again."""
    with apply.listen(machine.root / "run" / "apply.sock", config.load(machine.path)) as listener:
        async with asyncio.timeout(5):
            await apply.serve(listener, machine.path, idle=timedelta(seconds=0.05))


async def test_a_config_that_others_may_write_runs_nothing(machine: Machine) -> None:
    """It is read anew for each request, and root trusts only root's."""
    machine.service("web")
    machine.stage(WWW, 1)
    async with machine.serving():
        machine.path.chmod(0o666)
        answer = await machine.says(request((WWW, 1)))

    assert (answer["problem"]["code"], machine.log("web")) == ("config.too_open", [])


async def test_a_foreign_live_folder_stops_the_group_before_anything_is_written(machine: Machine) -> None:
    """Certbot's own files stay, and the answer says what to do."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(MAIL, 1)
    (machine.root / "etc" / "live" / WWW).mkdir(parents=True)

    answer = await machine.asks((MAIL, 1), (WWW, 1))

    assert answer["problem"]["code"] == "service.install_failed"
    assert "before-certfan" in answer["problem"]["hint"]
    assert (machine.log("web"), machine.live(MAIL)) == ([], None)


@pytest.mark.parametrize("test_passes", [True, False])
def test_killed_between_any_two_steps_the_same_request_ends_right(
    machine: Machine, test_passes: bool
) -> None:
    """At each change of a name on disk in turn: what is live always matches, and the repeat completes or undoes it."""
    machine.service("web")
    machine.stage(WWW, 1)
    swap(machine, WWW, 1)
    old = machine.live()
    points = 0
    while True:
        points += 1
        machine.does("web", "test", "exit 0")
        machine.stage(WWW, points + 1)
        if not test_passes:
            machine.does("web", "test", "exit 1")

        def cut_off(number: int = points) -> None:
            killed_at(number)
            swap(machine, WWW, number + 1)

        code = in_child(cut_off)
        new = machine.staged_fingerprint(WWW, points + 1)
        assert machine.live() in {old, new}
        (machine.root / "web" / "log").write_text("")
        answer = swap(machine, WWW, points + 1)

        assert answer.rolled_back is not test_passes
        assert machine.live() == (new if test_passes else old)
        # The second test is with the former pair: whose fault it is.
        assert machine.log("web")[:2] == (["test", "reload"] if test_passes else ["test", "test"])
        assert not (machine.root / "etc" / "generations" / ".owed.json").exists()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        old = machine.live()
    assert points > 8


@pytest.mark.parametrize("command", ["test", "reload"])
def test_killed_inside_a_command_the_repeat_still_knows_the_way_back(machine: Machine, command: str) -> None:
    """The command kills its caller; the repeat finds the service dead of it, goes back and starts it."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(WWW, 2)
    swap(machine, WWW, 1)
    machine.does("web", command, "kill -9 $PPID; rm -f runs")
    code = in_child(lambda: (swap(machine, WWW, 2), None)[1])
    machine.does("web", command, "rm -f runs")
    if command == "reload":
        machine.does(
            "web", "start", '[ "$(readlink ../etc/live/*)" = ../generations/www.example.org/1 ] || exit 1'
        )

    answer = swap(machine, WWW, 2)

    assert code == -signal.SIGKILL
    if command == "reload":
        assert (answer.rolled_back, machine.live()) == (True, machine.staged_fingerprint(WWW, 1))
    assert (machine.root / "web" / "runs").exists()


def test_what_the_killed_one_left_is_undone_with_another_group(machine: Machine) -> None:
    """A pointer that moved and was never tested goes back with the next group whose test fails."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(WWW, 2)
    machine.stage(MAIL, 1)
    swap(machine, WWW, 1)
    machine.does("web", "test", "kill -9 $PPID; exit 1")
    in_child(lambda: (swap(machine, WWW, 2), None)[1])
    assert machine.live() == machine.staged_fingerprint(WWW, 2)
    machine.does("web", "test", "exit 1")

    answer = swap(machine, MAIL, 1)

    assert answer.rolled_back
    assert (machine.live(WWW), machine.live(MAIL)) == (machine.staged_fingerprint(WWW, 1), None)


def test_fifty_certificates_of_one_service_are_one_test_and_one_reload(machine: Machine) -> None:
    """By the program as it is started where there is no systemd; so are placeholders of many."""
    machine.service("web")
    names = [f"n{number:02}.example.org" for number in range(50)]
    pair = pki.load_pair(*pki.make_placeholder(names, NOW))
    for name in names:
        machine.stage(name, 1, machine.bundle(name, 1, pair=pair))
    path = machine.root / "run" / "own.sock"
    program = "import sys; from pathlib import Path; from certfan.agent import apply; apply.run(Path(sys.argv[1]), socket_path=Path(sys.argv[2]))"

    async def scenario() -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, machine.path, path)
        try:
            async with asyncio.timeout(30):
                while not path.exists() and process.returncode is None:
                    await asyncio.sleep(0.01)
                return [await ask(path, names[:3], 0), await ask(path, names, 1)]
        finally:
            process.kill()
            await process.wait()

    async def ask(path: Path, names: list[str], generation: int) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request(*((name, generation) for name in names)))
        writer.write_eof()
        found: dict[str, Any] = json.loads(await reader.read())
        writer.close()
        await writer.wait_closed()
        return found

    placeholders, pairs = (answer["installed"] for answer in asyncio.run(scenario()))
    assert (placeholders, pairs) == (dict.fromkeys(names[:3], 0), dict.fromkeys(names, 1))
    assert machine.log("web") == ["test", "reload", "test", "reload", *["hook"] * 50]


# The boot unit


def boots(machine: Machine) -> dict[str, int]:
    return boot.lay_all(config.load(machine.path), lambda: NOW, deadline=monotonic() + 10)


def install(machine: Machine, *generations: int) -> None:
    layout = Layout(KeyFile(str(os.getuid()), str(os.getgid())))
    for number in generations:
        pair = pki.load_pair(*pki.make_placeholder([WWW], NOW))
        machine.installer.point(WWW, machine.installer.put(WWW, number, pair, layout))


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({}, 3),
        ({"g3": ("trying", 1)}, 3),
        ({"g2": ("proven", 1), "g3": ("trying", 2)}, 2),
        ({"g2": ("proven", 1), "g3": ("proven", 2)}, 3),
        ({"g2": ("proven", 5), "g3": ("proven", 2)}, 2),
        ({"g3": ("failed", 1)}, 2),
        ({"g2": ("failed", 1), "g3": ("failed", 1)}, 1),
        ({"g1": ("failed", 1), "g2": ("failed", 1), "g3": ("failed", 1)}, 0),
        ({"g9": ("proven", 1)}, 3),
    ],
)
def test_boot_lays_what_was_last_proven_else_the_newest_not_failed_else_a_placeholder(
    machine: Machine, noted: dict[str, tuple[str, int]], expected: int
) -> None:
    """Whatever the power cut left: services start on something that matches."""
    machine.service("web")
    install(machine, 1, 2, 3)
    machine.outcomes(**noted)

    assert boots(machine) == {WWW: expected}
    assert machine.live() is not None
    assert boots(machine) == {WWW: expected}
    assert machine.log("web") == []


def test_boot_passes_over_a_pair_that_does_not_load(machine: Machine) -> None:
    """A torn file of a power cut is no reason not to start."""
    machine.service("web")
    install(machine, 1, 2)
    machine.outcomes(g2=("proven", 1))
    (machine.root / "etc" / "generations" / WWW / "2" / "privkey.pem").write_bytes(b"")

    assert boots(machine) == {WWW: 1}
    (machine.root / "etc" / "generations" / WWW / "1" / "fullchain.pem").unlink()
    assert boots(machine) == {WWW: 0}
    assert machine.live() is not None


def test_boot_prefers_a_pair_that_has_not_expired(machine: Machine) -> None:
    """An expired one only when no other is left."""
    machine.service("web")
    install(machine, 1)
    layout = Layout(KeyFile(str(os.getuid()), str(os.getgid())))
    old = pki.load_pair(*pki.make_placeholder([WWW], NOW - timedelta(days=90)))
    machine.installer.put(WWW, 2, old, layout)
    machine.outcomes(g2=("proven", 1))

    assert boots(machine) == {WWW: 1}
    machine.outcomes(g1=("failed", 1), g2=("proven", 1))
    assert boots(machine) == {WWW: 2}


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[1]", b'{"www.example.org": 3}', b'{"www.example.org": {"x": {}}}']
)
def test_boot_does_without_the_agents_notes(machine: Machine, junk: bytes) -> None:
    """A torn outcomes.json costs only the memory of what failed."""
    machine.service("web")
    install(machine, 1, 2)
    (machine.root / "state" / "outcomes.json").write_bytes(junk)

    assert boots(machine) == {WWW: 2}


def test_boot_lays_placeholders_for_names_that_services_name(machine: Machine) -> None:
    """The whole vhost may be written before the name is ever assigned; a pattern asks for nothing."""
    machine.service("web", WWW)
    machine.service("mail", "mail.*")

    first = boots(machine)
    placeholder = machine.live()

    assert (first, boots(machine)) == ({WWW: 0}, {WWW: 0})
    assert machine.live() == placeholder


def test_boot_adds_the_form_of_a_service_that_is_new(machine: Machine) -> None:
    """agent.toml was changed and the host reset before anything was installed anew."""
    machine.service("web")
    install(machine, 1)
    machine.service("proxy", more='output = "pem"')
    machine.keystore("store")

    assert boots(machine) == {WWW: 1}
    assert machine.live() is not None  # which opens each form


def test_boot_lays_the_others_when_a_password_is_not_to_be_had(machine: Machine) -> None:
    """Apache starts; what reads the keystore was told of."""
    machine.service("web")
    install(machine, 1)
    machine.keystore("store").unlink()

    assert boots(machine) == {WWW: 1}


def test_boot_leaves_what_certfan_did_not_make(machine: Machine) -> None:
    """One name that cannot be laid holds up no other."""
    machine.service("web", f'{WWW}", "{MAIL}')
    (machine.root / "etc" / "live" / MAIL).mkdir(parents=True)

    assert boots(machine) == {WWW: 0}


def test_boot_ends_an_interrupted_swap(machine: Machine) -> None:
    """What was cut off before its test is not what services start on, and nothing is owed afterwards."""
    machine.service("web")
    machine.stage(WWW, 1)
    machine.stage(WWW, 2)
    swap(machine, WWW, 1)
    machine.outcomes(g1=("proven", 1), g2=("trying", 2))
    machine.does("web", "test", "kill -9 $PPID")
    in_child(lambda: (swap(machine, WWW, 2), None)[1])

    assert boots(machine) == {WWW: 1}
    assert not (machine.root / "etc" / "generations" / ".owed.json").exists()


def test_boot_stops_at_its_deadline(machine: Machine) -> None:
    """Services wait ten seconds and no longer."""
    machine.service("web", WWW)

    assert boot.lay_all(config.load(machine.path), lambda: NOW, deadline=monotonic() - 1) == {}


def test_boot_gives_way_to_an_apply_at_work(machine: Machine) -> None:
    """One of them at a time."""
    machine.service("web", WWW)
    loaded = config.load(machine.path)
    loaded.install_to.mkdir()
    with files.locked(apply.lock_path(loaded)), pytest.raises(StateLocked):
        boot.run(machine.path)
    boot.run(machine.path)

    assert machine.live() is not None
