"""A consumer for a daemon of `daemon_place`: both halves of an agent, and one TLS server for all that it installs.

The server reads a pair from the installed folder at every handshake, so it needs no reload; a name that has none gets no
handshake.
"""

import contextlib
import os
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from certfan import pki
from tests.lab import machine
from tests.real.daemon_place import CONSUMER, Daemon

_AGENT = """\
[agent]
state = "{home}/state"
trust = "{home}/trust"
install_to = "{home}/installed"
share = "{share}"
probe_interval = {probe_interval}
quiet = {quiet}
apply_socket = "{home}/apply.sock"
user = "root"
[[service]]
name = "tls"
reload = ["true"]
start = ["true"]
active = ["true"]
endpoints = [{{ protocol = "tls", address = "127.0.0.1", port = {port} }}]
"""


class TlsServer:
    """Serves each name from the folder of that name below `live`, on a free port."""

    def __init__(self, live: Path) -> None:
        self._live = live
        self._known: dict[Path, ssl.SSLContext] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._shake, args=(client,), daemon=True).start()

    def _shake(self, client: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._choose
        client.settimeout(10)
        with client, contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as tls:
            tls.recv(1)

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        with contextlib.suppress(OSError):
            folder = (self._live / str(name)).resolve(strict=True)
            if folder not in self._known:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(folder / "fullchain.pem", folder / "privkey.pem")
                self._known[folder] = context
            tls.context = self._known[folder]
            return None
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


class Consumer:
    """The consumer of a running daemon; `quiet` and `probe_interval` are its agent's, in seconds."""

    def __init__(self, daemon: Daemon, *, quiet: float = 0.5, probe_interval: int = 20) -> None:
        self._daemon, self._home = daemon, daemon.here / CONSUMER
        self._home.mkdir()
        self.server = TlsServer(self._home / "installed/live")
        self._config = self._home / "agent.toml"
        share = daemon.here / "share" / CONSUMER
        self._config.write_text(
            _AGENT.format(
                home=self._home,
                share=share,
                port=self.server.port,
                quiet=quiet,
                probe_interval=probe_interval,
            )
        )

    @contextlib.contextmanager
    def enrolled(self) -> Iterator["Consumer"]:
        """Have it enrolled, and both halves of its agent run."""
        line = re.search(r"certfan1:\S+", self._daemon.certfan("consumer", "add", CONSUMER))
        assert line
        machine.run([*self._argv("enrol"), line[0]])
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.close)
            apply = machine.spawn(self._argv("apply"), self._home / "apply.log")
            stack.callback(machine.end, apply)
            machine.wait_until((self._home / "apply.sock").exists, "the privileged half to listen", 20)
            self._run = machine.spawn(self._argv("run"), self._home / "agent.log")
            stack.callback(machine.end, self._run)
            yield self

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have its agent do nothing at all for a while."""
        os.kill(self._run.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._run.pid, signal.SIGCONT)

    def wait_proven(self, generations: Mapping[str, int] | Sequence[str], *, timeout: float = 60) -> None:
        """Wait until the daemon says of each name that its endpoint proves at least that generation, 1 when none is told."""
        wanted = generations if isinstance(generations, Mapping) else dict.fromkeys(generations, 1)

        def proven() -> bool:
            seen = {one["name"]: one for one in self._daemon.get("/api/v1/status")["certificates"]}
            return all(
                (view := seen.get(name)) is not None
                and (view["generation"] or 0) >= number
                and all(row["verdict"] == "proven" for row in view["endpoints"])
                for name, number in wanted.items()
            )

        self._daemon.wait(proven, f"{', '.join(wanted)} to be proven", timeout)

    def serial(self, name: str) -> str:
        """Shake hands for a name; return the serial of the leaf that is served."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            leaf = tls.getpeercert(binary_form=True)
        assert leaf
        return pki.read_leaf(leaf).serial

    def _argv(self, word: str) -> list[str]:
        return [sys.executable, "-m", "certfan", "agent", word, "--config", str(self._config)]
