"""Write tables of results into the pages that show them.

    python tuner/tables.py

A table stands behind its mark, <!-- others.csv -->. A section that waits for its file is a comment, <!-- when others.csv is
there ... -->, with {others.csv} for the table, and is opened as soon as the file is there. A test compares.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from factorizenet_tf.files import write_text

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "factorize.md", ROOT / "docs" / "train.md")
ACCURACIES = {
    f"{before}{split}_{kind}": f"{title}{long} {kind}"
    for before, title in (("", ""), ("tuned_", "tuned, "))
    for split, long in (("val", "validation"), ("test", "test"))
    for kind in ("float", "int8")
}
FITTED = {  # and the largest difference between draws of images
    f"{net}{ending}": title + text
    for net, title in (("level_2", "level 2"), ("last_level_middle_3", "last level, middle 3"))
    for ending, text in (("", ""), ("_spread", ", spread"))
}
COSTS = {"macs": "MACs", "size_bytes": ".tflite bytes", "ram_bytes": "arena", "latency_ratio": "ms / original's"}
COSTS["latency_ratio_regrouped"] = "the same, after `--regroup fastest`"
TABLES = {  # by file: column -> title; columns that are empty are left out
    "others.csv": {"net": "net", "how": "how", **COSTS, **ACCURACIES},
    "between.csv": {"between": "between", "macs": "MACs", "val_before": "validation before", **ACCURACIES},
    "known_methods.csv": {"net": "net", "method": "method", "macs": "MACs", **ACCURACIES},
    "fitting.csv": {
        "changed": "changed",
        **{name: name for name in ("images", "damping", "sweeps", "positions")},
        **FITTED,
    },
    "starting.csv": {
        "set": "set",
        "images": "training images",
        "net": "net",
        "start": "start",
        "freeze": "frozen stages",
        **{epochs: f"{epochs} + 1 epochs" for epochs in ("5", "20")},
    },
}


def table(name: str) -> str:
    """Write a file's rows as a table of Markdown."""
    with open(ROOT / "tuner" / "results" / name, newline="") as file:
        rows = list(csv.DictReader(file))
    if name == "starting.csv":
        rows = means(rows)
    columns = {column: title for column, title in TABLES[name].items() if any(row.get(column) for row in rows)}
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[shown(column, row[column]) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def means(rows: list[dict]) -> list[dict]:
    """Gather the rows of starting.csv that differ in epochs and seed alone: by epochs, the seeds' int8 accuracies on test."""
    found = {}
    for row in rows:
        key = tuple(row[column] for column in ("set", "images", "net", "start", "freeze"))
        found.setdefault(key, {}).setdefault(row["epochs"], []).append(100 * float(row["test_int8"]))
    return [
        dict(zip(("set", "images", "net", "start", "freeze"), (*key[:4], key[4] if key[4] != "0" else "")))
        | {epochs: f"{sum(of) / len(of):.1f} % ({min(of):.1f} to {max(of):.1f})" for epochs, of in by_epochs.items()}
        for key, by_epochs in found.items()
    ]


def shown(column: str, text: str) -> str:
    """Write one value."""
    if not text or "ratio" in column:
        return text
    if column in ACCURACIES | FITTED or column == "val_before":
        return f"{100 * float(text):.2f} %"
    return f"{int(text):,}" if text.isdigit() else text


def filled(text: str) -> str:
    """Give a page with the tables whose files are there."""
    for name in TABLES:
        if (ROOT / "tuner" / "results" / name).exists():
            text = re.sub(rf"<!-- when {name} is there\n(.*?)\n-->\n", r"\1\n", text, flags=re.DOTALL)
            text = text.replace(f"{{{name}}}\n", f"<!-- {name} -->\n")
            text = re.sub(rf"(<!-- {name} -->\n)(?:\|.*\n)*", lambda mark, name=name: mark[1] + table(name), text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        write_text(page, filled(page.read_text()))
