"""The one edge to the share, and what root types for it once."""
