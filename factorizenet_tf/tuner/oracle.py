"""The walk as a KerasTuner oracle: trials in, proposals out, its state in files that survive a kill.

KerasTuner holds a lock around an oracle's methods and does not free it on an exception, so nothing here raises out of
them: a failure is kept in `failure`, every worker is told to stop, and `FactorizationTuner.search` raises it.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

from ..files import remove_asides, write_text
from ..requirement import COSTS, Requirement
from ..spec import ModelSpec
from ._keras_tuner import Trial, TrialStatus, keras_tuner
from .progressive import Proposal, Result, Walk, model, ranking, stage_effects, walk
from .space import MeasuredCosts, Space, check_budget, macs

__all__ = [
    "PARENT",
    "REASON",
    "ROUND",
    "THRESHOLD",
    "FactorizationOracle",
    "identity_of",
    "metrics_of",
    "result_of",
    "search_space",
    "spec_of",
    "values_of",
]

# What the oracle tells a worker beside the net, among a trial's hyperparameter values.
PARENT, REASON, ROUND, THRESHOLD = "walk/parent", "walk/reason", "walk/round", "walk/threshold"
CURVE = "val_float_accuracy_epoch_{}"
PRUNED = "pruned"


def search_space(spec: ModelSpec, widths: tuple[int, ...] | None = None) -> keras_tuner.HyperParameters:
    """The space as KerasTuner's own, for its stock oracles: a Choice of levels for each of `stage1`, `stage2`, ...

    Args:
        spec: gives the stages, and the width unless `widths` is given.
        widths: of the stem; where there are several, a Choice `width`.
    """
    space = Space(spec, (spec.width,) if widths is None else tuple(widths))
    hyperparameters = keras_tuner.HyperParameters()
    lasts = [space.uniform(width)[-1].levels for width in space.widths]
    for number, last in enumerate(map(max, zip(*lasts)), 1):
        hyperparameters.Choice(f"stage{number}", list(range(last + 1)))
    if len(space.widths) > 1:
        hyperparameters.Choice("width", list(space.widths))
    return hyperparameters


def values_of(space: Space, spec: ModelSpec) -> dict[str, int]:
    """A net as hyperparameter values."""
    values = {f"stage{number}": level for number, level in enumerate(spec.levels, 1)}
    return values | ({"width": spec.width} if len(space.widths) > 1 else {})


def spec_of(space: Space, values: dict) -> ModelSpec:
    """The net of hyperparameter values; a level above a stage's last is clipped to it."""
    levels = tuple(int(values[f"stage{number}"]) for number in range(1, len(space.spec.stages) + 1))
    width = int(values.get("width", space.widths[0]))
    last = space.uniform(width)[-1].levels
    return space.net(tuple(map(min, levels, last)), width)


def metrics_of(objective: str, accuracy: float, curve: list[float], pruned: bool) -> dict[str, float]:
    """The metrics that `result_of` reads back; KerasTuner carries numbers alone."""
    epochs = {CURVE.format(epoch): value for epoch, value in enumerate(curve, 1)}
    return {objective: accuracy, PRUNED: float(pruned), **epochs}


def result_of(trial, objective: str) -> Result:
    """What came of a trial that has ended. Rounded, since workers send single precision."""
    if trial.status == TrialStatus.FAILED:
        return Result(None)

    def value(name):
        return round(float(trial.metrics.get_last_value(name)), 6) if trial.metrics.exists(name) else None

    curve = []
    while (accuracy := value(CURVE.format(len(curve) + 1))) is not None:
        curve.append(accuracy)
    return Result(value(objective), tuple(curve), bool(value(PRUNED)))


ORACLE_FILE = "oracle.json"
NETS_MOST = 1_000_000
DEAD_SECONDS = 60.0  # a worker that is silent for so long is taken for dead


class _Unmeasured(Exception):  # noqa: N818 (no error: what is to be done first)
    """A proposal waits for a measurement."""


