"""How a run ends before its time: signals that ask for it, and what is closed whatever happens."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def catch_stop_requests():
    """Yields a list that receives the first SIGINT or SIGTERM; a second signal acts as it would without us."""
    received: list[int] = []
    previous = {}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number, frame):
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


@contextlib.contextmanager
def closing(resource):
    """Closes what it is given, but not after a second Ctrl-C: closing waits for a save that nobody may finish."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        resource.close()
        raise
    resource.close()
