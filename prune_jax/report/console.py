"""The console: log lines, kept in run.log too, and one progress bar an epoch."""

import sys
import time
from pathlib import Path


class Console:
    """Prints lines and bars; from `attach` on every line, those printed before included, is in run.log as well.

    On a terminal a bar is drawn by tqdm. Elsewhere (a pipe, a batch job) it is a line every `interval` seconds.
    """

    def __init__(self, stream=None, interval: float = 10.0):
        """stream: where to print, sys.stdout by default. interval: seconds between the lines that stand for a bar."""
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
        """Appends to workdir/run.log from now on."""
        self._log = Path(workdir) / "run.log"
        self._append("".join(self._early))
        self._early.clear()

    def log(self, message: str) -> None:
        """Prints a line without breaking a bar, and keeps it with a timestamp (local time) in run.log."""
        if self.is_terminal:
            from tqdm import tqdm

            tqdm.write(message, file=self.stream)
        else:
            print(message, file=self.stream, flush=True)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._append("".join(f"{stamp}  {line}\n" for line in message.splitlines() or [""]))

    def bar(self, title: str, total: int, initial: int = 0) -> "Bar":
        """A context manager for `total` steps, of which `initial` are done; call its update once a step."""
        return Bar(self, title, total, initial)

    def _append(self, text: str) -> None:
        if self._log is None:
            self._early.append(text)
        elif text:
            with open(self._log, "a", encoding="utf-8") as file:  # a line a time: nothing is lost with the process
                file.write(text)


class Bar:
    """The progress of one epoch; made by Console.bar."""

    def __init__(self, console: Console, title: str, total: int, initial: int):
        self._console, self._title, self._total, self._done = console, title, total, initial
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
        """One more step done. loss: that step's; sparsity: the fraction closed, 0 to 1."""
        self._done += 1
        state = f"loss {float(loss):.4f}, sparsity {100 * float(sparsity):.2f}%"
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(state, refresh=False)
            self._tqdm.update()
            return
        now = time.monotonic()
        if now - self._since >= self._console.interval and self._done < self._total:
            rate = (self._done - self._since_done) / (now - self._since)
            self._console.log(f"{self._title}  {self._done}/{self._total} steps, {state}, {rate:.3g} steps/s")
            self._since, self._since_done = now, self._done
