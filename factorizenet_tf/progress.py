"""What a long job says on stderr: a line an epoch or step of work, and a bar on a terminal."""

from __future__ import annotations

__all__ = ["Progress"]


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
