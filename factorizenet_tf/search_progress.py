"""What a search says on stderr: a line a trial, and on a terminal a bar with the best so far and the time left."""

from __future__ import annotations

import time

from .recipe import Recipe
from .spec import ModelSpec
from .trial import REASON, ROUND

__all__ = ["SearchProgress"]


class SearchProgress:
    """Lines and a bar by Rich; silent where not verbose. Use as a context.

    Args:
        oracle: a `FactorizationOracle` of this process, asked for the best so far; None in a worker.
        verbose: whether to say anything.
    """

    def __init__(self, oracle=None, *, verbose: bool = True):
        self._oracle, self._verbose = oracle, verbose
        self._rich = self._task = None
        self._seconds: list[float] = []

    def __enter__(self) -> SearchProgress:
        if self._verbose:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
            console = Console(stderr=True)
            self._rich = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._rich.start()
        return self

    def __exit__(self, *exception):
        if self._rich:
            self._rich.stop()

    def say(self, text: str) -> None:
        """One line."""
        if self._rich:
            self._rich.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, trial_id: str, spec: ModelSpec, recipe: Recipe, values: dict, done: int) -> None:
        """A trial starts, `done` of its epochs finished before.

        Args:
            values: the trial's hyperparameter values, with the walk's reason and round.
        """
        self._start = time.monotonic()
        if not self._rich:
            return
        if self._task is not None:
            self._rich.remove_task(self._task)
        again = f", going on after epoch {done}" if done else ""
        self.say(f"trial {int(trial_id)}: {spec.name}, {values.get(REASON, 'proposed')}{again}")
        self._name = spec.name
        self._task = self._rich.add_task(self._text(values), total=recipe.epochs + recipe.qat_epochs, completed=done)

    def epoch(self, phase: str, epoch: int, accuracy: float) -> None:
        """An epoch of the trial ended with this validation accuracy (0..1)."""
        if self._rich:
            self._rich.advance(self._task)

    def end(self, spec: ModelSpec, accuracy: float, pruned: bool) -> None:
        """The trial ended with this objective (0..1)."""
        seconds = time.monotonic() - self._start
        self._seconds.append(seconds)
        result = "given up, hopeless" if pruned else f"{100 * accuracy:.2f} %"
        self.say(f"  {spec.name}: {result}, {seconds:.0f} s")

    def _text(self, values):
        text = f"{self._name}, round {values.get(ROUND, '-')}"
        if self._oracle is None:
            return text
        walk = self._oracle.walk()
        if walk.best is not None:
            text += f", best {walk.best.name}"
        if self._seconds:
            left = len(walk.pending) * sum(self._seconds) / len(self._seconds)
            text += f", {left / 60:.0f} min left in the round"
        return text
