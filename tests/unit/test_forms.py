"""The forms of a pair: one PEM, PKCS#12 with its password, each with the owner and mode of its own service."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan import files, pki
from certfan.agent.forms import Form, KeyFile, Layout, read_password
from certfan.agent.installer import Installer
from certfan.errors import CertfanError, InstallFailed, PairMismatch

NAME = "www.example.org"
NOW = datetime.now(UTC)
ME = (str(os.geteuid()), str(os.getegid()))
PASSWORD = b"open sesame"


def pair() -> pki.Pair:
    return pki.load_pair(*pki.make_placeholder([NAME], NOW))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    files.write_private(tmp_path / "password", PASSWORD + b"\n")
    return Layout(
        KeyFile(*ME, 0o600),
        (
            Form("haproxy.pem", KeyFile(*ME, 0o640)),
            Form("store.p12", KeyFile(*ME, 0o440), tmp_path / "password"),
        ),
    )


@pytest.fixture
def tree(tmp_path: Path) -> Installer:
    return Installer(tmp_path / "etc")


def lay(tree: Installer, generation: int, what: pki.Pair, layout: Layout) -> Path:
    tree.point(NAME, tree.put(NAME, generation, what, layout))
    return tree.live_path(NAME)


def test_every_form_lies_beside_certbots_files_with_its_own_mode(tree: Installer, layout: Layout) -> None:
    """One folder, so that one pointer moves all; what a service reads is its alone."""
    one = pair()
    live = lay(tree, 7, one, layout)

    assert (live / "haproxy.pem").read_bytes() == one.key_pem + one.fullchain_pem
    assert pki.read_pkcs12((live / "store.p12").read_bytes(), PASSWORD) == one
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in live.iterdir()}
    assert (modes["privkey.pem"], modes["haproxy.pem"], modes["store.p12"]) == (0o600, 0o640, 0o440)


def test_a_placeholder_comes_in_every_form(tree: Installer, layout: Layout) -> None:
    """The service that reads it starts on it."""
    tree.point(NAME, tree.put_placeholder(NAME, NOW, layout))

    opened = pki.read_pkcs12((tree.live_path(NAME) / "store.p12").read_bytes(), PASSWORD)
    assert opened.leaf.placeholder
    assert pki.read_leaf((tree.live_path(NAME) / "cert.pem").read_bytes()) == opened.leaf


def test_pkcs12_of_the_same_pair_is_not_made_again(tree: Installer, layout: Layout) -> None:
    """Its bytes would differ each time; only what is not the same any more is."""
    one = pair()
    live = lay(tree, 7, one, layout)
    before = {path: path.stat().st_ino for path in live.iterdir()}

    lay(tree, 7, one, layout)

    assert {path: path.stat().st_ino for path in live.iterdir()} == before


def test_a_changed_password_makes_it_anew(tree: Installer, layout: Layout, tmp_path: Path) -> None:
    """Whoever changes the password gets a file for it with the next installation or boot."""
    one = pair()
    live = lay(tree, 7, one, layout)
    files.write_private(tmp_path / "password", b"another\n")

    lay(tree, 7, one, layout)

    assert pki.read_pkcs12((live / "store.p12").read_bytes(), b"another") == one
    with pytest.raises(PairMismatch):
        pki.read_pkcs12((live / "store.p12").read_bytes(), PASSWORD)


def test_a_form_that_was_asked_for_later_is_added_to_a_folder_in_use(tree: Installer, layout: Layout) -> None:
    """agent.toml has a new service; the pair that is live stays where it is."""
    one = pair()
    live = lay(tree, 7, one, Layout(layout.key))
    target = live.readlink()

    lay(tree, 7, one, layout)

    assert (live.readlink(), (live / "haproxy.pem").exists()) == (target, True)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (None, 0o600, "No such file"),
        (b"", 0o600, "one line"),
        (b"\n", 0o600, "one line"),
        (b"two\nlines\n", 0o600, "one line"),
        (b"nul\0\n", 0o600, "one line"),
        (b"\xffsesame\n", 0o600, "UTF-8"),
        (b"sesame" * 200, 0o600, "one line"),
        (b"sesame\n", 0o640, "0640"),
        (b"sesame\n", 0o644, "0644"),
    ],
)
def test_a_password_file_that_is_none_is_told_without_its_content(
    tmp_path: Path, content: bytes | None, mode: int, why: str
) -> None:
    """Missing, empty, open to others: what to do is said, the password is not."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    with pytest.raises(InstallFailed, match=why) as caught:
        read_password(path)

    assert f"chmod 600 {path}" in caught.value.hint
    chain: list[BaseException | None] = [caught.value, caught.value.__cause__]
    assert not any("sesame" in repr(one) for one in chain)


def test_a_password_keeps_its_spaces_and_loses_its_line_end(tmp_path: Path) -> None:
    """Written by an editor or by printf, it is the same."""
    for written in (b" open sesame ", b" open sesame \n", b" open sesame \r\n"):
        files.write_private(tmp_path / "password", written)
        assert read_password(tmp_path / "password") == b" open sesame "


def test_without_its_password_nothing_of_the_pair_goes_live(
    tree: Installer, layout: Layout, tmp_path: Path
) -> None:
    """The folder stays unfinished and the pointer where it was; with the password the same call completes it."""
    first, second = pair(), pair()
    live = lay(tree, 7, first, layout)
    (tmp_path / "password").rename(tmp_path / "away")
    with pytest.raises(CertfanError, match="password file"):
        lay(tree, 8, second, layout)
    kept = pki.read_pkcs12((live / "store.p12").read_bytes(), PASSWORD)
    (tmp_path / "away").rename(tmp_path / "password")

    lay(tree, 8, second, layout)

    assert kept == first
    assert pki.read_pkcs12((live / "store.p12").read_bytes(), PASSWORD) == second
