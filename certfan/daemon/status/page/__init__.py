"""The page for people: what the Page of `model.py` says, as HTML. A decision about the state must never come in."""
