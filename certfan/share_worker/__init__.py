"""Directory I/O on the share, in a child process with deadlines.

A process inside a hung FUSE request ignores SIGKILL, and a thread in it keeps its process from exiting. So the
child (`python -m certfan.share_worker`) does every call on the share, and nothing else; the parent (client.py)
speaks to it over a pipe and is never held up by it. The child imports almost nothing: it starts in well under
100 ms. What must never come in: asyncio in the child, a path below the root, a name from outside unchecked.
"""
