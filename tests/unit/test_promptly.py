"""Reading and writing without waiting and without letting the GIL go, on real sockets."""

import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from certfan.daemon.challenges import promptly

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_what_was_sent_is_received_up_to_the_end(pair: Pair) -> None:
    """Any byte, and none at the end of the stream."""
    near, far = pair
    data = bytes(range(256)) * 4
    taken = promptly.send(near, data)
    near.close()

    assert (taken, promptly.receive(far), promptly.receive(far)) == (len(data), data, b"")


def test_nothing_there_and_no_room_are_said_at_once(pair: Pair) -> None:
    """Also on sockets that block."""
    near, far = pair
    with pytest.raises(BlockingIOError):
        promptly.receive(near)
    with pytest.raises(BlockingIOError):
        while True:
            assert promptly.send(near, b"x" * 4096) > 0
    assert promptly.receive(far) == b"x" * promptly.READ


def test_whoever_is_gone_is_told_as_python_tells_it(pair: Pair) -> None:
    """And so is a socket of ours that was closed."""
    near, far = pair
    far.close()
    with pytest.raises(BrokenPipeError):
        promptly.send(near, b"x")
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        promptly.receive(near)


def test_last_bytes_go_out_together_with_the_end() -> None:
    """One packet less for each connection, at both ends of it."""

    def packets_of_an_end() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        with far:
            before = _packets_received(far)
            promptly.send(near, b"the end", closing=True)
            near.close()

            assert (far.recv(100), far.recv(100)) == (b"the end", b"")
            return _packets_received(far) - before

    # The system waits for 200 ms; a machine that is held up for longer between two lines may send two.
    assert min(packets_of_an_end() for _ in range(5)) == 1


def _packets_received(sock: socket.socket) -> int:
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
    return int.from_bytes(information[140:144], sys.byteorder)  # tcpi_segs_in of linux/tcp.h


def test_no_other_thread_gets_in_between(pair: Pair) -> None:
    """Python's own calls let one in that waits for the interpreter."""
    near, far = pair
    turns, stop = [0], threading.Event()

    def want_the_interpreter() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    waiting = threading.Thread(target=want_the_interpreter)
    sys.setswitchinterval(60)  # nobody is made to let it go
    try:
        waiting.start()
        deadline, before = time.monotonic() + 10, turns[0]
        while turns[0] < before + 10 and time.monotonic() < deadline:
            near.send(b"x")
            far.recv(1)
        let_in, before = turns[0] - before, turns[0]
        for _ in range(1000):
            promptly.send(near, b"x")
            promptly.receive(far)
        after = turns[0]
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        waiting.join()

    assert (let_in >= 10, after - before) == (True, 0)
