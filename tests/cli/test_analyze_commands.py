"""`factorizenet analyze` and `study`."""

import sys
from types import SimpleNamespace

import factorizenet_tf as fnet
from factorizenet_tf.analysis.study import LevelChoice

SMALL = ["--dataset", "digits", "--size", 16, "--channels", 1, "--width", 8, "--stages", "1x2", "--quiet"]


def test_analyze_writes_report_tables_and_figures(prints_json, run, tmp_path, monkeypatch):
    drawn = []  # they have tests of their own
    monkeypatch.setattr("factorizenet_tf.plots.write_figures", lambda analysis, path: drawn.append(path))
    monkeypatch.setattr("factorizenet_tf.analysis.report.report_html", lambda analysis, factorization: "the page")
    paths = [tmp_path / name for name in ("figures", "report.html", "tables")]
    options = ["--figures", paths[0], "--out", paths[1], "--save", paths[2], "--quiet"]
    images = ["--calibration-images", 32, "--evaluation-images", 40, "--weight-bits", 4]
    rows = prints_json("analyze", run.folder, *options, *images)
    assert [row["precision"] for row in rows][:2] == ["float", "per_channel W4A8"]
    assert {row["images"] for row in rows} == {40}
    assert rows[0]["decrease_points"] == 0
    assert drawn == paths[:1]
    assert paths[1].read_text() == "the page"
    assert fnet.load_analysis(paths[2]).nets["calibration_images"].tolist() == [32]


def test_analyze_says_what_is_wrong_before_it_measures(fails, run, own_net, tmp_path):
    own_net().save(tmp_path / "mine.keras")
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "photo.png").touch()
    for option in (["--out", tmp_path / "report.html"], ["--save", tmp_path], ["--figures", tmp_path]):
        assert "is there already" in fails("analyze", run.folder, *option)
    table = ["--factorization", tmp_path / "report.html"]
    assert "without --out there is no report" in fails("analyze", run.folder, *table)
    (tmp_path / "empty.csv").touch()
    message = fails("analyze", run.folder, "--out", tmp_path / "new.html", "--factorization", tmp_path / "empty.csv")
    assert "empty.csv is no table" in message
    assert "--weight-bits is 9" in fails("analyze", run.folder, "--weight-bits", 9, "--quiet")
    assert "give --dataset" in fails("analyze", tmp_path / "mine.keras", "--quiet")


def test_study_takes_levels_and_limits_and_prints_the_answers(prints_json, succeeds, tmp_path, monkeypatch):
    asked = {}

    def study(data, specs, **options):
        asked.update(options, levels=[spec.level for spec in specs])
        row = {"name": "fnet-l3", "macs": 1_000_000, "size_bytes": 20_000, "latency_ms": 0.5, "test_tflite": 0.9}
        return SimpleNamespace(rows=[row], answers=(LevelChoice("at most 100 M MACs", "fnet-l3", "the best"),))

    monkeypatch.setattr("factorizenet_tf.analysis.study.study", study)
    command = ["study", *SMALL, "--levels", "3,0", "--epochs", 2, "--max-macs", "100M", "--out", tmp_path / "study"]
    assert prints_json(*command)["answers"][0]["name"] == "fnet-l3"
    assert (asked["levels"], asked["recipe"].epochs, asked["requirements"]) == ([0, 3], 2, {"max_macs": 100_000_000})
    table = succeeds(*command)
    assert all(text in table for text in ("1,000,000", "90.00 %", "at most 100 M MACs: fnet-l3: the best"))


def test_a_missing_extra_is_found_before_the_work(fails, run, tmp_path, monkeypatch):
    monkeypatch.setattr("factorizenet_tf.analysis.analyze.compare_levels", None)  # nothing is measured
    for module, options in (
        ("altair", ["--out", tmp_path / "report.html"]),
        ("vl_convert", ["--figures", tmp_path / "figures"]),
        ("pyarrow", ["--save", tmp_path / "tables"]),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)  # as if it were not installed
            message = fails("analyze", run.folder, "--quiet", *options, code=1)
            assert f"needs {module}: pip install 'factorizenet_tf[report]'" in message
    monkeypatch.setitem(sys.modules, "altair", None)
    assert "needs altair" in fails("study", *SMALL, "--out", tmp_path / "study", code=1)
