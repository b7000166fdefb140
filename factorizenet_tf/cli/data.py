"""The command that lays out a named data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["prepare"]


def prepare(
    name: Annotated[str, typer.Argument(help="tiny_imagenet or gtsrb.")],
    archives: Annotated[list[Path], typer.Argument(help="The makers' .zip files.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
):
    """Lay out the archives of a named data set as class folders."""
    from ..data import named

    counts = named.prepare(name, archives, out)
    print(", ".join(f"{count:,} {split} images" for split, count in counts.items()))
    print(f"export {named.folder_variable(name)}={out.absolute()}")
