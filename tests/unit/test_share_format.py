"""docs/share-format.md against the code: its examples verify, its tables say what the constants say."""

import json
import os
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from certfan import pki
from certfan.core.model import CERTIFICATE_NAME, CONSUMER_NAME, Consumer, Custody
from certfan.errors import BundleInvalid
from certfan.protocol import manifest
from certfan.share_worker import place, publish, setup, tree
from tests.unit.share_parts import now

PAGE = (Path(__file__).parents[2] / "docs/share-format.md").read_text()


def _example(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, language
    return found[1]


def _table(heading: str) -> dict[str, list[str]]:
    """Read the rows of the first table behind a heading; the key is the first cell."""
    rows = PAGE.split(heading, 1)[1].split("|---|", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {first: rest for first, *rest in cells}


def test_the_example_of_a_manifest_is_in_its_one_spelling() -> None:
    """The page's bytes parse, say what the page says, and are encoded to the same bytes."""
    data = _example("json manifest").encode()
    parsed = manifest.parse(data)

    assert parsed.encode() == data
    assert ("www.example.org", 7, "web1", "home") == (
        parsed.certificate, parsed.generation, parsed.consumer, parsed.fleet,
    )  # fmt: skip
    assert set(manifest.files_of(parsed.custody)) == parsed.files.keys()


@pytest.mark.parametrize(
    "change", [("\n", ""), (",", ", "), ('"version":1', '"version":2'), ('"generation":7', '"generation":07')]
)
def test_another_spelling_of_the_example_is_refused(change: tuple[str, str]) -> None:
    """No newline, a space, another version, a leading zero: not the one spelling."""
    with pytest.raises(BundleInvalid):
        manifest.parse(_example("json manifest").replace(*change).encode())


def test_the_fields_are_those_of_the_table() -> None:
    """The table names every field of the manifest and no other."""
    fields = {cell.strip("`") for cell in _table("### manifest.json")}

    assert json.loads(_example("json manifest")).keys() == fields


def test_the_signature_is_laid_out_as_the_page_says() -> None:
    """64 bytes of plain Ed25519 over domain and manifest, then the signer's certificate; checked without our own code."""
    data = _example("json manifest").encode()
    signer = pki.InternalCA.create("home", now()).issue_signer(now())
    sealed = manifest.seal(data, signer.key_pem, signer.cert_pem)
    told = re.search(r"^([0-9a-f]+) \|\| manifest\.json$", PAGE, re.MULTILINE)
    assert told
    domain = bytes.fromhex(told[1])
    key = x509.load_der_x509_certificate(sealed[64:]).public_key()

    assert isinstance(key, Ed25519PublicKey)
    assert b"certfan manifest v1\0" == domain
    key.verify(sealed[:64], domain + data)


def test_the_sentinels_are_those_of_the_page(tmp_path: Path) -> None:
    """Both examples are read, and written again to the same bytes."""
    lines = _example("json").splitlines(keepends=True)
    found = []
    for line in lines:
        (tmp_path / place.SENTINEL).write_text(line)
        fd = os.open(tmp_path, os.O_RDONLY)
        found.append(place.read_sentinel(fd))
        os.close(fd)

    assert [None, "web1"] == [sentinel.consumer for sentinel in found]
    assert lines == [place.write_sentinel(sentinel).decode() for sentinel in found]


def test_modes_and_limits_are_those_of_the_code() -> None:
    """What the tables promise is what the constants make."""
    modes = {name: cells[2] for name, cells in _table("## 2. Owners and modes").items()}

    assert f"{setup._CONSUMER_MODE:04o}" == modes["`<consumer>/`, `live/`, `generations/`"]
    assert modes["`privkey.pem`, `privkey.hpke`"].count(f"{Consumer('x').mode:04o}") == 1
    assert modes["the other files"].startswith(f"{publish._PUBLIC_MODE:04o}")
    assert f"At most {tree.MAX_FILES} files, each at most {tree.MAX_FILE >> 20} MiB" in PAGE
    assert tree.MAX_FILE == manifest.MAX_FILE
    assert (manifest.MANIFEST, manifest.SIGNATURE) == (tree.MANIFEST, tree.SIGNATURE)
    tree_of = PAGE.split("generations/<certificate>/<n>/\n")[1].splitlines()[0].split()
    assert {*manifest.files_of(Custody.SHARE), tree.MANIFEST, tree.SIGNATURE} == set(tree_of)


def test_the_key_file_of_each_custody_is_that_of_the_page() -> None:
    """A reader of the page knows which files a bundle has."""
    told = {custody.strip("`"): row[0].strip("`") for custody, row in _table("## 3. The bundle").items()}

    assert {custody: "".join(names) or "none" for custody, names in manifest.KEY_FILES.items()} == told


@pytest.mark.parametrize(
    "name", ["a", "www.example.org", "a..b", "-a", "a-", "A", "a" * 101, "a/b", ".a", ""]
)
def test_names_on_the_share_are_at_least_those_of_the_config(name: str) -> None:
    """Whatever the config allows as a name the share takes, and neither ever takes a way out of the folder."""
    allowed = bool(CERTIFICATE_NAME.fullmatch(name) or CONSUMER_NAME.fullmatch(name))

    assert not allowed or tree.is_name(name)
    assert not tree.is_name(name) or (not set("/\0") & set(name) and ".." not in name and name[0] != ".")
