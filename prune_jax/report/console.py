"""The console: log lines, which run.log keeps too, and one progress bar per epoch."""

import sys
import time
from pathlib import Path


class Console:
    """Prints lines and bars. After `attach`, run.log has every line, those printed before included.

    On a terminal, tqdm draws a bar. Elsewhere (a pipe, a batch job) the bar is a line every `interval` seconds.
    """

    def __init__(self, stream=None, interval: float = 10.0):
        """Makes a console.

        Args:
          stream: where to print; sys.stdout by default.
          interval: seconds between the lines that stand for a bar.
        """
        self._given_stream = stream
        self.interval = interval
        self._log: Path | None = None
        self._early: list[str] = []

    @property
    def stream(self):
        return self._given_stream or sys.stdout

    @property
    def is_terminal(self) -> bool:
        return bool(getattr(self.stream, "isatty", lambda: False)())

    def attach(self, workdir) -> None:
        """Appends every line to workdir/run.log from now on, and the lines printed before."""
        self._log = Path(workdir) / "run.log"
        self._append("".join(self._early))
        self._early.clear()

    def log(self, message: str) -> None:
        """Prints a line without breaking a bar, and appends it to run.log with the local time."""
        if self.is_terminal:
            from tqdm import tqdm

            tqdm.write(message, file=self.stream)
        else:
            print(message, file=self.stream, flush=True)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append("".join(f"{stamp}  {line}\n" for line in message.splitlines() or [""]))

    def bar(self, title: str, total: int, initial: int = 0, after: int = 0) -> "Bar":
        """A context manager for `total` steps, of which `initial` are done. Call its update once per step.

        Args:
          after: the steps of the run that come after these, for the time that is left of it.
        """
        return Bar(self, title, total, initial, after)

    def _append(self, text: str) -> None:
        if self._log is None:
            self._early.append(text)
        elif text:
            with open(self._log, "a", encoding="utf-8") as file:  # closed at once: a kill loses nothing
                file.write(text)


class Silence(Console):
    """The console of a process that is not the one to speak for its job."""

    is_terminal = False

    def attach(self, workdir) -> None:
        """Does nothing."""

    def log(self, message: str) -> None:
        """Does nothing."""


def duration(seconds: float) -> str:
    """Seconds in the two largest units, such as '1 h 05 min' or '42 s'.

    Example:
      >>> [duration(seconds) for seconds in (42.4, 125, 3900)]
      ['42 s', '2 min 05 s', '1 h 05 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Bar:
    """The progress of one epoch; made by Console.bar."""

    def __init__(self, console: Console, title: str, total: int, initial: int, after: int):
        self._console, self._title, self._total, self._done = console, title, total, initial
        self._after = after
        self._timed: tuple[float, int] | None = None  # when the first step was done, which compiled, and its number
        self._tqdm = None

    def __enter__(self):
        if self._console.is_terminal:
            from tqdm import tqdm

            self._tqdm = tqdm(
                desc=self._title,
                total=self._total,
                initial=self._done,
                file=self._console.stream,
                unit=" steps",
                dynamic_ncols=True,
                leave=False,
            )
        self._since, self._since_done = time.monotonic(), self._done
        return self

    def __exit__(self, *exception):
        if self._tqdm is not None:
            self._tqdm.close()

    def update(self, loss: float, sparsity: float) -> None:
        """Counts one more step.

        Args:
          loss: of the step.
          sparsity: the closed fraction, 0 to 1.
        """
        self._done += 1
        now = time.monotonic()
        self._timed = self._timed or (now, self._done)
        state = f"loss {float(loss):.4f}, sparsity {100 * float(sparsity):.2f}%"
        if self._after and self._done > self._timed[1] and now > self._timed[0]:
            rate = (self._done - self._timed[1]) / (now - self._timed[0])
            state += f", {duration((self._total - self._done + self._after) / rate)} left of the run"
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(state, refresh=False)
            self._tqdm.update()
            return
        if now - self._since >= self._console.interval and self._done < self._total:
            rate = (self._done - self._since_done) / (now - self._since)
            self._console.log(f"{self._title}  {self._done}/{self._total} steps, {state}, {rate:.3g} steps/s")
            self._since, self._since_done = now, self._done
