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
    Leaf,
    Pair,
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

__all__ = [
    "FLEET_NAME",
    "PLACEHOLDER_ORGANIZATION",
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
    "load_pair",
    "make_csr",
    "make_csr_pem",
    "make_key",
    "make_placeholder",
    "public_key_hash",
    "read_chain",
    "read_csr",
    "read_leaf",
    "renewal_id",
    "sign",
    "top_names",
    "verify",
    "verify_chain",
    "verify_signer",
]
