"""Config files: syntax errors with their place, all problems at once, nothing that others may write."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from certfan import toml
from certfan.errors import ConfigInvalid, ConfigTooOpen


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    port: int = 1
    kind: Literal["postfix", "dovecot"] = "postfix"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: list[Inner] | None = None
    named: dict[str, Inner] = {}
    needed: str


def written(folder: Path, text: str | bytes, mode: int = 0o644) -> Path:
    path = folder / "some.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    folder.chmod(0o755)
    return path


def test_every_problem_is_told_at_once_with_its_key_path(tmp_path: Path) -> None:
    """Unknown keys, wrong values and missing keys come in one error, with what was probably meant."""
    data = {"inner": [{}, {"prot": 1, "kind": "dovcot"}], "named": {"a.b": {"port": "x"}}}

    with pytest.raises(ConfigInvalid) as caught:
        toml.validate(Outer, data, where="f.toml")

    assert set(caught.value.problems) == {
        'f.toml: inner[1].prot: unknown key, did you mean "port"?',
        "f.toml: inner[1].kind: input should be 'postfix' or 'dovecot', did you mean \"dovecot\"?",
        'f.toml: named."a.b".port: input should be a valid integer, unable to parse string as an integer',
        "f.toml: needed: is missing",
    }


def test_a_syntax_error_has_line_and_column(tmp_path: Path) -> None:
    """The admin is sent to the very character."""
    path = written(tmp_path, 'a = 1\nb = "x\n')

    with pytest.raises(ConfigInvalid) as caught:
        toml.load(path)

    assert "(at line 2, column 7)" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"a = '\xff'", b"a = " + b"[" * 20000])
def test_garbage_is_a_problem_not_a_crash(tmp_path: Path, text: bytes) -> None:
    """What is no text or nests without end is refused like any other mistake."""
    with pytest.raises(ConfigInvalid):
        toml.load(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path stands in the text."""
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        toml.load(tmp_path / "gone.toml")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_config_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Who writes the config decides what root runs."""
    with pytest.raises(ConfigTooOpen, match="can be written by others"):
        toml.load(written(tmp_path, "", mode))


def test_a_config_in_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """A file that can be replaced is a file that can be written."""
    path = written(tmp_path, "")
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigTooOpen, match="the folder of"):
        toml.load(path)


def test_a_secret_that_others_may_read_is_refused_only_as_a_secret(tmp_path: Path) -> None:
    """0640 is fine for a config and too open for a secret."""
    path = written(tmp_path, "", 0o640)
    toml.refuse_open(path)

    with pytest.raises(ConfigTooOpen, match="others can read"):
        toml.refuse_open(path, secret=True)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """What is well written comes out as the model."""
    data = toml.load(written(tmp_path, 'needed = "x"\n[[inner]]\nport = 25\n'))

    assert toml.validate(Outer, data, where="f") == Outer(needed="x", inner=[Inner(port=25)])
