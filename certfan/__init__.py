"""certfan: one daemon gets every certificate; every endpoint provably serves it by its deadline."""

__version__ = "0.1.0"
