"""What Prometheus itself makes of our metrics, of the alert rules and of the dashboard that we ship."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certfan.daemon.status.metrics import exposition
from certfan.daemon.status.view import view
from tests.unit.status_populated import populated

pytestmark = pytest.mark.real

PROJECT = Path(__file__).parents[2]
RULES = PROJECT / "config/prometheus/certfan.rules.yml"
DASHBOARD = PROJECT / "config/grafana/certfan.json"
CASES = PROJECT / "tests/lab/prometheus/certfan.test.yml"
FOREIGN = {"up"}  # Prometheus's own


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode() + done.stderr.decode()


def families() -> set[str]:
    """Every name that can stand in a query."""
    text = exposition(view(populated())).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def asked(text: str) -> set[str]:
    return set(re.findall(r"\b(?:certfan|x509|process)_[a-z0-9_]+|\bup\b", text)) - FOREIGN


def test_the_exposition_has_nothing_that_prometheus_minds() -> None:
    """Names, help, units and types, by its own linter; the farm has something of every family."""
    text = exposition(view(populated()))

    assert promtool("check", "metrics", stdin=text) == ""
    assert {
        "x509_cert_not_after",
        "certfan_endpoint_urgency",
        "certfan_authority_limit_used_ratio",
    } <= families()


def test_the_alerts_come_when_they_should_and_not_before(tmp_path: Path) -> None:
    """The rules load, and promtool's own time machine sees each of them come."""
    promtool("check", "rules", RULES)
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text().replace("RULES", str(RULES)))

    assert "SUCCESS" in promtool("test", "rules", cases)


def test_every_alert_is_tried_and_says_what_to_run() -> None:
    """A rule that no case names could be wrong unseen; on the worst night there is a command in each."""
    rules = RULES.read_text()
    alerts = set(re.findall(r"alert: (\w+)", rules))

    assert alerts == set(re.findall(r"alertname: (\w+)", CASES.read_text()))
    assert len(re.findall(r"runbook: .*run", rules)) == len(alerts)


@pytest.mark.parametrize("file", [RULES, DASHBOARD], ids=lambda file: file.name)
def test_what_is_shipped_asks_only_for_what_there_is(file: Path) -> None:
    """A family that was renamed would leave a rule that never fires, or a panel without data."""
    if file == DASHBOARD:
        board = json.loads(file.read_text())
        queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        queries += [one["expr"] for one in board["annotations"]["list"]]
    else:
        queries = re.findall(r"expr: (.*)", file.read_text())

    assert queries
    assert asked("\n".join(queries)) - families() == set()
    assert not [query for query in queries if not asked(query) and "up{" not in query]
