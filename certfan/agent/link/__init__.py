"""The agent's end of the channel. When to try again, and with what jitter, is the reconciler's to decide."""

from certfan.agent.link.caller import Caller
from certfan.agent.link.link import Link

__all__ = ["Caller", "Link"]
