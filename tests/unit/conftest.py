"""What several unit tests need."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Copy the shipped configs, with the modes that they are installed with, whatever umask cloned them."""
    place = tmp_path / "etc"
    shutil.copytree(Path(__file__).parents[2] / "config", place, symlinks=True)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return place
