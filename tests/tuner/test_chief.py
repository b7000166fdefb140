"""The chief and its workers, as real processes on loopback, with a formula for a training."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_progressive import SPACE

from factorizenet_tf.tuner import FactorizationOracle, chief, search_space

COMMAND = """
import json, os, sys, time
from pathlib import Path
import factorizenet_tf as fnet
from factorizenet_tf.runs import dataset_fingerprint
from factorizenet_tf.spec import spec_from_json
sys.path.insert(0, sys.argv[3])
from test_progressive import formula

class Formula(fnet.tuner.FactorizationTuner):
    def run_trial(self, trial):
        from factorizenet_tf.tuner.oracle import spec_of
        spec = spec_of(self.space, trial.hyperparameters.values)
        folder = Path(self.project_dir)
        with open(folder / "calls.txt", "a") as file:
            file.write(f"{self.tuner_id} {trial.trial_id} {spec.name}\\n")
        if "TOGETHER" in os.environ:  # so that each does one, whichever comes first
            (folder / f"{self.tuner_id}.ready").touch()
            while len(list(folder.glob("*.ready"))) < int(os.environ["TOGETHER"]):
                time.sleep(0.05)
        if os.environ.get("BUG") == self.tuner_id:
            raise ZeroDivisionError("a bug of the user's")
        if os.environ.get("HANG") == self.tuner_id and not (folder / "hung").exists():
            (folder / "hung").write_text("")
            time.sleep(1000)
        time.sleep(float(os.environ.get("SLEEP", "0.05")))
        return {"val_int8_accuracy": formula(spec)}

spec = spec_from_json(sys.argv[1])
data = fnet.load_dataset("digits", input_shape=spec.input_shape)
if "STOCK" in os.environ:
    import keras_tuner

    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_int8_accuracy", "max"),
        max_trials=6,
        seed=0,
        hyperparameters=fnet.tuner.search_space(spec),
    )
    requirement = fnet.tuner.Requirement(max_macs=1_200_000)
    tuner = Formula(oracle, data, spec=spec, requirement=requirement, directory=sys.argv[2])
else:
    oracle = fnet.tuner.FactorizationOracle(spec, max_macs=1_200_000, dead_seconds=8)
    tuner = Formula(oracle, data, directory=sys.argv[2])
if "LATE" in os.environ:
    Path(sys.argv[2], "built").touch()
    while not Path(sys.argv[2], "go").exists():
        time.sleep(0.05)
tuner.search()
best = None if "STOCK" in os.environ else oracle.walk().best
print(tuner.tuner_id, "ended", best and best.name, time.process_time() if os.environ.get("CPU") else "")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    def __init__(self, folder):
        self.folder, self.port, self.processes = folder, free_port(), {}

    def start(self, name, **environment):
        variables = (
            {}
            if name == "alone"
            else {
                "KERASTUNER_TUNER_ID": name,
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(self.port),
            }
        )
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            COMMAND,
            SPACE.spec.to_json(),
            self.folder,
            Path(__file__).parent,
        ]
        self.processes[name] = subprocess.Popen(
            command,
            env=os.environ | variables | environment | {"CPU": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, name, code=0, seconds=150):
        out, err = self.processes[name].communicate(timeout=seconds)
        assert self.processes[name].returncode == code, err[-3000:]
        return out.strip(), err

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].communicate()

    def calls(self):
        path = self.folder / "search" / "calls.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    def state(self):
        """(trial id -> net and score, ids in order of their end)"""
        oracle = FactorizationOracle(SPACE.spec, max_macs=1_200_000, dead_seconds=8)
        oracle._set_project_dir(str(self.folder), "search")
        oracle.reload()
        return oracle


