"""From a wanted certificate to a generation, and what else authorities are asked."""
