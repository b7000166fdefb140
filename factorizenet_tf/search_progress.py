"""What a search says on stderr: a line a trial, and on a terminal a bar of its epochs with the best net so far."""

from __future__ import annotations

import time

from .progress import Progress
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
        self._oracle, self._progress = oracle, Progress(verbose)
        self._seconds: list[float] = []

    def __enter__(self) -> SearchProgress:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception):
        self._progress.__exit__(*exception)

    def say(self, text: str) -> None:
        """One line."""
        self._progress.say(text)

    def begin(self, trial_id: str, spec: ModelSpec, recipe: Recipe, values: dict, done: int) -> None:
        """A trial starts, `done` of its epochs finished before.

        Args:
            values: the trial's hyperparameter values, with the walk's reason and round.
        """
        self._start = time.monotonic()
        again = f", going on after epoch {done}" if done else ""
        self.say(f"trial {int(trial_id)}: {spec.name}, {values.get(REASON, 'proposed')}{again}")
        self._bar = self._progress.bar(self._text(spec.name, values), recipe.epochs + recipe.qat_epochs, done=done)

    def epoch(self, phase: str, epoch: int, accuracy: float) -> None:
        """An epoch of the trial ended with this validation accuracy (0..1)."""
        self._bar.advance()

    def end(self, spec: ModelSpec, accuracy: float, pruned: bool) -> None:
        """The trial ended with this objective (0..1)."""
        seconds = time.monotonic() - self._start
        self._seconds.append(seconds)
        result = "given up, hopeless" if pruned else f"{100 * accuracy:.2f} %"
        self.say(f"  {spec.name}: {result}, {seconds:.0f} s")

    def _text(self, name, values):
        text = f"{name}, round {values.get(ROUND, '-')}"
        if self._oracle is None:
            return text
        walk = self._oracle.walk()
        if walk.best is not None:
            text += f", best {walk.best.name}"
        if self._seconds:
            left = len(walk.pending) * sum(self._seconds) / len(self._seconds)
            text += f", {left / 60:.0f} min left in the round"
        return text
