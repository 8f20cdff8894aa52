"""Tells people of problems, by command or mail: when one comes, when it is still there near its deadline, when it is over."""
