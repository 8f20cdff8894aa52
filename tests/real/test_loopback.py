"""The whole job on loopback: what `make demo` does where namespaces or FUSE are not to be had."""

from pathlib import Path

import pytest

from tests.lab.demo import Story
from tests.lab.loopback import Loopback
from tests.lab.loopback_layout import lacking

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())}"),
]


def _served(place: Loopback) -> dict[str, str]:
    return {endpoint.label: place.serial(endpoint) for endpoint in place.endpoints}


def test_a_name_in_the_config_is_served_everywhere_and_so_is_its_renewal() -> None:
    """Both generations are proven at every endpoint, openssl sees each of them there, and nothing stays behind."""
    with Loopback(print).up() as place:
        story = Story(place)
        story.tell(place.add_certificate, generation=1)
        first, after_first = place.certificate()["serial"], _served(place)
        story.tell(place.renew, generation=2)
        second, after_second = place.certificate()["serial"], _served(place)
        pids = place.pids()

    labels = {endpoint.label for endpoint in place.endpoints}
    assert dict.fromkeys(labels, first) == after_first
    assert dict.fromkeys(labels, second) == after_second
    assert first != second
    assert [pid for pid in pids if _runs(pid)] == []
    assert not place.rundir.exists()


def _runs(pid: int) -> bool:
    """Whether a process is still at work; one that only waits to be reaped is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
