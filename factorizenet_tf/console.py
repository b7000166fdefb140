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

__all__ = [
    "Progress",
    "print_accuracies",
    "print_json",
    "quiet_native_stderr",
    "require_extra",
    "show",
    "show_rows",
    "text_table",
]


class _Stderr:
    """Stands for sys.stderr within a silence; a logging handler that keeps it writes to the real one afterwards."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)


class _Silence:
    """File descriptor 2 pointed at nothing while at least one thread wants it so."""

    lock, depth, kept, stderr, stand_in = threading.Lock(), 0, -1, None, None

    @classmethod
    def begin(cls):
        with cls.lock:
            if not cls.depth:
                cls.kept, cls.stderr = os.dup(2), sys.stderr
                if _is_descriptor_2(sys.stderr):  # what Python says goes on being seen
                    sys.stderr.flush()
                    kept = open(cls.kept, "w", buffering=1, encoding=sys.stderr.encoding, closefd=False)  # noqa: SIM115
                    sys.stderr = cls.stand_in = _Stderr(kept)
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
            cls.depth += 1

    @classmethod
    def end(cls):
        with cls.lock:
            cls.depth -= 1
            if not cls.depth:
                os.dup2(cls.kept, 2)
                sys.stderr = cls.stderr
                if cls.stand_in is not None:
                    cls.stand_in.stream, cls.stand_in = cls.stderr, None
                os.close(cls.kept)


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
    silenced = False
    if not os.environ.get("FACTORIZENET_TRACEBACK"):
        with contextlib.suppress(OSError):  # the process has no stderr
            _Silence.begin()
            silenced = True
    try:
        yield
    finally:
        if silenced:
            _Silence.end()


class Progress:
    """Say on stderr how far a long job is, by Rich: lines, and a bar on a terminal. Use as a context; silent where not verbose."""

    def __init__(self, verbose: bool = True):
        self._verbose = verbose
        self._rich = None

    def __enter__(self) -> Progress:
        if self._verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            console = Console(stderr=True)
            self._rich = RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._rich.start()
        return self

    def __exit__(self, *exception):
        if self._rich:
            self._rich.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._rich:
            self._rich.console.print(text, highlight=False, soft_wrap=True)

    def bar(self, text: str, total: int, *, done: int = 0) -> Bar:
        """Show a bar in the place of the one before, `done` of its `total` steps filled."""
        if self._rich:
            for task in self._rich.task_ids:
                self._rich.remove_task(task)
        return Bar(self._rich, text, self._rich and self._rich.add_task(text, total=total, completed=done))

    def epoch(self, name: str, row: dict, epochs: int) -> None:
        """Print the line of a finished epoch."""
        self.say(
            f"{name} {row['phase']} {row['epoch']}/{epochs}: loss {row['loss']:.3f}, accuracy {100 * row['accuracy']:.1f} %, "
            f"validation {100 * row['val_accuracy']:.1f} %, {row['seconds']:.0f} s"
        )


class Bar:
    """One bar of a `Progress`."""

    def __init__(self, rich, text, task):
        self._rich, self._text, self._task = rich, text, task

    def advance(self, *, loss: float | None = None) -> None:
        """Fill a step, and show the loss behind the text."""
        if self._rich:
            text = self._text if loss is None else f"{self._text} loss {loss:.3f}"
            self._rich.update(self._task, advance=1, description=text)


WIDE = 200


def require_extra(*modules: str, extra: str, what: str) -> None:
    """Look for the modules that a job will import, before it starts; none of them is imported.

    Args:
        modules: names as in `import`, e.g. "altair" or "tflite_micro".
        extra: the extra of factorizenet_tf that installs them, e.g. "report".
        what: what needs them, as a gerund: "drawing figures", "measuring RAM".

    Raises:
        ModuleNotFoundError: some are not installed; the message names them and the remedy, its `name` is the first one.
    """
    missing = [module for module in modules if not _is_installed(module)]
    if missing:
        raise ModuleNotFoundError(
            f"{what} needs {' and '.join(missing)}: pip install 'factorizenet_tf[{extra}]'", name=missing[0]
        )


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def print_json(value) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2))


def print_accuracies(metrics: dict) -> None:
    """Print the accuracies of a run's metrics.json as a table, and its agreement where it has one."""
    rows = [
        {"split": split, "images": metrics["images"][split]} | {k: f"{100 * v:.2f} %" for k, v in values.items()}
        for split, values in metrics["accuracy"].items()
    ]
    show_rows(rows, title=f"{metrics['name']} on {metrics['dataset']}: accuracy")
    if "agreement" in metrics:
        a = metrics["agreement"]
        print(
            f".tflite against QAT Keras on {a['images']} test images: top-1 agreement {100 * a['top1']:.2f} %, "
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
    from rich.console import Console

    # Piped output is as wide as it needs: it has no screen to fit.
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(_table(rows, title=title))


def text_table(rows: list[dict]) -> str:
    """Give dicts of equal keys as the text of a table."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDE)
    console.print(_table(rows))
    return console.file.getvalue().rstrip("\n")


def _table(rows, title=None):
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for key, value in rows[0].items():
        justify = "right" if isinstance(value, (int, float)) else "left"
        table.add_column(key.replace("_", " "), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, tuple)):
        return str(value)
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
