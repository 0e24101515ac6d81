"""The progress bar and Ctrl-C."""

import signal
import sys
import threading
import time

from .. import features

ON_A_TERMINAL, IN_A_LOG = 0.25, 5.0  # seconds between two refreshes


class Progress:
    """A tqdm bar that looks at the model a few times per second only: every look waits for the device.

    done: steps of an earlier run. shown: whether there is a bar.
    """

    def __init__(self, tqdm, steps, done=0, shown=True):
        self.interval = ON_A_TERMINAL if sys.stderr.isatty() else IN_A_LOG
        form = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        self.shown = shown
        self.bar = tqdm(total=steps, initial=done, bar_format=form, mininterval=0, disable=not shown)
        self.shown_at = time.perf_counter()
        self.steps = 0
        self.test = ""

    def due(self):
        """Counts a step; true where the bar is due, and at the very last step."""
        if not self.shown:
            return False
        self.steps += 1
        last = self.bar.n + self.steps == self.bar.total
        return last or time.perf_counter() - self.shown_at > self.interval

    def show(self, loss, logits, labels, model):
        right = (logits.argmax(1) == labels).float().mean().item()
        alive = sum(alive for alive, _ in features(model).values())
        milliseconds = 1e3 * (time.perf_counter() - self.shown_at) / self.steps
        self.bar.set_postfix_str(
            f"loss {loss.item():.4f}, accuracy {right:.3f}{self.test}, alive {alive}, {milliseconds:.2f} ms/step",
            refresh=False,
        )
        self.bar.update(self.steps)
        self.steps, self.shown_at = 0, time.perf_counter()

    def show_epoch(self, row):
        self.test = f" (test {row['test_accuracy']:.3f})"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


class Interrupt:
    """True after Ctrl-C, so that the step in hand is finished; a second Ctrl-C does what it always did."""

    def __init__(self):
        self.seen = False

    def __bool__(self):
        return self.seen

    def note(self, *_):
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    def __enter__(self):
        self.in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        if self.in_main_thread:
            self.previous = signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(self, *_):
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.previous)
