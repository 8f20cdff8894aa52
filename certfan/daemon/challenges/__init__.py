"""Answers to challenges, one module a kind. They only answer: when to order and when to look is decided elsewhere."""
