"""Runs a producer program as ``python PROGRAM ARG…`` would, and gives it manners.

Contract: ``runner.py`` starts ``python -m apachews._bootstrap INSTRUCTIONS PROGRAM ARG…``.
The program has ``sys.argv``, ``sys.path`` and ``__main__`` to itself, as ever.  Its
signals mean, whatever it is:

- SIGTERM, SIGINT: goodbye to all clients, or, with ``hold``, they are handed on to
  whoever listens next.  The second one ends the process at once.
- SIGHUP, which also comes when the runner dies: the clients are handed on.

How this works: a handler changes nothing itself, as the program may be anywhere; it
asks every server of the process to do it (``Server.call_soon``), which the next
``dequeue()`` does, or the one that waits.  A program that is stuck elsewhere does not
hear it: for that there is the second SIGTERM, or SIGKILL, which systemd sends after
``TimeoutStopSec=``.  A program without a server, still starting say, just ends.

``dequeue()`` then raises ServerClosed when all is done.  A program that does not
catch it, like ``while True: server.dequeue()``, has come to its end, and no harm.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import importlib.machinery
import io
import json
import os
import signal
import sys
import threading
import types
from collections.abc import Callable

from ._processes.signals import signal_at_end_of
from .exceptions import ServerClosed
from .server import Server, open_servers


@dataclasses.dataclass(frozen=True, slots=True)
class Instructions:
    """What the runner's options come to.

    Attributes:
        spread_s: over how many seconds goodbyes are spread.
        drain_timeout_s: how long clients may take to move.
        hold: whether SIGTERM and SIGINT hand clients on as well.
        lifeline_fd: ends when the runner does, see ``signals.Lifeline``.
    """

    spread_s: float
    drain_timeout_s: float
    hold: bool
    lifeline_fd: int

    def encode(self) -> str:
        """Return the command line's first argument."""
        return json.dumps(dataclasses.asdict(self))


class _SignalHandlers:
    """The handlers of the signals."""

    def __init__(self, instructions: Instructions) -> None:
        self._drain = functools.partial(Server.drain, timeout=instructions.drain_timeout_s)
        self._close = functools.partial(Server.close, spread=instructions.spread_s)
        self._hold = instructions.hold
        self.must_say_goodbye = False
        self.has_ended = False  # the program has; what is left is Python's own end
        self._has_been_told = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, self._hand_on)

    def _end(self, number: int, frame: types.FrameType | None) -> None:
        if self._has_been_told:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._has_been_told = True
        self.must_say_goodbye = not self._hold
        self._ask(self._drain if self._hold else self._close)

    def _hand_on(self, number: int, frame: types.FrameType | None) -> None:
        self._ask(self._drain)

    def _ask(self, call: Callable[[Server], None]) -> None:
        servers = open_servers()
        for server in servers:
            server.call_soon(functools.partial(call, server))
        if not servers and not self.has_ended:
            raise SystemExit(0)


def main() -> None:
    """Run the program of the command line."""
    instructions = Instructions(**json.loads(sys.argv[1]))
    del sys.argv[:2]
    if "LISTEN_FDS" in os.environ:  # the runner passes on what is its own only
        os.environ["LISTEN_PID"] = str(os.getpid())
    # What a program was at when the watchdog's SIGABRT came, in the log.
    faulthandler.enable()
    manners = _SignalHandlers(instructions)
    manners.install()
    signal_at_end_of(instructions.lifeline_fd, signal.SIGHUP)
    _excuse_threads()
    try:
        _run(sys.argv[0])
    except ServerClosed:
        pass
    finally:
        manners.has_ended = True
    if manners.must_say_goodbye:
        _close_what_is_left()


def _close_what_is_left() -> None:
    """Say goodbye for servers that nobody serves any more.

    Of several in one loop, the first to close has ended the loop.  Those of other
    threads were asked as well, and end there; a server is for one thread.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join()  # as Python itself would before it ends
    if not any(thread.is_alive() for thread in others):
        for server in open_servers():
            server.close()


def _run(path: str) -> None:
    """Run a file as ``__main__``; an exception's traceback begins there."""
    module = types.ModuleType("__main__")
    module.__file__ = os.path.abspath(path)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", module.__file__)
    sys.modules["__main__"] = module
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    code: types.CodeType | None = None
    show = sys.excepthook

    def show_without_our_frames(
        kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None
    ) -> None:
        while traceback is not None and traceback.tb_frame.f_code is not code:
            traceback = traceback.tb_next
        show(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = show_without_our_frames
    with io.open_code(module.__file__) as file:
        source = file.read()
    code = compile(source, module.__file__, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _excuse_threads() -> None:
    """Let a thread that serves end with ServerClosed, like the program itself."""
    show = threading.excepthook

    def show_unless_closed(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, ServerClosed):
            show(args)

    threading.excepthook = show_unless_closed


if __name__ == "__main__":
    main()