@pytest.fixture
def cluster(tmp_path):
    new = Cluster(tmp_path / "cluster")
    yield new
    for process in new.processes.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The walk of one process."""
    from test_oracle import make, run_to_the_end

    oracle = make(tmp_path_factory.mktemp("alone"))
    run_to_the_end(oracle)
    return oracle.walk()


def same(walk, other):
    return walk.best == other.best and [p.spec for p in walk.proposals] == [p.spec for p in other.proposals]


@pytest.mark.slow
def test_a_chief_and_two_workers_find_what_one_process_does_and_end_by_themselves(cluster, alone):
    cluster.start("chief")
    for name in ("worker0", "worker1"):
        cluster.start(name, TOGETHER="2")
    printed = {name: cluster.end(name)[0] for name in ("worker0", "worker1", "chief")}
    assert printed["chief"].startswith(f"chief ended {alone.best.name}")
    calls = cluster.calls()
    assert {name for name, _, _ in calls} == {"worker0", "worker1"}
    assert sorted(net for _, _, net in calls) == sorted(p.spec.name for p in alone.proposals)
    oracle = cluster.state()
    assert same(oracle.walk(), alone)
    assert sorted(oracle.end_order) == sorted(oracle.trials)


@pytest.mark.slow
def test_a_stock_oracle_has_a_chief_and_workers_too(cluster):
    for name in ("chief", "worker0", "worker1"):
        cluster.start(name, STOCK="1", **({} if name == "chief" else {"TOGETHER": "2"}))
    for name in ("worker0", "worker1", "chief"):
        assert f"{name} ended" in cluster.end(name)[0]
    calls = cluster.calls()
    assert {name for name, _, _ in calls} == {"worker0", "worker1"}
    trials = [json.loads(file.read_text()) for file in cluster.folder.glob("search/trial_*/trial.json")]
    assert sorted(trial for _, trial, _ in calls) == sorted(trial["trial_id"] for trial in trials)
    assert len(trials) == 6
    assert {trial["status"] for trial in trials} == {"COMPLETED"}
    assert len({net for _, _, net in calls}) == 6


@pytest.mark.slow
def test_a_worker_that_asks_when_all_is_done_ends_too(cluster):
    cluster.start("worker1", LATE="1")
    cluster.wait((cluster.folder / "built").exists)
    cluster.start("chief")
    cluster.start("worker0")
    cluster.end("worker0")
    cluster.end("chief")
    (cluster.folder / "go").touch()
    assert cluster.end("worker1", seconds=60)[0].startswith("worker1 ended")
    assert {name for name, _, _ in cluster.calls()} == {"worker0"}


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_done_again_and_a_restarted_chief_goes_on(cluster, alone):
    cluster.start("chief", SLEEP="1")
    cluster.start("worker0", HANG="worker0")
    cluster.wait(lambda: (cluster.folder / "search" / "hung").exists())
    cluster.start("worker1", SLEEP="1")
    cluster.wait(lambda: len(cluster.calls()) >= 2)
    cluster.kill("worker0")
    cluster.kill("chief")
    time.sleep(1)
    cluster.start("chief")
    printed = cluster.end("chief")[0]
    cluster.end("worker1")
    assert printed.startswith(f"chief ended {alone.best.name}")
    (lost,) = [trial for name, trial, _ in cluster.calls() if name == "worker0"]
    assert [name for name, trial, _ in cluster.calls() if trial == lost] == ["worker0", "worker1"]
    oracle = cluster.state()
    assert same(oracle.walk(), alone)
    assert sorted(oracle.end_order) == sorted(oracle.trials)
    assert all(trial.status == "COMPLETED" for trial in oracle.trials.values())


@pytest.mark.slow
def test_an_idle_worker_sleeps_and_a_bug_on_one_ends_all(cluster):
    cluster.start("chief")
    cluster.start("worker0", SLEEP="6")
    cluster.wait(lambda: cluster.calls())
    cluster.start("worker1", BUG="worker1")
    _, err = cluster.end("worker1", code=1)
    assert "ZeroDivisionError: a bug of the user's" in err
    cluster.end("worker0")
    _, err = cluster.end("chief", code=1)
    assert "RuntimeError: trial" in err
    assert "crashed on its worker" in err


def test_a_worker_does_not_wait_for_ever_for_a_chief(monkeypatch):
    from keras_tuner.src.distribute.oracle_client import OracleClient

    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(free_port()))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    client = chief.patient_client(OracleClient(None), seconds=0.2)
    with pytest.raises(ConnectionError, match=r"the chief at 127\.0\.0\.1:\d+ did not answer for 0\.2 s"):
        client.create_trial("worker0")


def test_only_an_end_since_the_worker_began_is_an_end(monkeypatch, tmp_path):
    from keras_tuner.src.distribute.oracle_client import OracleClient

    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(free_port()))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    chief.say_ended(tmp_path)
    client = chief.patient_client(OracleClient(None), seconds=0.2, has_ended=chief.end_watch(tmp_path))
    with pytest.raises(ConnectionError, match="start it again"):
        client.create_trial("worker0")
    client = chief.patient_client(OracleClient(None), seconds=60, has_ended=chief.end_watch(tmp_path))
    chief.say_ended(tmp_path)
    with pytest.raises(chief.SearchEndedError, match=r"the search of the chief at 127\.0\.0\.1:\d+ has ended"):
        client.create_trial("worker0")


def test_a_chief_that_measures_answers_its_workers_meanwhile(monkeypatch, tmp_path):
    import threading

    from keras_tuner.src.distribute.oracle_client import OracleClient

    from factorizenet_tf.tuner import space as measured_costs

    begun, go_on = threading.Event(), threading.Event()

    def measure(spec, wanted, labels=None):
        begun.set()
        assert go_on.wait(60)
        return {"latency_ms": 0.1}

    monkeypatch.setattr(measured_costs, "measure", measure)
    monkeypatch.setattr(chief, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(free_port()))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    oracle = FactorizationOracle(SPACE.spec, max_macs=1_200_000, max_latency_ms=0.5, max_trials=1)
    oracle._set_project_dir(str(tmp_path), "search")
    serving = threading.Thread(target=chief.serve, args=[oracle], daemon=True)
    serving.start()
    client = chief.patient_client(OracleClient(oracle), seconds=30)
    assert client.create_trial("worker0").status == "IDLE"
    assert begun.wait(30)
    assert client.create_trial("worker0").status == "IDLE"  # it is measuring, and answers
    assert client.get_trial("0000").status == "STOPPED"
    go_on.set()
    while (trial := client.create_trial("worker0")).status == "IDLE":
        time.sleep(0.05)
    client.update_trial(trial.trial_id, {"val_int8_accuracy": 0.5})
    trial.status = "COMPLETED"
    client.end_trial(trial)
    assert client.create_trial("worker0").status == "STOPPED"
    serving.join(30)
    assert not serving.is_alive()
    assert not oracle.defers


@pytest.fixture
def stock(tmp_path):
    """A stock oracle that ends at its first failed trial."""
    import keras_tuner

    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_int8_accuracy", "max"),
        max_trials=2,
        seed=0,
        hyperparameters=search_space(SPACE.spec),
        max_consecutive_failed_trials=1,
    )
    oracle.verbose = 0
    oracle._set_project_dir(str(tmp_path), "search")
    return oracle


def test_a_stock_oracle_that_raises_ends_its_chief_and_a_stray_worker_does_not(monkeypatch, stock):
    from concurrent import futures

    from keras_tuner.src.distribute.oracle_client import OracleClient

    from factorizenet_tf.tuner._keras_tuner import Trial

    monkeypatch.setattr(chief, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(free_port()))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    client = chief.patient_client(OracleClient(stock), seconds=30)
    with futures.ThreadPoolExecutor(1) as pool:
        serving = pool.submit(chief.serve_stock, stock)
        trial = client.create_trial("worker0")
        trial.status = "FAILED"
        stray = Trial(trial.hyperparameters, trial_id="of another search", status="COMPLETED")
        for call, argument in ((client.get_trial, stray.trial_id), (client.end_trial, stray)):
            with pytest.raises(ConnectionError, match=r"refused: .*of another search"):
                call(argument)
        time.sleep(0.5)
        assert serving.running()
        with pytest.raises(ConnectionError, match="refused: Exception calling application: Number of consecutive"):
            client.end_trial(trial)
        assert "Number of consecutive failures exceeded the limit of 1" in str(serving.result(30))
        serving = pool.submit(chief.serve_stock, stock)  # the lock is free
        stock.max_trials = 1
        stock.ongoing_trials.clear()
        assert client.create_trial("worker0").status == "STOPPED"
        assert serving.result(30) is None


def test_what_an_oracle_raised_at_its_chief_is_told_to_workers_as_the_end_and_raised(monkeypatch, stock, tmp_path):
    from factorizenet_tf.tuner import tuner as search_tuner

    monkeypatch.setattr(chief, "serve_stock", lambda oracle: ZeroDivisionError("a bug of the oracle's"))
    monkeypatch.setattr(search_tuner.FactorizationTuner, "project_dir", tmp_path)
    tuner = object.__new__(search_tuner.FactorizationTuner)
    tuner._own_oracle = stock
    has_ended = chief.end_watch(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a bug of the oracle's"):
        tuner._serve_workers()
    assert has_ended()


@pytest.mark.parametrize("serve", [chief.serve, chief.serve_stock])
def test_an_address_in_use_is_said_so(serve, monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(taken.getsockname()[1]))
        with pytest.raises(OSError, match="cannot listen on"):
            serve(FactorizationOracle(SPACE.spec, max_macs=1_200_000))


def test_two_chiefs_do_not_share_an_address(monkeypatch):
    from concurrent import futures

    import grpc

    other = grpc.server(futures.ThreadPoolExecutor(1))
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(other.add_insecure_port("127.0.0.1:0")))
    other.start()
    try:
        with pytest.raises(OSError, match="cannot listen on"):
            chief.serve(FactorizationOracle(SPACE.spec, max_macs=1_200_000))
    finally:
        other.stop(None).wait(10)


def test_a_chief_that_refuses_is_not_one_that_is_away(monkeypatch):
    from concurrent import futures

    import grpc
    from keras_tuner.src.distribute.oracle_client import OracleClient

    server = grpc.server(futures.ThreadPoolExecutor(1))  # without the oracle's service
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(server.add_insecure_port("127.0.0.1:0")))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    server.start()
    try:
        client = chief.patient_client(OracleClient(None), seconds=60)
        with pytest.raises(ConnectionError, match=r"the chief at 127\.0\.0\.1:\d+ refused: Method not found"):
            client.create_trial("worker0")
    finally:
        server.stop(None).wait(10)


def test_an_idle_answer_is_followed_by_a_sleep(monkeypatch, tmp_path):
    from factorizenet_tf.tuner import tuner as search_tuner
    from factorizenet_tf.tuner._keras_tuner import Trial

    class Oracle:
        answers = ["IDLE", "IDLE", "STOPPED"]  # noqa: RUF012 (used up)

        def create_trial(self, tuner_id):
            return Trial(None, trial_id="", status=self.answers.pop(0))

    slept = []
    monkeypatch.setattr(search_tuner.time, "sleep", slept.append)
    tuner = object.__new__(search_tuner.FactorizationTuner)
    tuner.oracle, tuner.tuner_id = Oracle(), "worker0"
    tuner._work()
    assert slept == [chief.POLL_SECONDS] * 2


def test_an_error_of_the_users_is_what_is_raised_though_the_chief_is_gone(monkeypatch):
    from factorizenet_tf.tuner import tuner as search_tuner
    from factorizenet_tf.tuner._keras_tuner import Trial

    class Oracle:
        def end_trial(self, trial):
            raise ConnectionError("the chief did not answer")

    def run_trial(trial):
        raise ZeroDivisionError("a bug of the user's")

    tuner = object.__new__(search_tuner.FactorizationTuner)
    tuner.oracle, tuner.run_trial = Oracle(), run_trial
    monkeypatch.setattr(search_tuner.FactorizationTuner, "_is_worker", lambda self: False)
    trial = Trial(None, trial_id="0000", status="RUNNING")
    with pytest.raises(ZeroDivisionError, match="a bug of the user's"):
        tuner._run_and_end(trial)
    assert trial.status == "INVALID"
