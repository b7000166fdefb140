"""What commands and scripts print: tables by Rich, or JSON."""

from __future__ import annotations

import io
import json
import sys

__all__ = ["print_accuracies", "print_json", "show", "show_rows", "text_table"]

WIDE = 200


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
