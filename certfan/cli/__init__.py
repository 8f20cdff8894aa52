"""The command line: click commands that import a wing only inside the one command that needs it."""

import click


@click.group()
def main() -> None:
    """One daemon gets every certificate; every endpoint provably serves it by its deadline."""
