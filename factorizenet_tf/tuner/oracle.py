"""Let KerasTuner drive the progressive search: an oracle whose trials are nets, its state in files that survive a kill.

KerasTuner holds a lock around an oracle's methods and does not free it on an exception. So the methods raise nothing: an
error is kept in `failure`, the search is told to stop, and `FactorizationTuner.search` raises it.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path

from .. import _keras  # noqa: F401 (decides, before KerasTuner is imported, on Keras and on what TensorFlow says)

# isort: split
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from ..files import remove_partial_files, write_text
from ..requirement import COSTS, MEASURED, Requirement
from ..spec import ModelSpec
from .budget import check_budget, least_costs, what_would_help
from .costs import MeasuredCosts
from .progressive import Result, Search, SearchState, effects, propose
from .space import NetSpace, Space, macs

__all__ = ["FactorizationOracle", "last_line", "metrics_of", "result_of", "search_space", "space_identity"]

# What the oracle tells the tuner beside the net, among a trial's hyperparameter values.
PARENT, REASON, ROUND, THRESHOLD = "walk/parent", "walk/reason", "walk/round", "walk/threshold"
CURVE = "val_float_accuracy_epoch_{}"
PRUNED = "pruned"
ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)


def search_space(spec: ModelSpec, widths: tuple[int, ...] | None = None) -> keras_tuner.HyperParameters:
    """Describe the space for KerasTuner's stock oracles: a Choice of levels for each of `stage1`, `stage2`, ...

    Args:
        spec: gives the stages, and the width unless `widths` is given.
        widths: of the stem; several are a Choice `width`.
    """
    return _hyperparameters(Space(spec, (spec.width,) if widths is None else tuple(widths)))


def _hyperparameters(space: NetSpace) -> keras_tuner.HyperParameters:
    found = keras_tuner.HyperParameters()
    for name, values in space.values_to_choose().items():
        found.Choice(name, values)
    return found


def metrics_of(objective: str, accuracy: float, curve: list[float], pruned: bool) -> dict[str, float]:
    """Give the metrics that `result_of` reads back; KerasTuner keeps numbers alone."""
    epochs = {CURVE.format(epoch): value for epoch, value in enumerate(curve, 1)}
    return {objective: accuracy, PRUNED: float(pruned), **epochs}


def result_of(trial: Trial, objective: str) -> Result:
    """Read the result of a trial that has ended; accuracies are rounded, since KerasTuner may keep single precision."""
    if trial.status == TrialStatus.FAILED:
        return Result(None)

    def value(name):
        return round(float(trial.metrics.get_last_value(name)), 6) if trial.metrics.exists(name) else None

    curve = []
    while (accuracy := value(CURVE.format(len(curve) + 1))) is not None:
        curve.append(accuracy)
    return Result(value(objective), tuple(curve), bool(value(PRUNED)))


def space_identity(space: NetSpace, requirement: Requirement | None, objective: str) -> dict:
    """Give what identifies a search, also one with a stock oracle: only an equal one may continue in its folder."""
    return {
        **space.identity(),
        **{f"max_{cost}": None if requirement is None else requirement.limits.get(cost) for cost in COSTS},
        "min_accuracy": None if requirement is None else requirement.min_accuracy,
        "objective": objective,
    }


def last_line(trial: Trial) -> str:
    """Give the last line of a trial's message, which says why it failed."""
    return (trial.message or "").strip().rpartition("\n")[2]


