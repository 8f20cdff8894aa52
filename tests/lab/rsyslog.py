"""A private rsyslog that takes lines over TLS and writes what it has understood of each into a file."""

import json
from pathlib import Path
from typing import Any

import trustme

from tests.lab import machine
from tests.lab.pebble import free_port

_CONFIG = """\
global(workDirectory="{here}" defaultNetstreamDriver="gtls" maxMessageSize="16k"
  defaultNetstreamDriverCAFile="{here}/ca.pem" defaultNetstreamDriverCertFile="{here}/pair.pem"
  defaultNetstreamDriverKeyFile="{here}/key.pem")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="understood" type="list" option.jsonf="on") {{
  property(outname="event" name="msgid" format="jsonf")
  property(outname="program" name="app-name" format="jsonf")
  property(outname="pid" name="procid" format="jsonf")
  property(outname="severity" name="syslogseverity-text" format="jsonf")
  property(outname="facility" name="syslogfacility-text" format="jsonf")
  property(outname="at" name="timereported" dateFormat="rfc3339" format="jsonf")
  property(outname="data" name="structured-data" format="jsonf")
  property(outname="text" name="msg" format="jsonf")
}}
template(name="line" type="list") {{ property(name="msg") constant(value="\\n") }}
ruleset(name="all") {{ action(type="omfile" file="{here}/lines" template="understood") }}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="all")
"""


class Rsyslog:
    """One rsyslog in a folder; it may be killed and started again at the same port."""

    def __init__(self, here: Path) -> None:
        here.mkdir()
        self._here, self.port = here, free_port()
        self.ca_file = here / "ca.pem"
        ca = trustme.CA()
        ca.cert_pem.write_to_path(self.ca_file)
        pair = ca.issue_cert("127.0.0.1")
        pair.private_key_pem.write_to_path(here / "key.pem")
        (here / "pair.pem").write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        (here / "conf").write_text(_CONFIG.format(here=here, port=self.port))
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        argv = ["/usr/sbin/rsyslogd", "-n", "-f", str(self._here / "conf"), "-i", str(self._here / "pid")]
        self._process = machine.spawn(argv, self._here / "log")
        machine.wait_until(lambda: machine.listens(self._process.pid, self.port), "rsyslog to listen")

    def stop(self) -> None:
        """End it; repeatable."""
        machine.end(self._process)

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has understood so far, oldest first."""
        file = self._here / "lines"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def heard(self, event: str) -> dict[str, Any]:
        """Wait until it has a line of an event, and return the first."""
        machine.wait_until(
            lambda: any(one["event"] == event for one in self.lines()), f"rsyslog to hear {event}", 30
        )
        return next(one for one in self.lines() if one["event"] == event)
