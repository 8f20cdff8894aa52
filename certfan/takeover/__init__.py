"""Reads what another ACME program left on this machine: its pairs, accounts and ways to answer challenges, as values.

Nothing here writes below a foreign tree, asks a network, or decides what becomes of what was found.
"""
