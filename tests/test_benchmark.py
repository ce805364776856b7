"""The benchmark of exported models: every frame is counted once, ratios are of the same round."""

import json
import statistics

import pytest

from bridge import benchmark, to_openvino
from drawn_models import write_random_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = write_random_checkpoint(folder / "checkpoint")
    to_openvino.main([str(checkpoint), "--output", str(folder)])
    return folder


@pytest.mark.slow
def test_figures_of_two_models(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "PACED_SECONDS", 1.0)
    models = [str(exported / "model.xml"), str(exported / "model.onnx")]
    flags = ["--rounds", "2", "--seconds", "0.05", "--output", str(tmp_path / "figures.json")]
    benchmark.main([*models, *flags])
    table = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["model"] for row in figures["models"]] == models
    for row in figures["models"]:
        assert row["model"] in table
        assert row["frames_per_second"] > 0
        assert row["latency_ms"]["p50"] > 0
        # One second at 30 frames/s, each of them either dropped or computed.
        assert row["paced_frames"] == 30
        assert 5 < row["runtime_nodes"] <= 60


def test_ratios_are_of_the_same_round(exported, monkeypatch):
    # The machine is twice as slow in the second round; the second model is slower in both.
    rates = iter([100.0, 50.0, 50.0, 20.0, 100.0, 60.0])

    def measure(model, frames, seconds):
        warm_up = seconds == 0.01
        return 0.0 if warm_up else next(rates)

    monkeypatch.setattr(benchmark, "measure_throughput", measure)
    monkeypatch.setattr(benchmark, "WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "PACED_SECONDS", 0.1)
    models = [exported / "model.xml", exported / "model.onnx"]
    first, second = benchmark.benchmark(models, rounds=3, seconds=0.02)["models"]
    assert (first["frames_per_second"], second["frames_per_second"]) == (100.0, 50.0)
    assert second["ratio"] == 0.5
    assert (second["ratio_lowest"], second["ratio_highest"]) == (0.4, 0.6)


def test_a_camera_that_is_too_fast_loses_frames(exported):
    model = benchmark.InstrumentModel(
        exported / "model.xml", hint="THROUGHPUT", precision="f32", device="CPU"
    )
    started = []

    def one_in_three(index):
        if index == 30:
            return False
        if index % 3:
            return None
        started.append(index)
        return True

    frames = benchmark.random_frames(model)
    latencies = model.run_queue(frames, one_in_three)
    assert len(latencies) == len(started) == 10
    assert min(latencies) > 0
    dropped, latencies = benchmark.measure_paced(model, frames, 0.05, 1e6)
    assert dropped + len(latencies) == 50_000
    assert dropped > 0
    assert statistics.median(latencies) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nowhere.xml"], "nowhere.xml: does not exist", id="missing"),
        pytest.param(["README.md"], "expected a model as .xml or .onnx", id="suffix"),
        pytest.param(["MODEL", "--rounds", "0"], "--rounds must be 1 or more", id="rounds"),
        pytest.param(["MODEL", "--frame-rate", "nan"], "--frame-rate must be", id="rate"),
        pytest.param(["MODEL", "--output", "nowhere/x.json"], "nowhere is no folder", id="output"),
        pytest.param(["BATCH"], "export with --batch 1", id="batch"),
        pytest.param(["BROKEN"], "OpenVINO cannot run it on CPU", id="broken"),
        pytest.param(["MODEL", "--device", "MYRIAD"], "cannot run it on MYRIAD", id="device"),
    ],
)
def test_what_cannot_be_timed_is_refused(exported, tmp_path, capsys, arguments, message):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    names = {"MODEL": str(exported / "model.xml"), "BROKEN": str(broken)}
    if "BATCH" in arguments:
        flags = ["--output", str(tmp_path / "batch"), "--batch", "2"]
        to_openvino.main([str(exported / "checkpoint"), *flags])
        names["BATCH"] = str(tmp_path / "batch" / "model.xml")
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([names.get(argument, argument) for argument in arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
