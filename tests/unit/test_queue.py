"""The orders that nothing holds up, kept in order."""

from datetime import timedelta

from certfan.core.model import Reason
from certfan.core.queue import Due, Queue
from certfan.core.steps import Issue
from tests.unit.planner_parts import NOW


def due(name: str, hours: int = 0, *, failed: bool = False) -> Due:
    priority = (failed, True, NOW + timedelta(hours=hours), name)
    return priority, Issue(name, Reason.MISSING, "ca")


def names(queue: Queue) -> str:
    return "".join(issue.certificate for issue in queue)


def test_the_most_urgent_comes_first_whenever_it_came() -> None:
    """What has failed before comes last; of equals the name decides."""
    queue = Queue()
    for one in (due("d", failed=True), due("c", 1), due("b"), due("a", 1)):
        queue.replace(None, one)

    assert "bacd" == names(queue)


def test_a_certificate_is_there_once_with_what_is_due_now_or_not_at_all() -> None:
    """Its earlier order goes, whether another comes in its place or none."""
    queue = Queue()
    for name in "abc":
        queue.replace(None, due(name))
    queue.replace(due("a"), due("a", 1))
    queue.replace(due("b"), None)
    queue.replace(due("c"), due("c"))

    assert "ca" == names(queue)
