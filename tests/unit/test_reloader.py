"""Commands of services, run for real: their ends, their output, and what they inherit."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certfan.agent import reloader
from certfan.agent.config import Service
from certfan.agent.reloader import Running
from certfan.errors import ConfigTestFailed, HookFailed, ReloadFailed, ServiceDown, ServiceError

FINE = ("true",)


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def service(**argv: tuple[str, ...]) -> Service:
    chosen = {"reload": FINE, "start": FINE, "active": FINE} | argv
    return Service("some", patterns=("*",), endpoints=(), timeout=timedelta(seconds=10), **chosen)


@pytest.mark.parametrize(
    ("step", "verb", "error"),
    [
        (reloader.test, "test", ConfigTestFailed),
        (reloader.reload, "reload", ReloadFailed),
        (reloader.start, "start", ReloadFailed),
    ],
)
async def test_a_failing_command_gives_its_last_words_and_a_hint(step, verb, error) -> None:
    """The admin reads what the command said, and what to run next."""
    failing = service(**{verb: sh("echo first; echo 'no such file' >&2; exit 3")})

    with pytest.raises(error) as caught:
        await step(failing)

    assert "exit code 3" in str(caught.value)
    assert caught.value.output == "first\nno such file"
    assert caught.value.hint.startswith("run: ")


async def test_commands_that_succeed_say_nothing() -> None:
    """Every step passes, and what is not configured passes too."""
    fine = service(test=FINE)

    assert [await step(fine) for step in (reloader.test, reloader.reload, reloader.start)] == [None] * 3
    assert await reloader.test(service()) is None
    assert await reloader.hook(service(), {}) is None


async def test_a_missing_program_is_a_failed_command() -> None:
    """It names the program."""
    with pytest.raises(ReloadFailed) as caught:
        await reloader.reload(service(reload=("/nowhere/certainly",)))

    assert caught.value.output == "/nowhere/certainly: No such file or directory"


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        (("true",), Running.RUNS),
        (sh("echo inactive; exit 3"), Running.STOPPED),
        (sh("echo failed; exit 3"), Running.DEAD),
        (("false",), Running.DEAD),
    ],
)
async def test_a_stopped_service_is_told_from_a_dead_one(active: tuple[str, ...], expected: Running) -> None:
    """`systemctl is-active` says inactive when the admin stopped it."""
    assert await reloader.state(service(active=active)) is expected


async def test_a_service_that_does_not_run_is_down() -> None:
    """With the command that shows why."""
    with pytest.raises(ServiceDown):
        await reloader.must_run(service(active=("false",)))


async def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """The whole process group goes, or a hung child would keep what it holds."""
    script = "import os, signal, sys\nif os.fork() == 0:\n  open(sys.argv[1], 'w').write(str(os.getpid()))\nsignal.pause()"
    pid_file = tmp_path / "pid"
    argv = (sys.executable, "-c", script, str(pid_file))

    ran = await reloader.run(argv, timeout=timedelta(seconds=1))

    assert ran.code is None
    await gone(int(pid_file.read_text()))


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    try:
        async with asyncio.timeout(5):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)


async def test_a_cancelled_command_is_ended(tmp_path: Path) -> None:
    """Nothing of it outlives the step that was cancelled."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    running = asyncio.create_task(
        reloader.run(sh(f"echo $$ > {fifo}; exec sleep 600"), timeout=timedelta(minutes=5))
    )
    pid = int(await asyncio.to_thread(fifo.read_text))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await gone(pid)


async def test_a_daemon_left_behind_does_not_hold_the_command_up() -> None:
    """A started service keeps its output open; its start has ended all the same."""
    async with asyncio.timeout(5):
        ran = await reloader.run(sh("sleep 600 & echo $!"), timeout=timedelta(seconds=60))

    assert ran.code == 0
    os.kill(int(ran.output), signal.SIGKILL)


async def test_output_is_cut_to_its_last_lines_and_made_printable() -> None:
    """A chatty command fills neither memory nor a report, and sends no escapes to a terminal."""
    noisy = (
        "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done; printf 'a\\033[2Jb\\377\\n'; exit 1"
    )
    ran = await reloader.run(sh(noisy), timeout=timedelta(seconds=20))

    lines = ran.output.splitlines()
    assert len(lines) == reloader.KEPT_LINES
    assert lines[-2:] == ["line 8999", "a?[2Jb\ufffd"]
    endless = await reloader.run(sh("head -c 3000000 /dev/zero | tr '\\0' x"), timeout=timedelta(seconds=20))
    assert len(endless.output) == reloader.KEPT_BYTES


async def test_a_command_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, no open descriptor, no terminal, no folder of ours."""
    monkeypatch.setenv("CERTFAN_LEAK", "x")
    looks = "env | cut -d= -f1 | sort | tr '\\n' ' '; pwd; readlink /proc/self/fd/0; ls /proc/$$/fd; true"
    ran = await reloader.run(sh(looks), timeout=timedelta(seconds=10))

    assert ran.output.splitlines() == ["LC_ALL PATH PWD /", "/dev/null", "0", "1", "2"]


async def test_a_hook_gets_its_environment_and_its_failure_is_its_own() -> None:
    """Certbot's variables reach it."""
    hooked = service(hook=sh('echo "$RENEWED_DOMAINS"; exit 1'))

    with pytest.raises(HookFailed) as caught:
        await reloader.hook(hooked, {"RENEWED_DOMAINS": "a.example.org b.example.org"})

    assert caught.value.output == "a.example.org b.example.org"
    assert isinstance(caught.value, ServiceError)


async def test_a_hook_that_hangs_is_ended_with_what_it_had_said() -> None:
    """Nobody waits for an existing script for ever, and it is told what it was doing."""
    hooked = replace(service(hook=sh("echo copying; exec sleep 60")), timeout=timedelta(seconds=0.3))

    with pytest.raises(HookFailed) as caught:
        await reloader.hook(hooked, {})

    assert "took longer than 0.3 s" in str(caught.value)
    assert caught.value.output == "copying"
