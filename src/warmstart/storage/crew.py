"""Pieces of work shared among the processors: forked processes where that is safe, else threads.

Threads of Python wait for each other's lock between two calls of numpy; processes do not. A process may be forked only
while it has a single thread, so a command of ours says that it is alone, and a program that imports warmstart gets
threads.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading

TYPE_CHECKING = False  # as typing has it, which is not imported yet
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_claimed = False


def claim() -> None:
    """This process is a command of ours: nothing else in it minds forks, or waits for children of its own."""
    global _claimed  # noqa: PLW0603
    _claimed = True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it is told nothing of a child's end


def may_fork() -> bool:
    """Whether this process was claimed and has one thread only, of Python or of a library (Linux; no elsewhere)."""
    try:
        return _claimed and hasattr(os, "memfd_create") and len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fork(work: Callable[[], None]) -> int:
    """Do ``work`` in a process of its own, which ends then and says nothing; its number."""
    child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        work()
        os._exit(0)
    finally:  # whatever was raised is none of the parent's frames that are above here
        os._exit(1)


def end(child: int) -> None:
    """Kill what :func:`fork` began, and wait for its end."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def share(
    count: int,
    work: Callable[[int], None],
    done: Callable[[int], None],
    *,
    meanwhile: Callable[[], None],
    processes: int = 0,
) -> None:
    """``work(0)`` … ``work(count - 1)``, each once, and ``meanwhile()`` in this thread.

    ``done(k)`` is called in this thread when about all of the first k + 1 are done. With ``processes``, ``work`` runs
    in as many, this one among them, and leaves what it makes in files; else in a thread for each processor. What a
    forked process failed at is tried here once more, so that its error is raised here.

    Raises:
        whatever ``work`` or ``meanwhile`` raises, of several the first of ``work``'s numbers.
    """
    if processes:
        _in_processes(count, work, done, meanwhile, processes)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(processors()) as pool:
        try:
            futures = [pool.submit(work, number) for number in range(count)]
            meanwhile()
            for number, future in enumerate(futures):
                future.result()
                done(number)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_processes(
    count: int,
    work: Callable[[int], None],
    done: Callable[[int], None],
    meanwhile: Callable[[], None],
    processes: int,
) -> None:
    finished = mmap.mmap(-1, max(1, count))  # shared: a byte for each number
    parent = os.getpid()

    def help_out() -> None:
        for number in numbers:
            if os.getppid() != parent:  # which was killed: nobody wants the rest
                return
            work(number)
            finished[number] = 1

    with _Numbers(count) as numbers:
        children: set[int] = set()
        try:
            try:
                for _ in range(processes - 1):
                    children.add(fork(help_out))
            except BlockingIOError:
                pass  # as many as the system allows
            meanwhile()
            for number in numbers:
                try:
                    work(number)
                except Exception:  # raised again below, unless an earlier number's comes first
                    break
                finished[number] = 1
                done(number)
                if not all(_well(child, children) for child in tuple(children)):
                    break
            else:
                while children:
                    os.waitpid(children.pop(), 0)
        finally:
            for child in children:
                end(child)
    for number in range(count):
        if not finished[number]:
            work(number)
            done(number)


def _well(child: int, children: set[int]) -> bool:
    """Whether ``child`` is at work, or at the end of it, and then none of ``children`` any more."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        children.remove(child)
    return status == 0


class _Numbers:
    """0 … count - 1, each given to one of the processes that share this. Who is killed holds no lock any more."""

    def __init__(self, count: int) -> None:
        self._count, self._next = count, mmap.mmap(-1, 8)
        self._lock = os.memfd_create("numbers")

    def __enter__(self) -> _Numbers:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def __iter__(self) -> Iterator[int]:
        import fcntl

        while True:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            number = int.from_bytes(self._next[:], "little")
            self._next[:] = (number + 1).to_bytes(8, "little")
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
            if number >= self._count:
                return
            yield number
