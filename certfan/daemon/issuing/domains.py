"""Which registered domain a name belongs to, as authorities count: by the Public Suffix List, private part included.

The list is the one that the installed library carries; nothing is fetched.
"""

from __future__ import annotations

import ipaddress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

_V6_NETWORK = 64  # one subscriber has that much, and Let's Encrypt counts it as one


@cache
def registered_domain(name: str) -> str:
    """Return the registered domain of an A-label name, or what stands for it with an address: itself, or its /64.

    A name that is a public suffix itself is its own domain.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        plain = name.removeprefix("*.").lower()
        return _suffixes().privatesuffix(plain) or plain
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _V6_NETWORK), strict=False))


@cache
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # reads its list of 10,000 rules: only who asks pays for it

    return PublicSuffixList()
