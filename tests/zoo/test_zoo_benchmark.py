from factorizenet_tf.benchmarks.zoo import measure_zoo


def test_the_zoo_is_timed_in_fresh_processes_and_verified(zoo):
    rows = measure_zoo(zoo_dir=zoo, verbose=False)
    assert [row["what"].split("(")[0] for row in rows[:3]] == ["zoo.names", "zoo.list", "zoo.load"]
    assert all(row["value"] > 0 for row in rows if row["what"].startswith(("zoo.load", "verification")))
    (imported,) = [row for row in rows if row["what"] == "TensorFlow imported by these"]
    assert imported["holds"]
    assert rows[-1]["what"].startswith("verification of 1 int8 models, 1 of them on their whole test split")


def test_an_empty_zoo_has_nothing_to_time(tmp_path):
    (tmp_path / "index.json").write_text('{"format": 1, "models": []}')
    assert measure_zoo(zoo_dir=tmp_path, verbose=False) == []
