"""What every supervisor of processes needs: waiting, restart delays, exit codes, killing a tree.

Contract: for a process that supervises others (``workers.py``, ``runner.py``, and ``apachews
run`` in ``apachews_tools/dev``), on its main thread.  Only ``ChildEvents.wait`` blocks.

The three supervisors share these primitives and not a base class: one forks itself, one replaces
a single program by its next version, one keeps several programs and an Apache.  Their state
machines have nothing in common, and a common class would hold the union of them.

Sources: proc(5) (``/proc/PID/task/TID/children``), signal(7), sd_notify(3).
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .sd_notify import NotifyReceiver
from .signals import Signals


class ChildEvents:
    """Waits for signals, for the children's sd_notify messages, and for further descriptors.

    Replaces the handlers of the signals until ``close``.

    Args:
        signals: numbers of the signals to wait for; SIGCHLD is always among them, so that
            ``wait`` returns when a child has exited.
        on_signal: called with the number of each signal except SIGCHLD, in order.
        on_message: called with each message: the process id of the sender, as the kernel
            reports it, and its assignments (``["READY=1"]``).  The caller must ignore
            processes that it did not start: any process can send.
    """

    def __init__(
        self,
        signals: Iterable[int],
        on_signal: Callable[[int], object],
        on_message: Callable[[int, list[str]], object],
    ) -> None:
        self._on_signal = on_signal
        self._on_message = on_message
        self._receiver = NotifyReceiver()
        self._signals = Signals((*signals, signal.SIGCHLD))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._selector.register(self._receiver, selectors.EVENT_READ)

    @property
    def address(self) -> str:
        """The NOTIFY_SOCKET for the children."""
        return self._receiver.address

    def add_reader(self, fd: int, function: Callable[[], object]) -> None:
        """Call a function in ``wait`` whenever the descriptor is readable."""
        self._selector.register(fd, selectors.EVENT_READ, function)

    def remove_reader(self, fd: int) -> None:
        """Stop watching a descriptor; the caller closes it."""
        self._selector.unregister(fd)

    @property
    def readers(self) -> dict[int, Callable[[], object]]:
        """The descriptors of ``add_reader`` with their functions."""
        keys = list(self._selector.get_map().values())
        return {key.fd: key.data for key in keys if key.data is not None}

    def wait(self, timeout_s: float | None) -> None:
        """Wait once, then call the functions of what has arrived.

        Messages come before signals: a child that sent READY=1 and exited is reported in
        this order.

        Args:
            timeout_s: seconds to wait at most, 0 and less do not wait; None: no limit.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.data is not None:
                key.data()
        for pid, assignments in self._receiver.receive_nowait():
            self._on_message(pid, assignments)
        for number in self._signals.receive_nowait():
            if number != signal.SIGCHLD:
                self._on_signal(number)

    def close(self) -> None:
        """Restore the signal handlers and close everything except the readers' descriptors."""
        self._selector.close()
        self._receiver.close()
        self._signals.close()


class RestartDelay:
    """The delay before a process that exited is started again: exponential backoff.

    Args:
        first_s: the delay after the first failure; 0 restarts it at once.
        step_s: the second delay, if the first one is 0.
        max_s: no delay is longer.
        settled_s: a process that ran for this long starts the series anew.
    """

    def __init__(
        self, first_s: float, max_s: float, settled_s: float, step_s: float | None = None
    ) -> None:
        self._first_s = first_s
        self._step_s = first_s if step_s is None else step_s
        self._max_s = max_s
        self._settled_s = settled_s
        self._next_s = first_s

    def after_run(self, duration_s: float) -> float:
        """Return the seconds to wait after a run of this duration, and increase the next."""
        if duration_s >= self._settled_s:
            self.reset()
        delay_s = self._next_s
        self._next_s = min(self._max_s, delay_s * 2 or self._step_s)
        return delay_s

    def reset(self) -> None:
        """Start the series anew."""
        self._next_s = self._first_s


def seconds_until(deadlines: Iterable[float | None]) -> float | None:
    """Return the seconds until the earliest deadline, 0.0 if it has passed.

    Args:
        deadlines: ``time.monotonic()``; None does not count.

    Returns:
        None if there is no deadline.
    """
    earliest = min((deadline for deadline in deadlines if deadline is not None), default=None)
    return None if earliest is None else max(0.0, earliest - time.monotonic())


def exit_status(returncode: int) -> int:
    """Return the exit status as a shell reports it: 128 and the signal for a killed process.

    Args:
        returncode: as ``subprocess.Popen`` and ``os.waitstatus_to_exitcode`` return it.
    """
    return returncode if returncode >= 0 else 128 - returncode


def describe_exit(returncode: int) -> str:
    """Return ``status 1`` or ``SIGKILL``, for a message."""
    if returncode >= 0:
        return f"status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:  # a real-time signal has no name
        return f"signal {-returncode}"


def kill_tree(pid: int) -> None:
    """Send SIGKILL to a child of this process and to all its descendants.

    The caller reaps the child.  A process that has already exited is ignored.
    """
    # Stop them first.  A process that saw its child die would start a new one, and a worker
    # that saw its supervisor die would close its clients with 1001.  Processes that were
    # forked before their parent stopped appear in the next round.
    tree: dict[int, None] = {}
    found = [pid]
    while found:
        for member in found:
            _send_signal(member, signal.SIGSTOP)
            tree[member] = None
        found = [child for member in tree for child in children_of(member) if child not in tree]
    for member in tree:
        _send_signal(member, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children, those that its threads forked included."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:
        pass  # the process or the thread has exited: its children belong to init now
    return children


def _send_signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has exited
    except PermissionError:
        pass  # it belongs to another user, by sudo for example, and must be left alone
