"""A complete ACME authority in the test's own process, over real HTTPS, that can be told what goes wrong.

`authority` serves and dispatches, `accounts`, `ordering` and `certificates` are the resources of RFC 8555, `signing`
verifies requests, `issuing` makes certificates, `validation` fetches tokens, `faults` are the values that tests add.
"""

from tests.lab.faulty.authority import FaultyAuthority

__all__ = ["FaultyAuthority"]
