"""Keys, requests, chains, signatures and the internal CA: bytes in, values out.

Whatever parses or signs X.509 lives here. What must never come in: files, sockets, clocks, and the nouns of
`core`. Instants are aware UTC, fingerprints and serials lower-case hex.
"""

from certfan.pki.ca import (
    FLEET_NAME,
    InternalCA,
    Issued,
    certified_key_hash,
    consumer_of,
    daemon_name,
    fleet_of,
    issued_at,
    verify_signer,
)
from certfan.pki.chains import (
    PLACEHOLDER_ORGANIZATION,
    Chain,
    Leaf,
    Pair,
    load_chain,
    load_pair,
    make_placeholder,
    read_chain,
    read_leaf,
    renewal_id,
    top_names,
    verify_chain,
)
from certfan.pki.keys import (
    Request,
    key_type,
    make_csr,
    make_csr_pem,
    make_key,
    public_key_hash,
    read_csr,
    sign,
    verify,
)
from certfan.pki.pkcs12 import pack_pkcs12, read_pkcs12
from certfan.pki.sealing import (
    SEALING_KEY_SIZE,
    make_sealing_key,
    seal,
    sealing_id,
    sealing_public,
    unseal,
)

__all__ = [
    "FLEET_NAME",
    "PLACEHOLDER_ORGANIZATION",
    "SEALING_KEY_SIZE",
    "Chain",
    "InternalCA",
    "Issued",
    "Leaf",
    "Pair",
    "Request",
    "certified_key_hash",
    "consumer_of",
    "daemon_name",
    "fleet_of",
    "issued_at",
    "key_type",
    "load_chain",
    "load_pair",
    "make_csr",
    "make_csr_pem",
    "make_key",
    "make_placeholder",
    "make_sealing_key",
    "pack_pkcs12",
    "public_key_hash",
    "read_chain",
    "read_csr",
    "read_leaf",
    "read_pkcs12",
    "renewal_id",
    "seal",
    "sealing_id",
    "sealing_public",
    "sign",
    "top_names",
    "unseal",
    "verify",
    "verify_chain",
    "verify_signer",
]
