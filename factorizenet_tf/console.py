"""What commands print: progress of a long job on stderr, tables and JSON on stdout, and which extra is missing."""

from __future__ import annotations

import importlib.util
import io
import json
import sys

__all__ = ["Progress", "print_accuracies", "print_json", "require_extra", "show", "show_rows", "text_table"]


class Progress:
    """Lines and bars by Rich; silent where not verbose. Use as a context."""

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
        """One line."""
        if self._rich:
            self._rich.console.print(text, highlight=False, soft_wrap=True)

    def bar(self, text: str, total: int, *, done: int = 0) -> Bar:
        """A bar that replaces the one before, `done` steps of it filled."""
        if self._rich:
            for task in self._rich.task_ids:
                self._rich.remove_task(task)
        return Bar(self._rich, text, self._rich and self._rich.add_task(text, total=total, completed=done))

    def epoch(self, name: str, row: dict, epochs: int) -> None:
        """The line of a finished epoch."""
        self.say(
            f"{name} {row['phase']} {row['epoch']}/{epochs}: loss {row['loss']:.3f}, accuracy {100 * row['accuracy']:.1f} %, "
            f"validation {100 * row['val_accuracy']:.1f} %, {row['seconds']:.0f} s"
        )


class Bar:
    """One bar of a `Progress`."""

    def __init__(self, rich, text, task):
        self._rich, self._text, self._task = rich, text, task

    def advance(self, *, loss: float | None = None) -> None:
        """One step further."""
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
    """Dicts of equal keys as the text of a table."""
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
