"""What is put where consumers find it, and taken away again: bundles, copies of older pairs, what left the config."""
