"""A pair as PKCS#12 (RFC 7292), for services that read nothing else."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from certfan.errors import PairMismatch
from certfan.pki.chains import Pair, load_pair, read_chain
from certfan.pki.keys import UNPARSABLE, PrivateKey, load_key


def pack_pkcs12(pair: Pair, *, name: str, password: bytes) -> bytes:
    """Return a pair as PKCS#12, key and certificates encrypted; other bytes each time."""
    leaf, *others = read_chain(pair.fullchain_pem)
    # RFC 9579 came too late for what has to read this: PBES2 with AES and a MAC over SHA-256 is read by OpenSSL 1.1
    # and Java 8u301 onwards. The library's own rounds will do, as the key lies beside it.
    encryption = (
        serialization.PrivateFormat.PKCS12.encryption_builder()
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(password)
    )
    return pkcs12.serialize_key_and_certificates(
        name.encode(), load_key(pair.key_pem), leaf, others or None, encryption
    )


def read_pkcs12(data: bytes, password: bytes) -> Pair:
    """Open what `pack_pkcs12` made; its key comes as PKCS#8 PEM.

    Raises:
        PairMismatch: the password is another one, or it is damaged, or it holds no pair.
        ChainInvalid: its certificates are no chain.
    """
    try:
        key, leaf, others = pkcs12.load_key_and_certificates(data, password)
    except UNPARSABLE as error:
        raise PairMismatch("PKCS#12 does not open with this password") from error
    if not isinstance(key, PrivateKey) or leaf is None:
        raise PairMismatch("PKCS#12 holds no pair")
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (leaf, *others))
    return load_pair(key_pem, chain)
