"""Shows a sweep as it goes: one bar per job, the lines of their logs that matter, the time left."""

import re
import shutil
import sys
import time

_EPOCH = re.compile(r"epoch (\d+)/(\d+)\b")
_STEPS = re.compile(r"  (\d+)/(\d+) steps, (loss [^,]+)")
_KEY = re.compile(r"(epoch |note |resuming |best |stopped |train: )")


def duration(seconds: float) -> str:
    """Seconds as text, such as '1:02:03' or '2:03'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Reads how far a run is from the lines that it prints.

    Attributes:
      fraction: the part that is done, 0 to 1.
      text: the state in a few words.
    """

    def __init__(self):
        self.fraction, self.text = 0.0, ""

    def read(self, line: str) -> bool:
        """Reads a line, and returns whether it is worth showing."""
        if match := _EPOCH.match(line):
            epoch, epochs = int(match[1]), int(match[2])
            if steps := _STEPS.search(line):  # this line stands for a bar, and the view has bars of its own
                self.fraction = (epoch - 1 + int(steps[1]) / int(steps[2])) / epochs
                self.text = f"epoch {epoch}/{epochs}, {steps[3]}"
                return False
            self.fraction, self.text = epoch / epochs, ", ".join(line.split("  ")[:1] + line.split("  ")[3:4])
        return bool(_KEY.match(line))


class View:
    """Prints lines and bars. On a terminal the bars stay below the lines and are redrawn in place."""

    def __init__(self, mode: str, stream=None):
        """mode: bars | logs | both."""
        self._stream = stream or sys.stdout
        self._bars = mode != "logs"
        self._logs = mode != "bars"
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._drawn = 0  # lines of the block on the screen
        self._last = 0.0
        self._epochs: dict[str, str] = {}  # job: the last epoch that was printed

    def line(self, text: str) -> None:
        """Prints a line above the bars."""
        self._erase()
        print(text, file=self._stream, flush=True)

    def log(self, name: str, text: str) -> None:
        """Prints a line of a job's log."""
        if self._logs:
            self.line(f"[{name}] {text}")

    def draw(self, jobs: list[tuple[str, float, str, float]], total: str) -> None:
        """Draws the bars of the running jobs, and the line of the whole sweep.

        Args:
          jobs: (name, fraction done, text, seconds so far) of each.
          total: the line of the whole.
        """
        if not self._bars:
            return
        if not self._terminal:  # a line for each new epoch of a job, unless its log says so already
            for name, _, text, _ in [] if self._logs else jobs:
                epoch = text.split(",")[0]
                if epoch and self._epochs.get(name) != epoch:
                    self._epochs[name] = epoch
                    print(f"{name}  {text}  ({total})", file=self._stream, flush=True)
            return
        now = time.monotonic()
        if now - self._last < 0.5:
            return
        self._last = now
        self._erase()
        width = shutil.get_terminal_size().columns - 1
        widest = max((len(name) for name, *_ in jobs), default=0)
        lines = []
        for name, fraction, text, seconds in jobs:
            filled = round(20 * fraction)
            left = f", {duration(seconds * (1 - fraction) / fraction)} left" if fraction > 0.02 else ""
            bar = f"{name:<{widest}} {'█' * filled}{'░' * (20 - filled)} {100 * fraction:3.0f}% {text}{left}"
            lines.append(bar[:width])
        lines.append(total[:width])
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def close(self) -> None:
        """Removes the bars from the screen."""
        self._erase()
        self._stream.flush()
