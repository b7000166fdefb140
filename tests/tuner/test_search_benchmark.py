from factorizenet_tf.benchmarks import search as search_benchmark
from factorizenet_tf.benchmarks.search import STAGES, WIDTHS, measure_search
from factorizenet_tf.spec import ModelSpec
from factorizenet_tf.tuner.space import Space


def test_the_space_has_ten_thousand_nets():
    assert sum(1 for _ in Space(ModelSpec(0, stages=STAGES), WIDTHS).nets()) >= 10_000


def test_start_and_proposals_are_timed_against_their_bounds(monkeypatch):
    started = []
    monkeypatch.setattr(search_benchmark, "_start", lambda: started.append(True))
    rows = measure_search(widths=(8,), verbose=False)
    assert [row["bound"] for row in rows] == ["<= 10", "<= 10", "<= 20", "<= 20"]
    assert started == [True]
    assert 0 < rows[2]["value"] <= rows[3]["value"]
    assert rows[2]["what"].startswith("720 nets, ")
    assert all(row["holds"] == (row["value"] <= float(row["bound"][3:])) for row in rows)
