"""The certificate authority's edge: the acme library on the event loop, its gaps mended, its answers as values.

`exchanges` is the face; `bodies` is what is sent, `network` signs through the library, `transport` is HTTPS over
`connections` by `tls`, `patience` ends what takes too long, `reading` and `problems` turn answers into values. What
must never come in: when to do what (core decides), files but for what the config names (ca_file, eab_key_file).
"""

from certfan.daemon.authority.exchanges import AcmeAuthority, make_account_key

__all__ = ["AcmeAuthority", "make_account_key"]
