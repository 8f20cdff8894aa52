"""Lays what no order of ours just brought: an older generation again, or another program's pair."""

from __future__ import annotations

from collections.abc import Mapping

from certfan.daemon.state import StateFolder

_KEY_FILES = frozenset({"privkey.pem", "request.pem"})  # the key, or the request of the consumer that has it


def lay(state: StateFolder, name: str, files: Mapping[str, bytes], floor: int) -> int:
    """Lay a generation's files under the next number above `floor`, and return that. Durable on return.

    The record is the caller's. Repeatable: what was cut off before its record is completed under the same number.
    """
    kept = next(file for file in sorted(_KEY_FILES) if file in files)
    number = _next_number(state, name, floor, files, kept)
    if kept == "request.pem":
        state.generation_request(name, number, files[kept])
    else:
        state.generation_key(name, number, lambda: files[kept])
    state.save_chain(name, number, files["fullchain.pem"])
    return number


def _next_number(state: StateFolder, name: str, floor: int, files: Mapping[str, bytes], kept: str) -> int:
    """Return the number above all others; one whose folder has our key already was cut off before its record."""
    above = {n: state.read_generation(name, n) for n in state.generation_numbers(name) if n > floor}
    taken = [
        n
        for n, found in above.items()
        if found.get("fullchain.pem", files["fullchain.pem"]) != files["fullchain.pem"]
    ]
    number = 1 + max([floor, *taken])
    while above.get(number, {}).keys() & _KEY_FILES - {kept} or (
        above.get(number, {}).get(kept, files[kept]) != files[kept]
    ):
        number += 1
    return number
