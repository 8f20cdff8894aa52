"""The whole pipe on real parts: what the README promises, looked at from outside."""

import base64
import json

import pytest

from tests.lab.fleet import ENDPOINTS, Fleet, Seen
from tests.lab.machine import wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.label)
def test_openssl_sees_at_every_endpoint_what_the_status_says(fleet: Fleet, endpoint: Seen) -> None:
    """A proof is what anybody else sees too."""
    assert fleet.serial(endpoint) == fleet.certificate()["serial"]


def test_a_forced_renewal_is_proven_everywhere(fleet: Fleet) -> None:
    """`certfan renew` gives a new generation, one more than before."""
    before = fleet.wait_proven()

    fleet.renew()

    assert fleet.wait_proven(before + 1) == before + 1
    assert {fleet.serial(endpoint) for endpoint in ENDPOINTS} == {fleet.certificate()["serial"]}


def verdicts(fleet: Fleet, consumer: str) -> set[str]:
    """What the status thinks of a consumer's endpoints."""
    return {row["verdict"] for row in fleet.certificate()["endpoints"] if row["consumer"] == consumer}


def test_a_dead_agent_turns_its_rows_from_proven_to_unheard_and_nobody_elses(fleet: Fleet) -> None:
    """A proof that nobody repeats says nothing after two probe intervals; the deadline runs on."""
    fleet.wait_proven()
    fleet.web1.run(["systemctl", "kill", "--signal=KILL", "certfan-agent"])
    fleet.web1.run(["systemctl", "stop", "certfan-agent"])
    try:
        wait_until(lambda: verdicts(fleet, "web1") == {"unheard"}, "web1 unheard", 30)
        problems = fleet.get("/api/v1/status")["problems"]

        assert verdicts(fleet, "mail1") == {"proven"}
        assert [(p["subject"], p["code"]) for p in problems] == [("web1", "consumer.unheard")]
        assert "systemctl status certfan-agent" in problems[0]["hint"]
    finally:
        fleet.web1.run(["systemctl", "start", "certfan-agent"])
    fleet.wait_proven()


def test_the_cli_shows_what_the_status_endpoint_says(fleet: Fleet) -> None:
    """`certfan status --json` is the same page, and the table names every endpoint."""
    fleet.wait_proven()

    page = json.loads(fleet.cert.run(["certfan", "status", "--json"]).stdout)
    table = fleet.cert.run(["certfan", "status"]).stdout

    assert page["summary"]["state"] == "ok"
    for row in page["certificates"][0]["endpoints"]:
        assert row["endpoint"]["url"] in table
    assert "\x1b[" not in table  # no terminal, no colour


def test_health_is_told_by_name(fleet: Fleet) -> None:
    """/livez and /readyz are 200 while all is well, and name their checks when asked."""
    lines = fleet.cert.run(["curl", "-sSf", f"{fleet.status_url}/readyz?verbose"]).stdout.splitlines()

    assert lines == ["reconciler: ok", "share: ok", "http01: ok", "ok"]
    assert fleet.cert.run(["curl", "-sSf", f"{fleet.status_url}/livez"]).stdout == "ok\n"


def test_the_status_listener_has_no_writing_routes(fleet: Fleet) -> None:
    """What changes anything is on the control socket alone."""
    answer = fleet.cert.run(
        [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-d",
            "{}",
            f"{fleet.status_url}/api/v1/renew",
        ]
    )

    assert answer.stdout in {"404", "405"}


def test_no_key_of_the_fleet_is_in_a_log_a_status_or_the_database(fleet: Fleet) -> None:
    """Real keys are looked for as they stand on disk, without their armour."""
    keys = fleet.cert.run(
        ["sh", "-c", "cat /var/lib/certfan/generations/*.privkey.pem /var/lib/certfan/ca/*.key.pem"]
    ).stdout
    secrets = [line for line in keys.splitlines() if len(line) == 64]
    places = {
        "journal of cert": fleet.cert.journal(),
        "journal of web1": fleet.web1.journal(),
        "status": json.dumps(fleet.get("/api/v1/status")),
        "events": json.dumps(fleet.events(-1)),
        "database": fleet.cert.run(["sh", "-c", "cat /var/lib/certfan/certfan.db* | base64 -w0"]).stdout,
    }
    raw = base64.b64decode(places.pop("database")).decode("latin-1")

    assert secrets
    assert [name for name, text in {**places, "database": raw}.items() for s in secrets if s in text] == []
