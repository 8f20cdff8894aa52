"""A real daemon tells a real rsyslog, over TLS; what the run before has seen last is told at the next start."""

from pathlib import Path

import pytest

from tests.lab.rsyslog import Rsyslog
from tests.real.daemon_place import Place, authority, certificate

pytestmark = pytest.mark.real


def test_rsyslog_understands_every_line_and_gets_those_of_its_own_outage(
    daemons: Place, tmp_path: Path
) -> None:
    """Structured data, severity and text; the outage is in the journal and ends with a line; the last line comes too."""
    receiver = Rsyslog(tmp_path / "rsyslog")
    remote = f'[log]\nremote = "tls://127.0.0.1:{receiver.port}"\nca_file = "{receiver.ca_file}"\n'
    ca = daemons.faulty()
    try:
        with daemons.running(authority("ca", ca), certificate("a.test"), top=remote) as daemon:
            daemon.issued("a.test")
            issued = receiver.heard("generation.issued")
            receiver.stop()
            daemon.wait(lambda: daemon.events("log.undelivered"), "the outage to be told")
            needs = [one["subject"] for one in daemon.get("/api/v1/status")["problems"]]
            daemon.renew("a.test")
            daemon.issued("a.test", generation=2)
            receiver.start()
            back = receiver.heard("log.delivered")
            asked = receiver.heard("renewal.asked")
            page = daemon.get("/api/v1/status")
            assert 0 == daemon.stop()
            receiver.heard("run.ended")
    finally:
        receiver.stop()

    assert ("certfan", "info", "daemon") == (issued["program"], issued["severity"], issued["facility"])
    assert 'subject="a.test@1"' in issued["data"]
    assert issued["text"].strip().startswith("generation.issued a.test@1")
    assert "log" in needs
    assert 'dropped="0"' in back["data"]
    assert asked in receiver.lines()
    assert None is page["remote_log"]["problem"]
    assert 0 == page["remote_log"]["dropped"]


def test_a_run_without_an_end_is_told_with_its_last_events(daemons: Place) -> None:
    """In log and API; a second one has those of the first run only by name."""
    with daemons.running() as daemon:
        daemon.kill()
        daemon.start()
        daemon.kill()
        daemon.start()
        first, second = daemon.events("run.unclean")
        log = daemon.log.read_text()

    assert "run.began" in [one["name"] for one in first["fields"]["last"]]
    again = [one for one in second["fields"]["last"] if one["name"] == "run.unclean"]
    assert ["run 1"] == [one["subject"] for one in again]
    assert "last" not in again[0]
    assert "run 1" not in [one["subject"] for one in first["fields"]["last"]]
    assert '"event": "run.unclean"' in log
    assert len(second["fields"]["last"]) <= 20
