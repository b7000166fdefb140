"""What jobs and commands print on stderr and stdout, what is kept off them, and which extra is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import threading
from collections.abc import Iterator

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Progress", "print_accuracies", "print_json", "quiet_native_stderr", "require_extra", "show", "show_rows"]
__all__ += ["text_table"]

WIDE = 200  # columns of a table in a file or a pipe, which have no screen to fit


class _Silence:
    """File descriptor 2 pointed at nothing while at least one thread wants it so; Python writes to a copy of it.

    The copy is never closed: a logging handler made meanwhile goes on writing there.
    """

    def __init__(self):
        self._lock, self._depth, self._copy, self._stderr = threading.Lock(), 0, None, None

    def __enter__(self):
        with self._lock:
            if not self._depth:
                if self._copy is None:
                    self._copy = os.dup(2)
                else:
                    os.dup2(2, self._copy, inheritable=False)
                self._stderr = sys.stderr
                if _is_descriptor_2(sys.stderr):
                    sys.stderr.flush()
                    options = {"buffering": 1, "encoding": sys.stderr.encoding, "closefd": False}
                    sys.stderr = open(self._copy, "w", **options)
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
            self._depth += 1

    def __exit__(self, *exception):
        with self._lock:
            self._depth -= 1
            if not self._depth:
                os.dup2(self._copy, 2)
                sys.stderr = self._stderr


_SILENCE = _Silence()


def _is_descriptor_2(stream) -> bool:
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, ValueError):  # none, or one in memory
        return False


@contextlib.contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Keep off stderr what C++ libraries write there within the block; Python's own lines pass.

    TensorFlow at its import, its converter and LiteRT write notices that no log level stops. Blocks may be nested and
    run in several threads. FACTORIZENET_TRACEBACK shows all.
    """
    with contextlib.ExitStack() as stack:
        if not os.environ.get("FACTORIZENET_TRACEBACK"):
            with contextlib.suppress(OSError):  # the process has no stderr
                stack.enter_context(_SILENCE)
        yield


class Progress(rich.progress.Progress):
    """Say on stderr how far a long job is: lines, and a bar on a terminal. Use as a context; silent where not verbose."""

    def __init__(self, verbose: bool = True):
        console, text = Console(stderr=True, quiet=not verbose), TextColumn("{task.description}{task.fields[loss]}")
        columns = text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        super().__init__(*columns, console=console, transient=True, disable=not (verbose and console.is_terminal))

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def bar(self, text: str, total: int, *, done: int = 0) -> None:
        """Show a bar in the place of the one before, `done` of its `total` steps filled."""
        for task in self.task_ids:
            self.remove_task(task)
        self.add_task(text, total=total, completed=done, loss="")

    def step(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Fill a step of the bar, or several, and show the loss behind its text."""
        for task in self.task_ids:
            self.update(task, advance=steps, loss="" if loss is None else f" loss {loss:.3f}")

    def epoch(self, name: str, row: dict, epochs: int) -> None:
        """Print the line of a finished epoch."""
        self.say(
            f"{name} {row['phase']} {row['epoch']}/{epochs}: loss {row['loss']:.3f}, accuracy {100 * row['accuracy']:.1f} %, "
            f"validation {100 * row['val_accuracy']:.1f} %, {row['seconds']:.0f} s"
        )


def require_extra(*modules: str, extra: str, what: str) -> None:
    """Look for the top-level modules, of an extra, that `what` will import, "drawing figures"; none of them is imported.

    Raises:
        ModuleNotFoundError: some are not installed; the message names them and the remedy, its `name` is the first one.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        text = f"{what} needs {' and '.join(missing)}: pip install 'factorizenet_tf[{extra}]'"
        raise ModuleNotFoundError(text, name=missing[0])


def print_json(value) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2))


def print_accuracies(metrics: dict) -> None:
    """Print the accuracies of a run's metrics.json as a table, and its agreement where it has one."""
    rows = [
        {"split": split + ", top-5" * (kind != "accuracy"), "images": metrics["images"][split]}
        | {k: f"{100 * v:.2f} %" for k, v in values.items()}
        for kind in ("accuracy", "top5_accuracy")
        for split, values in metrics.get(kind, {}).items()
    ]
    show_rows(rows, title=f"{metrics['name']} on {metrics['dataset']}: accuracy")
    if "agreement" in metrics:
        a, split = metrics["agreement"], "test" if "test" in metrics["images"] else "validation"
        print(
            f".tflite against QAT Keras on {a['images']:,} {split} images: top-1 agreement {100 * a['top1']:.2f} %, "
            f"{100 * a['within_1_lsb']:.3f} % of logits within 1 LSB, largest {a['largest_lsb']}"
        )


def show(rows: list[dict], as_json: bool, title: str) -> None:
    """Print dicts of equal keys as JSON or as a table."""
    if as_json:
        print_json(rows)
    else:
        show_rows(rows, title=title)


def show_rows(rows: list[dict], *, title: str) -> None:
    """Print dicts of equal keys as a table on stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(_table(rows, title=title))


def text_table(rows: list[dict]) -> str:
    """Give dicts of equal keys as the text of a table."""
    console = Console(file=io.StringIO(), width=WIDE)
    console.print(_table(rows))
    return console.file.getvalue().rstrip("\n")


def _table(rows, title=None):
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        justify = "right" if any(isinstance(row[key], (int, float)) for row in rows) else "left"
        table.add_column(key.replace("_", " "), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value):
    if isinstance(value, tuple):
        is_shape = all(type(number) is int for number in value)
        return "x".join(map(str, value)) if is_shape else ", ".join(map(_cell, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
