import json

import pytest

from factorizenet_tf.benchmarks.load import _sources
from factorizenet_tf.benchmarks.server import Load, median_load, running_server
from factorizenet_tf.cli import main

pytest.importorskip("kserve", reason="the extra serve is not installed")


@pytest.mark.slow
def test_the_command_sets_int8_against_float_bare_and_served(run, capsys):
    arguments = ["loadtest", str(run.folder), "--seconds", "0.5", "--clients", "2", "--quiet", "--json"]
    assert main(arguments) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    bare = {
        name: rows[f"{name}, ms an image"]["value"] for name in ("int8 LiteRT", "float SavedModel", "int8 SavedModel")
    }
    ratio = rows["int8 LiteRT against the float SavedModel"]
    assert ratio["value"] == pytest.approx(bare["float SavedModel"] / bare["int8 LiteRT"], rel=0.1)
    assert (ratio["bound"], ratio["holds"]) == (">= 4", ratio["value"] >= 4)
    assert {"float SavedModel against one saved by unchanged tf_keras, batch 64"} <= set(rows)
    for kind in ("1 client, 1 image", "2 clients, 1 image", "2 clients, 16 images"):
        for model in ("int8", "float"):
            found = {
                k: rows[f"served {model}, {kind} a request: {k}"]["value"] for k in ("images/s", "p50 ms", "p99 ms")
            }
            assert found["images/s"] > 0
            assert 0 < found["p50 ms"] <= found["p99 ms"]
            assert rows[f"served {model}, {kind} a request: failures"]["value"] == 0


def test_a_name_of_the_zoo_stands_for_its_net_in_both_precisions():
    both = {"float": "fnet-l2-float", "int8": "fnet-l2-int8"}
    assert _sources("fnet-l2-int8") == _sources("fnet-l2-float") == both


def test_medians_are_over_rounds_and_failures_are_summed():
    loads = [Load(2, 1, rate, p50, p50 * 3, 1) for rate, p50 in ((10.0, 3.0), (30.0, 1.0), (20.0, 2.0))]
    assert median_load(loads) == Load(2, 1, 20.0, 2.0, 6.0, 3)


def test_a_server_that_does_not_start_is_an_error_with_its_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"the server did not start: .*none"), running_server([tmp_path / "none"]):
        pass


def test_a_source_without_float_weights_and_no_time_are_refused(run, tmp_path, capsys):
    assert main(["loadtest", str(tmp_path)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert main(["loadtest", str(run.folder), "--seconds", "0"]) == 2
    assert "both must be above 0" in capsys.readouterr().err
