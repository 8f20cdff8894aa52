"""The certificate authority's edge: one method, one exchange; its answers as values.

`exchanges` is the face; `bodies` is what is sent, `network` signs it, `transport` is HTTPS over `connections` by `tls`,
`reading` and `problems` turn answers into values. What must never come in: when to do what (core decides), files but
for what the config names (ca_file, eab_key_file).
"""

from certfan.daemon.authority.exchanges import AcmeAuthority, make_account_key

__all__ = ["AcmeAuthority", "make_account_key"]
