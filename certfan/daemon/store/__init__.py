"""Facts only, durable when a call returns. Never a private key, never a decision.

`Store` lists every method; each is a query function of its subject's file, called without its first argument:

    process    runs, accounts, the config in force, the journal
    issuing    one try to get a generation: order, answered challenges, tokens
    issued     generations, numbers, revocations, renewal infos
    spending   what authorities have counted, what orders that were given up left there
    checking   our own looks at the way of the challenge
    wishes     failures, and what an admin asked for
    forgetting what left the config and is to be removed
    lagging    how urgent each late endpoint was last told to be
    enrolling  consumers, one-time tokens, identities
    deploying  what consumers were offered, and what they said came of it
"""

from certfan.daemon.store.facts import (
    AccountFact,
    ClosedIssuance,
    ConfigFact,
    ConsumerFact,
    EnrolmentFact,
    Event,
    Heard,
    IdentityFact,
    Lists,
    PublishedFact,
    Run,
    Standing,
    StoreFacts,
)
from certfan.daemon.store.store import Store

__all__ = [
    "AccountFact",
    "ClosedIssuance",
    "ConfigFact",
    "ConsumerFact",
    "EnrolmentFact",
    "Event",
    "Heard",
    "IdentityFact",
    "Lists",
    "PublishedFact",
    "Run",
    "Standing",
    "Store",
    "StoreFacts",
]
