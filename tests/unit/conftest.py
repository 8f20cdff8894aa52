"""What several unit tests need."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.odd_authority import OddAuthority


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[OddAuthority]:
    """Serve an authority over real HTTPS that can be told to misbehave."""
    odd = OddAuthority(tmp_path)
    await odd.start()
    yield odd
    await odd.stop()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Copy the shipped configs, with the modes that they are installed with, whatever umask cloned them."""
    place = tmp_path / "etc"
    shutil.copytree(Path(__file__).parents[2] / "config", place, symlinks=True)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return place