class FactorizationOracle(keras_tuner.Oracle):
    """Propose factorized nets for a requirement, never one over budget and none twice.

    MACs come from the spec. Bytes, RAM and latency are measured once for each net, on this machine and an untrained
    conversion, when the search first considers it. With budgets alone the search maximizes accuracy; with a floor, it looks
    for the fewest MACs that reach it.

    Args:
        spec: gives input shape, classes, stages, and the width unless `widths` is given; its level does not matter. Or a
            `ModelSpace`, the nets that a model may become, with which none of the choices below may be given.
        requirement: budgets and floor, or None and its fields: `max_macs=4_000_000`.
        widths: of the stem, to choose from; None: the spec's.
        macros, blocks, channels: further choices, as for `Space`.
        objective: name of the metric to maximize, or a `keras_tuner.Objective` with direction "max".
        seed: decides ties; None: 0.
        max_trials: maximum number of nets to train; None: until the search ends by itself.
        patience: number of batches without a better net after which it ends.
        **limits: fields of `Requirement`, if no requirement is given.

    Raises:
        ValueError: nothing is required, a budget is below the smallest net (named), or an argument is out of range.
        TypeError: a requirement and its fields are given, or an argument is no number.
    """

    def __init__(
        self,
        spec: ModelSpec | NetSpace,
        requirement: Requirement | None = None,
        *,
        widths: tuple[int, ...] | None = None,
        macros: tuple[str, ...] = (),
        blocks: tuple[int, ...] = (),
        channels: tuple[float, ...] = (),
        objective: str | keras_tuner.Objective = "val_int8_accuracy",
        seed: int | None = None,
        max_trials: int | None = None,
        patience: int = 3,
        **limits,
    ):
        if requirement is not None and limits:
            raise TypeError(f"requirement and {', '.join(limits)} are given; put all limits into the requirement")
        self.requirement = requirement or Requirement(**limits)
        if isinstance(spec, NetSpace):
            if widths is not None or macros or blocks or channels:
                raise ValueError("widths, macros, blocks and channels are of the package's own nets; leave them out")
            self.space = spec
        else:
            widths = (spec.width,) if widths is None else tuple(map(operator.index, widths))
            if not widths:
                raise ValueError("widths is empty; give at least one, or None for the spec's own")
            self.space = Space(spec, *(tuple(dict.fromkeys(some)) for some in (widths, macros, blocks, channels)))
        self.patience = operator.index(patience)
        max_trials = None if max_trials is None else operator.index(max_trials)
        if patience < 0:
            raise ValueError(f"patience is {patience}; it must be at least 0")
        if max_trials is not None and max_trials < 1:
            raise ValueError(f"max_trials is {max_trials}; it must be at least 1")
        if isinstance(objective, str):
            objective = keras_tuner.Objective(objective, "max")
        if objective.direction != "max":
            raise ValueError(
                f"the objective {objective.name!r} has direction {objective.direction!r}; the search needs max"
            )
        check_budget(self.space, self.requirement)
        super().__init__(objective, max_trials, _hyperparameters(self.space), seed=1)
        self.seed = self._seed_state = 0 if seed is None else operator.index(seed)  # the base class takes 0 for none
        self.costs = MeasuredCosts(self.requirement.limits)
        self.failure: BaseException | None = None
        self.verbose = 0
        self.say = lambda text: None  # what a search sets to show its progress
        self._search = Search(self.space, self.requirement, self.violation, self.patience, self.seed, max_trials)
        _ = self._search.whole  # made here, so that no proposal waits for it

    # The search

    def walk(self) -> SearchState:
        """Give the state of the search after the trials that have ended: nets proposed, ranked and rejected, with reasons."""
        return propose(self._search, self.results())

    def effects(self) -> dict[str, dict[int, float | None]]:
        """Estimate how another choice in one stage alone would change the best net, as `progressive.effects`."""
        return effects(self._search, self.results(), self.walk().best)

    def results(self) -> dict[ModelSpec, Result]:
        """Give the result of each net whose trial has ended."""
        ended = (trial for trial in self.trials.values() if trial.status in ENDED)
        return {self.net(trial): result_of(trial, self.objective.name) for trial in ended}

    def net(self, trial: Trial) -> ModelSpec:
        """Give the net of a trial."""
        return self.space.net_from(trial.hyperparameters.values)

    def violation(self, spec: ModelSpec) -> str | None:
        """Say which budget a net exceeds, or None; its costs are measured only if what the spec tells fits and a budget needs them."""
        reason = self.requirement.violation({"macs": macs(spec)})
        if reason or not self.requirement.limits.keys() & set(MEASURED):
            return reason
        if isinstance(self.space, Space) and (reason := self.requirement.violation(least_costs(spec))):
            return reason
        net = self.space.spec_of(spec)
        if not self.costs.cached(net):
            self.say(f"measuring {spec.name}")
        return self.requirement.violation(self.costs.measure(net))

    def populate_space(self, trial_id: str) -> dict:
        """Give the next net; IDLE while the others of its batch are trained, STOPPED at the end."""
        try:
            state = self.walk()
            trial_ids = {self.net(trial): trial_id for trial_id, trial in self.trials.items()}
            for proposal in state.pending:
                if proposal.spec not in trial_ids:
                    values = self.space.values_of(proposal.spec) | {
                        PARENT: trial_ids.get(proposal.parent, ""),
                        REASON: proposal.reason,
                        ROUND: proposal.round,
                        THRESHOLD: " ".join(f"{value:g}" for value in proposal.threshold),
                    }
                    return {"status": TrialStatus.RUNNING, "values": values}
            if state.pending:
                return {"status": TrialStatus.IDLE}
            if not state.proposals:
                help_text = what_would_help(self.space, self.requirement, self.say)
                self.failure = ValueError(f"{_nothing_fits(state, self.costs, self.requirement.limits)}; {help_text}")
        except Exception as error:
            self.failure = error
        return {"status": TrialStatus.STOPPED}

    # Trials

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """Give a trial to run, unfinished ones first."""
        if self.failure is not None:
            self.tuner_ids.discard(tuner_id)  # for which KerasTuner's chief would wait
            return Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        return super().create_trial(tuner_id)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> Trial:
        """Set a trial's metrics, replacing any from before a kill."""
        trial = self.trials[trial_id]
        trial.metrics = type(trial.metrics)()
        return super().update_trial(trial_id, dict(metrics), step)

    @keras_tuner.synchronized
    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """List the trials of finished nets that fit, the search's answer first (with a floor, not the most accurate one)."""
        trials = {self.net(trial): trial for trial in self.trials.values()}
        return [trials[spec] for spec in self.walk().ranked[:num_trials]]

    def score_trial(self, trial: Trial) -> None:
        """Score a trial by the objective; a training that was given up ranks behind every finished one."""
        result = result_of(trial, self.objective.name)
        trial.score = (result.accuracy or 0.0) - (result.pruned or result.accuracy is None)
        trial.best_step = 0

    def _check_consecutive_failures(self):
        last = [self.trials[trial_id] for trial_id in self.end_order[-self.max_consecutive_failed_trials :]]
        failed = [trial for trial in last if trial.status == TrialStatus.FAILED]
        if len(failed) == self.max_consecutive_failed_trials:
            message = f"{len(failed)} trials in a row failed, the last of them: {last_line(failed[-1])}"
            self.failure = RuntimeError(message)

    # State

    def get_state(self) -> dict:
        """Give what a resumed search needs besides the trials' own files."""
        values = {trial_id: trial.hyperparameters.values for trial_id, trial in self.trials.items()}
        return super().get_state() | {"values": values}

    def identity(self) -> dict:
        """Give what identifies a search: space, requirement, objective, seed, patience."""
        identity = space_identity(self.space, self.requirement, self.objective.name)
        return identity | {"seed": self.seed, "patience": self.patience}

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self._write(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        self._write(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def _write(self, path, state):
        try:
            write_text(path, json.dumps(state, indent=1) + "\n")
        except OSError as error:
            self.failure = error

    def reload(self) -> None:
        """Continue from the project's folder; only trials that had not ended are repeated.

        If oracle.json is lost, the trials' own files suffice.

        Raises:
            ValueError: a file is damaged.
        """
        path = Path(self._get_oracle_fname())
        for file in path.parent.glob("trial_*/trial.json"):
            remove_partial_files(file.parent)
            try:
                trial = Trial.load(str(file))
                self.net(trial)
            except Exception as error:
                remedy = f"delete the folder {file.parent}, then its trial is done again"
                raise ValueError(f"{file} is damaged ({error}); {remedy}") from None
            self.trials[trial.trial_id] = trial
        try:
            state = json.loads(path.read_text()) if path.exists() else self.get_state()
            for trial_id in state["values"].keys() - self.trials.keys():
                hyperparameters = self.get_space()
                hyperparameters.values = state["values"][trial_id]
                self.trials[trial_id] = Trial(hyperparameters, trial_id=trial_id)
            self.set_state(state | {"ongoing_trials": {}})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); delete it, the trials' files have the same") from None
        self.trials = dict(sorted(self.trials.items()))
        self._search.begun.clear()
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            parent = self.trials.get(values.get(PARENT, ""))
            entry = self.net(trial), values.get(REASON, ""), None if parent is None else self.net(parent)
            self._search.begun.setdefault(values.get(ROUND), []).append(entry)
        ended = [trial_id for trial_id, trial in self.trials.items() if trial.status in ENDED]
        self._retry_queue = sorted(self.trials.keys() - ended, reverse=True)
        known = [trial_id for trial_id in self.end_order if trial_id in ended]
        self.end_order = known + [trial_id for trial_id in ended if trial_id not in known]

    def _set_project_dir(self, directory, project_name):
        super()._set_project_dir(directory, project_name)
        self.costs.load(Path(self._project_dir))


def _nothing_fits(state: SearchState, costs: MeasuredCosts, limits: Mapping[str, float]) -> str:
    rejected, nearest = state.rejected, {}
    measured = {spec: costs.cached(state.search.space.spec_of(spec)) for spec in rejected}
    for cost, limit in limits.items():
        known = [spec for spec in rejected if cost in measured[spec]]
        least = min(known, key=lambda spec, cost=cost: measured[spec][cost], default=None)
        if least is not None and measured[least][cost] > limit:
            nearest[least] = rejected[least]
    if not nearest:  # nothing was measured, or no net keeps all limits together
        uniform = [spec for spec in rejected if isinstance(spec.level, int)]
        nearest = {spec: rejected[spec] for spec in uniform[-2:]}
    reasons = "; ".join(f"{spec.name} {reason}" for spec, reason in nearest.items())
    return f"none of the {len(rejected)} nets looked at fits, the nearest of them: {reasons}"
