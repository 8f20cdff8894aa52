"""The decisions: pure functions and values. No await, clock, dice, path, socket or log may come in."""
