"""What commands say, as lines: JSON in, lines out; no clock, no terminal."""
