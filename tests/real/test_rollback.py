"""Going back and forgetting on real parts: real endpoints, a real GlusterFS volume."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.lab.machine import CommandFailed, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
OLD = f"v6.{NAME}"


def served(fleet: Fleet) -> set[str]:
    """The serials that anybody sees."""
    return {fleet.serial(endpoint) for endpoint in ENDPOINTS}


def test_an_older_pair_is_served_again_under_a_new_number_until_the_next_renewal(fleet: Fleet) -> None:
    """Every endpoint proves the old leaf as the next generation; `renew` then brings a new one."""
    first = fleet.wait_proven()
    old = fleet.certificate()["serial"]
    fleet.renew()
    second = fleet.wait_proven(first + 1)
    new = fleet.certificate()["serial"]
    assert {new} == served(fleet)

    answer = json.loads(fleet.cert.run(["certfan", "rollback", NAME, "--to", str(first), "--json"]).stdout)
    third = fleet.wait_proven(second + 1)
    view = fleet.certificate()
    assert (old, old) == (answer["serial"], view["serial"])
    assert third == view["generation"] > second
    assert {old} == served(fleet)
    assert {third} == {row["served"]["generation"] for row in view["endpoints"]}
    asked = [e["fields"] for e in fleet.events(-1) if e["name"] == "rollback.asked"]
    assert [0] == [fields["uid"] for fields in asked]
    with pytest.raises(CommandFailed, match="has the pair of"):
        fleet.cert.run(["certfan", "rollback", NAME, "--to", str(third)])

    fleet.renew()
    fleet.wait_proven(third + 1)
    assert fleet.certificate()["copy_of"] is None
    assert not {old, new} & served(fleet)


def orphan(fleet: Fleet) -> Mapping[str, Any] | None:
    """What the status says of the certificate that left the config."""
    found = [one for one in fleet.get("/api/v1/status")["orphans"] if one["name"] == OLD]
    return found[0] if found else None


def test_what_left_the_config_stays_until_it_is_forgotten_and_then_leaves_no_key(fleet: Fleet) -> None:
    """On the volume and in the state folder; what is wanted stays, and its numbers go on if it comes back."""
    fleet.add_certificate([OLD], ["web1"], file="old")
    on_share, here = f"/srv/le/web1/generations/{OLD}", f"/var/lib/certfan/generations/{OLD}@*"
    wait_until(lambda: fleet.cert.run(["ls", f"/srv/le/web1/live/{OLD}/"], check=False).stdout != "", OLD, 60)
    with pytest.raises(CommandFailed, match="still in the config"):
        fleet.cert.run(["certfan", "forget", OLD])
    fleet.cert.run(["rm", "/etc/certfan/conf.d/old.toml"])
    fleet.cert.run(["certfan", "reload"])
    wait_until(lambda: orphan(fleet) is not None, f"{OLD} orphaned", 30)
    assert ["web1"] == (orphan(fleet) or {})["on"]
    assert f"certfan forget {OLD}" in fleet.cert.run(["certfan", "status"]).stdout
    fleet.cert.run(["sh", "-c", f"ls {on_share} {here}"])

    fleet.cert.run(["certfan", "forget", OLD])
    wait_until(lambda: orphan(fleet) is None, f"{OLD} forgotten", 30)
    for path in (on_share, here, f"/srv/le/web1/live/{OLD}"):
        with pytest.raises(CommandFailed):
            fleet.cert.run(["sh", "-c", f"ls -d {path}"])

    fleet.add_certificate([OLD], ["web1"], file="old")
    wait_until(lambda: fleet.cert.run(["ls", on_share], check=False).stdout == "2\n", f"{OLD}@2", 60)
    fleet.cert.run(["rm", "/etc/certfan/conf.d/old.toml"])
    fleet.cert.run(["certfan", "reload"])
    wait_until(lambda: orphan(fleet) is not None, f"{OLD} orphaned again", 30)
    fleet.cert.run(["certfan", "forget", OLD])
    wait_until(lambda: orphan(fleet) is None, f"{OLD} forgotten again", 30)
    fleet.wait_proven()
