"""The child: takes one request at a time from its pipe, does it below the share's root, answers.

Holds a flock for its whole life, so that a call which wakes late never runs beside a newer worker. Ends at EOF.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from certfan import files
from certfan.errors import CertfanError, InternalError, StateLocked
from certfan.share_worker import frames, tree
from certfan.share_worker.faults import DISCONNECTED, translate, unavailable
from certfan.share_worker.look import Eye, glance, read_bundle
from certfan.share_worker.patrol import Patrol
from certfan.share_worker.place import Place
from certfan.share_worker.publish import publish
from certfan.share_worker.removal import clear, forget, retire, sweep
from certfan.share_worker.setup import set_up
from certfan.share_worker.survey import inspect, survey

_BEAT = 0.5  # seconds between two signs of life
_WRITING = frozenset({"publish", "retire", "clear", "forget", "sweep", "setup"})


class Worker:
    """The operations, by name. Each may be repeated."""

    def __init__(self, settings: dict[str, Any], say: Callable[[bytes], None] = lambda _: None) -> None:
        self._path: str = settings["root"]
        self._writable: bool = settings["writable"]
        self._share_id: str | None = settings["sentinel_id"]
        self._place = Place(self._path, share_id=self._share_id, require_mount=settings["require_mount"])
        self._eye = Eye(self._beat)
        self._patrol = Patrol()
        self._opened = 0
        self._say = say
        self._said_at = 0.0

    def _beat(self) -> None:
        """Tell that a long operation goes on: the deadline is one of silence."""
        if (now := time.monotonic()) > self._said_at + _BEAT:
            self._said_at = now
            self._say(frames.encode({"working": True}))

    def answer(self, request: frames.Frame) -> bytes:
        """Do one request and put its answer, or the error that it met, into bytes."""
        self._said_at = time.monotonic()
        try:
            return self._repeated(request)
        except OSError as why:
            return _refusal(translate(why, self._path))
        except CertfanError as why:
            return _refusal(why)
        except Exception:  # noqa: BLE001 - a bug ends in the parent's step boundary, with its traceback in the journal
            import traceback  # costs every start 4 ms, and is hardly ever needed

            traceback.print_exc()
            return _refusal(InternalError(f"share worker failed at {request.header.get('operation')}"))

    def _repeated(self, request: frames.Frame) -> bytes:
        try:
            return self._do(request)
        except OSError as why:
            if why.errno not in DISCONNECTED:
                raise
            self._place.forget()
            return self._do(request)

    def _do(self, request: frames.Frame) -> bytes:
        operation, given = request.header["operation"], request.header["arguments"]
        if operation in _WRITING:
            if not self._writable:
                raise unavailable("this worker only reads", self._path)
            return frames.encode(self._change(operation, given, request.files))
        match operation:
            case "look":
                return frames.encode({"consumers": self._look(), "mount": self._place.describe()})
            case "glance":
                self._place.prove_again()
                return frames.encode(glance(self._whole_share(), self._path, **given, patrol=self._patrol))
            case "survey":
                seen = survey(self._whole_share(), self._beat)
                return frames.encode({"consumers": seen, "mount": self._place.describe()})
            case "inspect":
                facts, contents = inspect(self._whole_share(), **given)
                return frames.encode({"facts": facts}, contents)
            case "read":
                bundle = self._read(**given)
                # Below what the path names: the whole share, or one consumer's folder of it.
                inner = "" if self._place.consumer is not None else f"{given['consumer']}/"
                return frames.encode({"generations": f"{inner}{tree.GENERATIONS}"}, bundle)
        raise ValueError(f"no operation {operation}")

    def _change(self, operation: str, given: dict[str, Any], contents: dict[str, bytes]) -> dict[str, Any]:
        match operation:
            case "publish":
                publish(self._whole_share(), contents=contents, **given)
            case "retire":
                retire(self._whole_share(), **given)
            case "clear":
                clear(self._whole_share(), **given)
            case "forget":
                return {"gone": forget(self._whole_share(), self._beat, **given)}
            case "sweep":
                return {"swept": sweep(self._whole_share(), self._beat, **given)}
            case "setup":
                return {"share": self._set_up(**given)}
        return {}

    def _whole_share(self) -> int:
        root = self._place.root()
        if self._place.consumer is not None:
            raise unavailable(f"only the folder of consumer {self._place.consumer} is mounted", self._path)
        return root

    def _look(self) -> dict[str, Any]:
        root = self._whole_share()
        if self._opened != self._place.opened:
            self._opened = self._place.opened
            self._eye = Eye(self._beat)
        return self._eye.look(root)

    def _read(self, consumer: str, certificate: str, generation: int, bundle: str) -> dict[str, bytes]:
        root = self._place.root()
        if self._place.consumer is None:
            with tree.folder(tree.checked(consumer), root) as at:
                return read_bundle(at, certificate, generation, bundle)
        if self._place.consumer != consumer:
            raise unavailable(
                f"the folder of consumer {self._place.consumer} is mounted, not of {consumer}", self._path
            )
        return read_bundle(root, certificate, generation, bundle)

    def _set_up(self, consumers: dict[str, int], uid: int) -> str:
        root = self._place.unproven()
        try:
            return set_up(root, self._path, consumers, self._beat, uid=uid, share_id=self._share_id)
        finally:
            os.close(root)


def _refusal(why: CertfanError) -> bytes:
    return frames.encode(
        {"error": {"code": why.code, "text": why.text, "subject": why.subject, "hint": why.hint}}
    )


def _serve(worker: Worker, answers: int) -> None:
    decoder = frames.Decoder()
    while data := os.read(0, 1 << 20):
        for request in decoder.feed(data):
            _write(answers, worker.answer(request))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> int:
    """Serve until EOF. The one argument is JSON: root, lock, writable, sentinel_id, require_mount."""
    settings = json.loads(sys.argv[1])
    # Folders are made 0750 and take setgid and group from above; files are born 0600 and get their mode by fchmod.
    os.umask(0o027)
    # The parent decides: a Ctrl-C in its terminal must not cut a publish off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A stray print must not end up between two frames.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        with files.locked(settings["lock"]):
            _write(answers, frames.encode({"pid": os.getpid()}))
            _serve(Worker(settings, lambda data: _write(answers, data)), answers)
    except StateLocked as why:
        text = f"{why.text}: an earlier call on share {settings['root']} is hung in the kernel, or another process uses it"
        _write(
            answers, _refusal(unavailable(text, settings["root"], hint=f"{why.hint}; gluster volume status"))
        )
        return why.exit_code
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