class FactorizationOracle(keras_tuner.Oracle):
    """Proposes factorized nets for a requirement, never one over budget and none twice.

    MACs come from the spec. Bytes, RAM and latency are measured once a net on an untrained conversion, when the walk
    first looks at it. Under budgets alone the walk looks for the highest accuracy; with a floor for the fewest MACs
    that reach it.

    Args:
        spec: gives input shape, classes, stages, and the width unless `widths` is given; its level does not matter.
        max_macs, max_size_bytes, max_ram_bytes, max_latency_ms: budgets.
        min_accuracy: floor of the objective, 0..1.
        widths: of the stem, to choose from; None: the spec's.
        objective: name of the metric to raise, or a `keras_tuner.Objective` with direction "max".
        seed: decides ties; None is 0.
        max_trials: nets to train at most; None: until the walk ends by itself.
        patience: rounds without a better net after which it ends.
        dead_seconds: silence after which a worker's trial is given to another.

    Raises:
        ValueError: nothing is required, a budget is below the smallest net (named), there are more than a million
            nets, or an argument is out of range.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        max_macs: int | None = None,
        max_size_bytes: int | None = None,
        max_ram_bytes: int | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        widths: tuple[int, ...] | None = None,
        objective: str | keras_tuner.Objective = "val_int8_accuracy",
        seed: int | None = None,
        max_trials: int | None = None,
        patience: int = 3,
        dead_seconds: float = DEAD_SECONDS,
    ):
        self.requirement = Requirement(
            max_macs=max_macs,
            max_size_bytes=max_size_bytes,
            max_ram_bytes=max_ram_bytes,
            max_latency_ms=max_latency_ms,
            min_accuracy=min_accuracy,
        )
        self.space = Space(spec, tuple(dict.fromkeys((spec.width,) if widths is None else widths)))
        if not self.space.widths:
            raise ValueError("widths is empty; give at least one, or None for the spec's own")
        if patience < 0:
            raise ValueError(f"patience is {patience}; it must be at least 0")
        if max_trials is not None and max_trials < 1:
            raise ValueError(f"max_trials is {max_trials}; it must be at least 1, or None")
        if isinstance(objective, str):
            objective = keras_tuner.Objective(objective, "max")
        if objective.direction != "max":
            raise ValueError(
                f"the objective {objective.name!r} has direction {objective.direction!r}; the walk needs max"
            )
        if self.space.count() > NETS_MOST:
            raise ValueError(
                f"these stages and widths make {self.space.count():,} nets; at most {NETS_MOST:,} can be held, use fewer"
            )
        check_budget(self.space, self.requirement)
        super().__init__(
            objective=objective,
            max_trials=max_trials,
            hyperparameters=search_space(spec, self.space.widths),
            seed=1,
        )
        self.seed = self._seed_state = 0 if seed is None else seed  # the base class takes 0 for none
        self.patience = patience
        self.dead_seconds = dead_seconds
        self.costs = MeasuredCosts(self.requirement.limits)
        self.failure: BaseException | None = None
        self.verbose = 0
        self._seen: dict[str, float] = {}  # trial id or tuner id -> when it was last heard of
        self._memory: dict = {}
        model(self.space, self._memory)  # so that no proposal waits for it
        self._reasons: dict[ModelSpec, str | None] = {}
        self.defers = False  # whether `measure_wanted` is called, rather than measuring within a proposal
        self._wanted: ModelSpec | None = None

    # The walk

    def walk(self) -> Walk:
        """The walk over the trials that have ended: what is proposed, best, rejected, and why."""
        return walk(
            self.space,
            self.requirement,
            self.results(),
            excess=self._excess,
            patience=self.patience,
            seed=self.seed,
            most=self.max_trials,
            memory=self._memory,
        )

    def stage_effects(self) -> list[list[float]]:
        """How another level in one stage alone would change the best net's accuracy, in points (`refine.stage_effects`)."""
        return stage_effects(self.space, self.results(), self.walk().best, self._memory)

    def results(self) -> dict[ModelSpec, Result]:
        """What came of each net whose trial has ended."""
        ended = (TrialStatus.COMPLETED, TrialStatus.FAILED)
        trials = [trial for trial in self.trials.values() if trial.status in ended]
        return {self._spec(trial): result_of(trial, self.objective.name) for trial in trials}

    def _spec(self, trial) -> ModelSpec:
        return spec_of(self.space, trial.hyperparameters.values)

    def _excess(self, spec):
        if spec not in self._reasons:
            reason = self.requirement.excess({"macs": macs(spec)})
            if reason is None:
                if self.defers and not self.costs.has(spec):
                    self._wanted = spec
                    raise _Unmeasured
                reason = self.requirement.excess(self.costs.of(spec))
            self._reasons[spec] = reason
        return self._reasons[spec]

    def measure_wanted(self) -> None:
        """Measure the net that a proposal waits for, if one does. Holds no lock: it takes seconds, and workers call."""
        spec, self._wanted = self._wanted, None
        if spec is not None and self.failure is None:
            try:
                self.costs.of(spec)
            except Exception as error:
                self.failure = error

    def populate_space(self, trial_id: str) -> dict:
        """The next net of the walk; IDLE while its round is being trained or costs measured, STOPPED at the end."""
        try:
            state = self.walk()
            taken = {self._spec(trial) for trial in self.trials.values()}
            left = [proposal for proposal in state.pending if proposal.spec not in taken]
            if left:
                return {"status": TrialStatus.RUNNING, "values": self._values(left[0])}
            if state.pending:
                return {"status": TrialStatus.IDLE}
            if not state.proposals:
                self.failure = ValueError(_nothing_fits(state, self.requirement))
        except _Unmeasured:
            return {"status": TrialStatus.IDLE}
        except Exception as error:
            self.failure = error
        return {"status": TrialStatus.STOPPED}

    def _values(self, proposal: Proposal) -> dict:
        parent = ""
        for trial in self.trials.values():
            if proposal.parent is not None and self._spec(trial) == proposal.parent:
                parent = trial.trial_id
        return values_of(self.space, proposal.spec) | {
            PARENT: parent,
            REASON: proposal.reason,
            ROUND: proposal.round,
            THRESHOLD: " ".join(f"{value:g}" for value in proposal.threshold),
        }

    # Trials

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """A trial for a worker; the trials of workers that went silent first."""
        self._seen[tuner_id] = time.monotonic()
        self.release_dead()
        if self.failure is None and not Path(self._get_oracle_fname()).exists():
            self.save()  # before the first trial's file, so that a kill between the two loses nothing
        if self.failure is not None:
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING:
            self._seen[trial.trial_id] = time.monotonic()
        return trial

    @keras_tuner.synchronized
    def get_trial(self, trial_id: str) -> Trial:
        """A trial by its id; asking says that its worker is alive. One that is not known is STOPPED."""
        if trial_id not in self.trials:
            return self._unknown(trial_id)
        self._seen[trial_id] = time.monotonic()
        return super().get_trial(trial_id)

    def _unknown(self, trial_id):
        """For a worker that is left over from another search: an exception would leave the lock held."""
        return Trial(self.get_space(), trial_id=trial_id, status=TrialStatus.STOPPED)

    @keras_tuner.synchronized
    def release_dead(self) -> None:
        """Give the trials of workers that have been silent for too long to the next that asks."""
        now = time.monotonic()
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if now - self._seen.get(trial.trial_id, now) > self.dead_seconds:
                del self.ongoing_trials[tuner_id]
                self._retry_queue.append(trial.trial_id)
                self.save()
        for tuner_id in self.tuner_ids - self.ongoing_trials.keys():
            if now - self._seen.get(tuner_id, now) > self.dead_seconds:
                self.tuner_ids.discard(tuner_id)

    @keras_tuner.synchronized
    def is_done(self) -> bool:
        """Whether no worker is at a trial or waits for one."""
        return not self.ongoing_trials and not self.tuner_ids

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> Trial:
        """Take the metrics of a trial, in the place of any from before a kill."""
        trial = self.trials.get(trial_id) or self._unknown(trial_id)
        if trial.status != TrialStatus.RUNNING:
            return trial
        if self.objective.name not in metrics:
            self.failure = ValueError(f"trial {trial_id} gave no {self.objective.name}, but {', '.join(metrics)}")
            return trial
        trial.metrics = type(trial.metrics)()
        return super().update_trial(trial_id, dict(metrics), step)

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """End a trial once; one that crashed (INVALID) stays to be done and ends the search."""
        known = self.trials.get(trial.trial_id)
        if known is None:
            return
        if trial.status == TrialStatus.COMPLETED and not known.metrics.exists(self.objective.name):
            trial.status = TrialStatus.INVALID
        if trial.trial_id in self.end_order:
            self._pop_ongoing(trial.trial_id)  # its worker had been taken for dead, and another did it
            return
        if trial.status == TrialStatus.INVALID:
            if self.failure is None:
                self.failure = RuntimeError(f"trial {trial.trial_id} crashed on its worker; its error is there")
            self.trials[trial.trial_id].status = TrialStatus.RUNNING
            self._retry_queue.append(trial.trial_id)
            self._pop_ongoing(trial.trial_id)
            self.save()
            return
        super().end_trial(trial)

    def _pop_ongoing(self, trial_id):
        for tuner_id in [t for t, ongoing in self.ongoing_trials.items() if ongoing.trial_id == trial_id]:
            del self.ongoing_trials[tuner_id]

    @keras_tuner.synchronized
    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """Trials as the walk ranks their nets, its answer first: with a floor not the most accurate; none given up."""
        trials = {self._spec(trial): trial for trial in self.trials.values()}
        return [trials[spec] for spec in ranking(self.requirement, self.results(), self.seed)[:num_trials]]

    def score_trial(self, trial: Trial) -> None:
        """The objective; a net that was given up ranks behind every finished one."""
        result = result_of(trial, self.objective.name)
        trial.score = result.accuracy - result.pruned
        trial.best_step = 0

    def _check_consecutive_failures(self):
        last = [self.trials[trial_id] for trial_id in self.end_order[-self.max_consecutive_failed_trials :]]
        failed = [trial for trial in last if trial.status == TrialStatus.FAILED]
        if len(failed) == self.max_consecutive_failed_trials:
            message = (failed[-1].message or "").strip().rpartition("\n")[2]
            self.failure = RuntimeError(f"{len(failed)} trials in a row failed, the last of them: {message}")

    # State

    def get_state(self) -> dict:
        """All that a resumed search needs besides the trials' own files."""
        state = super().get_state()
        state["walk"] = self.identity()
        state["values"] = {trial_id: trial.hyperparameters.values for trial_id, trial in self.trials.items()}
        return state

    def set_state(self, state: dict) -> None:
        """Take a saved state.

        Raises:
            ValueError: it is of another search; every difference is named.
        """
        there, now = state["walk"], json.loads(json.dumps(self.identity()))
        changed = [f"{k} is {there.get(k)} there, {v} now" for k, v in now.items() if there.get(k) != v]
        if changed:
            raise ValueError(
                f"{self._project_dir} holds another search ({'; '.join(changed)}); give the same arguments or another folder"
            )
        super().set_state(state)

    def identity(self) -> dict:
        """What makes a search the same one: space, requirement, objective, seed, patience."""
        what = identity_of(self.space, self.requirement, self.objective.name)
        return what | {"seed": self.seed, "patience": self.patience}

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
        """Go on from the project's folder: what had not ended is done again, nothing else is.

        Where oracle.json is lost the trials' own files say all that the walk needs.

        Raises:
            ValueError: a file is damaged, or the folder holds another search.
        """
        path = Path(self._get_oracle_fname())
        try:
            state = json.loads(path.read_text()) if path.exists() else self.get_state()
            values = state["values"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); delete it, the trials' files have the same") from None
        for file in sorted(path.parent.glob("trial_*/trial.json")):
            remove_asides(file.parent)
            trial_id = file.parent.name.removeprefix("trial_")
            try:
                trial = Trial.load(str(file))
                spec_of(self.space, trial.hyperparameters.values)
            except Exception as error:
                if trial_id not in values:
                    raise ValueError(f"{file} is damaged ({error}); delete the folder {file.parent}") from None
                warnings.warn(f"{file} is damaged ({error}); its trial is done again", RuntimeWarning, stacklevel=2)
                continue
            self.trials[trial_id] = trial
        for trial_id in values.keys() - self.trials.keys():
            hyperparameters = self.get_space()
            hyperparameters.values = values[trial_id]
            self.trials[trial_id] = Trial(hyperparameters, trial_id=trial_id)
        self.trials = dict(sorted(self.trials.items()))
        ended = [i for i, t in self.trials.items() if t.status in (TrialStatus.COMPLETED, TrialStatus.FAILED)]
        ongoing = {tuner_id: i for tuner_id, i in state["ongoing_trials"].items() if i not in ended}
        state["ongoing_trials"] = ongoing  # a worker that is alive, or is started again, goes on with it
        self.set_state(state)
        self._seen = dict.fromkeys(ongoing.values(), time.monotonic())
        left = self.trials.keys() - ended - set(ongoing.values())
        self._retry_queue = sorted(left, reverse=True)
        self.end_order = [i for i in self.end_order if i in ended]
        self.end_order += [i for i in ended if i not in self.end_order]
        self.start_order += [i for i in self.trials if i not in self.start_order]

    def _set_project_dir(self, directory, project_name):
        super()._set_project_dir(directory, project_name)
        self.costs.open(Path(self._project_dir))


def identity_of(space: Space, requirement: Requirement | None, objective: str) -> dict:
    """What any search, a stock oracle's too, must have in common with the one whose folder it goes on in."""
    spec = json.loads(space.spec.to_json())
    return {
        "input_shape": spec["input_shape"],
        "num_classes": spec["num_classes"],
        "stages": spec["stages"],
        "widths": list(space.widths),
        **{f"max_{cost}": None if requirement is None else requirement.limits.get(cost) for cost in COSTS},
        "min_accuracy": None if requirement is None else requirement.min_accuracy,
        "objective": objective,
    }


def _nothing_fits(state: Walk, requirement: Requirement) -> str:
    uniform = [(spec, why) for spec, why in state.rejected.items() if isinstance(spec.level, int)]
    reasons = "; ".join(f"{spec.name} {reason}" for spec, reason in uniform[-2:])
    return (
        f"no uniform level fits ({reasons}), nor does any of the {len(state.rejected) - len(uniform)} others looked at; "
        f"raise {', '.join('max_' + cost for cost in requirement.limits)}"
    )
