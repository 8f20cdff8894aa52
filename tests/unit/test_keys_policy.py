"""Which private key a new generation gets: an earlier one up to its age, never a spent one, never another type."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from certfan.core.keys import key_to_reuse, spent_keys, unwanted
from certfan.core.model import Certificate, Generation, KeyType
from tests.unit.planner_parts import DAY, NOW, WWW, make_certificate, make_generation

SECOND = timedelta(seconds=1)
REUSING = replace(make_certificate(), reuse_key=100 * DAY)


def generation(number: int, key: str, *, age: int = 0, key_type: KeyType = KeyType.ECDSA_P256) -> Generation:
    return replace(make_generation(number, issued_at=NOW - age * DAY), key=key, key_type=key_type)


def reused(*generations: Generation, certificate: Certificate = REUSING, spent: tuple[str, ...] = ()) -> int:
    """Return the number of the generation whose key is taken; 0 for a new key."""
    found = key_to_reuse(certificate, generations, spent, NOW)
    return found.number if found is not None else 0


def test_by_default_each_generation_gets_a_new_key() -> None:
    """Reuse has to be asked for, and needs something to reuse."""
    assert 0 == reused(generation(1, "aa"), certificate=make_certificate())
    assert 0 == reused()


def test_a_key_is_reused_until_it_is_too_old() -> None:
    """Its age counts from the first generation that had it, not from the last."""
    young = (generation(1, "aa", age=99), generation(2, "aa", age=30))
    old = (generation(1, "aa", age=100), generation(2, "aa", age=30))

    assert 2 == reused(*young)
    assert 0 == reused(*old)
    assert 2 == reused(generation(1, "bb", age=200), generation(2, "aa", age=99))


def test_a_spent_key_is_never_used_again() -> None:
    """Nor is an older one instead of it."""
    assert 0 == reused(generation(1, "aa"), spent=("aa",))
    assert 0 == reused(generation(1, "bb"), generation(2, "aa"), spent=("aa",))


def test_a_key_of_another_type_is_not_used() -> None:
    """The config asks for another one."""
    assert 0 == reused(generation(1, "aa", key_type=KeyType.RSA_2048))


def test_a_key_that_nobody_knows_is_not_used() -> None:
    """What was issued by 0.1.0 has no hash to compare with the spent ones, and none of them spends another."""
    assert 0 == reused(generation(1, ""))
    assert frozenset() == spent_keys([generation(1, ""), generation(2, "")], [(WWW, 1)])


def test_the_keys_of_what_is_revoked_are_spent() -> None:
    """Of exactly these generations."""
    known = [generation(1, "aa"), generation(2, "bb"), generation(3, "aa")]

    assert {"aa"} == spent_keys(known, [(WWW, 1), ("other", 2)])


def test_what_has_the_key_or_the_leaf_of_what_is_revoked_is_unwanted_too() -> None:
    """The leaf tells of a copy whose key nobody knows."""
    first, other = generation(1, ""), generation(2, "bb")
    copy = replace(generation(3, ""), fingerprint=first.fingerprint, copy_of=1)
    same_key = generation(4, "bb")

    assert {(WWW, 1), (WWW, 3)} == unwanted([first, other, copy, same_key], [(WWW, 1)])
    assert {(WWW, 2), (WWW, 4)} == unwanted([first, other, copy, same_key], [(WWW, 4)])
    assert frozenset() == unwanted([first, other], [(WWW, 7), ("other", 1)])


KEYS = st.sampled_from(["", "aa", "bb", "cc"])


@given(
    st.lists(st.tuples(KEYS, st.integers(0, 300), st.sampled_from(KeyType)), max_size=8),
    st.sets(st.integers(1, 8)),
    st.integers(1, 300),
)
def test_whatever_was_issued_a_reused_key_is_young_unspent_and_of_the_wanted_type(
    issued: list[tuple[str, int, KeyType]], revoked: set[int], most: int
) -> None:
    """For every history of generations and revocations."""
    known = [
        generation(number, key, age=age, key_type=key_type)
        for number, (key, age, key_type) in enumerate(issued, start=1)
    ]
    spent = spent_keys(known, {(WWW, number) for number in revoked})
    found = key_to_reuse(replace(REUSING, reuse_key=most * DAY), known, spent, NOW)

    if found is not None:
        assert found.key
        assert all(g.key != found.key for g in known if g.number in revoked)
        assert all(NOW < g.issued_at + most * DAY for g in known if g.key == found.key)
        assert KeyType.ECDSA_P256 is found.key_type
