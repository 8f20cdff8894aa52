"""The command line as a process of its own: its exit code and all that it writes, without paying for its imports each time."""

import multiprocessing
import os
import subprocess
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

CLEAN = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
PATIENCE = 60.0  # seconds

# What most commands import; a process of Python that has them is forked for each command.
LOADED = [
    "certfan.cli",
    "certfan.cli.backup",
    "certfan.cli.agent",
    "certfan.cli.init",
    "certfan.daemon.config.loading",
    "certfan.agent.main",
    "aiohttp",
]

# The fork becomes what `python -m certfan` is: its streams, its environment, its words.
BECOME = """
import os, sys
for number, path in enumerate(paths):
    opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)
sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.argv = [program, *words]
from certfan.cli import main
main()
"""


def certfan(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("stdin", "stdout", "stderr")]
        for stream in streams:
            stream.write_text(stdin if stream.name == "stdin" else "")
        told = {
            "paths": [str(stream) for stream in streams],
            "folder": str(Path.cwd()),
            "environment": CLEAN,
            "program": "certfan",
            "words": words,
        }
        process = _forking().Process(target=exec, args=(BECOME, told))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, PATIENCE)
        _, out, err = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context
