"""What jobs and commands print on stderr and stdout, what is kept off them, and which extra is missing."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence

import rich.progress
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Progress", "print_accuracies", "print_json", "quiet_native_stderr", "require_extra", "show", "show_page"]
__all__ += ["show_rows", "text_table"]

PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
FOLDED = 24  # characters of a line of text in a table that is too wide


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
    run in several threads. FACTORIZENET_TRACEBACK, or 0 as TF_CPP_MIN_LOG_LEVEL, shows all.
    """
    with contextlib.ExitStack() as stack:
        if not os.environ.get("FACTORIZENET_TRACEBACK") and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
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
    """Check that top-level modules are installed, without importing them.

    Args:
        modules: what will be imported.
        extra: the package's extra that installs them.
        what: who needs them, for the message, e.g. "drawing figures".

    Raises:
        ModuleNotFoundError: some are not installed; the message names them and the command that installs them.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        text = f"{what} needs {' and '.join(missing)}: pip install 'factorizenet_tf[{extra}]'"
        raise ModuleNotFoundError(text, name=missing[0])


def print_json(value) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2))


def print_accuracies(metrics: dict, class_names: Sequence[str]) -> None:
    """Print the accuracies of a run's metrics.json as a table; which class fails and the agreement where it has them."""
    from .classes import lowest_recall, matrix_from_text

    rows = [
        {"split": split + ", top-5" * (kind != "accuracy"), "images": metrics["images"][split]}
        | {k: f"{100 * v:.2f} %" for k, v in values.items()}
        for kind in ("accuracy", "top5_accuracy")
        for split, values in metrics.get(kind, {}).items()
    ]
    show_rows(rows, title=f"{metrics['name']} on {metrics['dataset']}: accuracy")
    for split, texts in [*metrics.get("confusion", {}).items()][-1:] if len(class_names) > 1 else ():
        print(f"int8, {split}: {lowest_recall(matrix_from_text(texts['int8']), class_names)}")
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


def show_rows(rows: list[dict], *, title: str = "") -> None:
    """Print dicts of equal keys as a table on stdout."""
    print(f"{title}\n" * bool(title) + text_table(rows))


def show_page(text: str) -> None:
    """Print Markdown, laid out on a terminal, unchanged into a file or a pipe."""
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        Console(color_system=None).print(Markdown(text, hyperlinks=False))
    else:
        print(text)


def text_table(rows: list[dict], *, brief: tuple[str, ...] = ()) -> str:
    """Lay dicts of equal keys out as a plain text table: whole in a file or a pipe, no wider than a terminal.

    On a terminal that is too narrow, a single row becomes one line a column. Of several rows the `brief` columns alone are
    shown if there are some; otherwise headings and texts are folded, and columns that still do not fit follow below, beside
    the first column again.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    columns = {key: [key.replace("_", " "), *(_cell(row[key]) for row in rows)] for key in rows[0]}

    def total(keys):
        return sum(max(map(cell_len, "\n".join(columns[key]).splitlines())) + 2 for key in keys) - 2

    blocks = [[first := next(iter(columns))]]
    if width is None or total(columns) <= width:
        blocks, others = [columns], []
    elif len(rows) == 1:
        wide = max(map(len, columns))
        fold = textwrap.TextWrapper(width, subsequent_indent=" " * (wide + 2), break_long_words=False)
        return "\n".join(fold.fill(f"{head:{wide}}  {cell}") for head, cell in columns.values())
    elif left_out := [columns[key][0] for key in columns if brief and key not in brief]:
        note = textwrap.fill(f"In a wider window or a pipe, too: {', '.join(left_out)}.", width)
        return text_table([{key: row[key] for key in brief} for row in rows]) + "\n" + note
    else:
        for key, (head, *cells) in columns.items():
            columns[key] = [head.replace(" ", "\n"), *(textwrap.fill(cell, FOLDED) for cell in cells)]
        others = [*columns][1:]
    for key in others:
        if len(blocks[-1]) > 1 and total([*blocks[-1], key]) > width:
            blocks.append([first])
        blocks[-1].append(key)
    console = Console(file=io.StringIO(), width=sum(map(total, blocks)), color_system=None, markup=False, emoji=False)
    for keys in blocks:
        table = Table(box=PLAIN, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for key in keys:
            is_number = any(isinstance(row[key], (int, float)) for row in rows)
            table.add_column(columns[key][0], justify="right" if is_number else "left")
        for cells in zip(*(columns[key][1:] for key in keys)):
            table.add_row(*cells)
        console.print(table, "")
    return "\n".join(map(str.rstrip, console.file.getvalue().rstrip().splitlines()))


def _cell(value):
    if isinstance(value, tuple):
        is_shape = all(type(number) is int for number in value)
        return "x".join(map(str, value)) if is_shape else ", ".join(map(_cell, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
