"""What the plan takes the share for, kept from look to look."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from certfan.core.model import Custody
from certfan.core.shown import Showing, shown
from tests.unit.planner_parts import WEB1, make_certificate, make_desired

PLAIN, SEALED, GONE = "plain.test", "sealed.test", "gone.test"
BOTH = make_desired(
    make_certificate(PLAIN, (PLAIN,)),
    replace(make_certificate(SEALED, (SEALED,)), custody=Custody.SEALED),
)
ONE = make_desired(make_certificate(PLAIN, (PLAIN,)))
AT_PLAIN, AT_SEALED, AT_GONE = ((name, WEB1) for name in (PLAIN, SEALED, GONE))
RESEALED = {AT_SEALED: frozenset({(1, "a"), (2, "a"), (2, "b")})}
LYING = [
    {},
    RESEALED,
    {**RESEALED, AT_PLAIN: frozenset({(1, ""), (2, "")})},
    {AT_PLAIN: frozenset({(1, ""), (1, "old")}), AT_GONE: frozenset({(1, "a"), (1, "b")})},
]
POINTERS = [{}, {AT_SEALED: (2, "a"), AT_PLAIN: (1, "")}, {AT_SEALED: (2, "b"), AT_GONE: (1, "a")}]
# Few of each, so that most looks change one thing; the last is what the sealed key was last sealed to.
LOOKS = st.tuples(
    st.sampled_from([BOTH, BOTH, BOTH, ONE]),
    st.sampled_from(LYING),
    st.sampled_from(POINTERS),
    st.sampled_from([None, "a", "b"]),
)


@given(looks=st.lists(LOOKS, min_size=2, max_size=9))
def test_what_is_kept_from_look_to_look_changes_nothing(looks: list[tuple[object, ...]]) -> None:
    """Whatever lies there, is pointed at, is asked for or has left the config meanwhile."""
    kept = Showing()
    for desired, published, live, sealed_to in looks:

        def asked(name: str, _consumer: str, _number: int, now: object = sealed_to) -> object:
            return "" if name == PLAIN else now

        found = kept.of(desired, published, live, asked)  # type: ignore[arg-type]
        assert shown(desired, published, live, asked) == found  # type: ignore[arg-type]


def test_a_place_where_nothing_changed_is_not_judged_again() -> None:
    """With a thousand certificates every plan would else begin with some milliseconds of that."""
    kept, judged = Showing(), []

    def asked(name: str, _consumer: str, _number: int) -> str:
        judged.append(name)
        return ""

    places = {AT_PLAIN: frozenset({(1, "")}), AT_SEALED: frozenset({(1, "")})}
    kept.of(BOTH, places, {}, asked)
    kept.of(BOTH, {**places, (PLAIN, "web2"): frozenset({(1, "")})}, {}, asked)

    assert [PLAIN, SEALED] == sorted(judged[:2])
    assert [SEALED] == judged[2:]
