"""`yogo-jax counts` as users type it."""

import json
import sys

import numpy as np
import pytest

from count_samples import CONFUSION, metrics, refusal, run, run_array, write
from runs import run_command
from yogo_jax.counting.compensation import read_line
from yogo_jax.counting.files import INSTRUMENT_CLASSES


COUNTS = [20_000, 50, 5, 2, 1, 20, 100]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in: a validation, an array of a run, a counts file."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "metrics.json", metrics())
    total = dict(zip(INSTRUMENT_CLASSES, COUNTS, strict=True))
    write(tmp_path / "counts.json", {"total": total, "frames": 400})
    np.save("run.npy", run_array(np.repeat(np.arange(7), COUNTS), frames=400))
    return tmp_path


def test_an_array_and_its_counts_give_the_same_numbers(folder):
    for file in ("run.npy", "counts.json"):
        run(f"estimate {file} --validation metrics.json --output {file}.out")
    one, other = (
        json.loads((folder / f"{file}.out" / "counts.json").read_text())
        for file in ("run.npy", "counts.json")
    )
    assert one.pop("notes") != other.pop("notes")
    assert one == other
    assert one["raw_counts"]["ring"]["estimate"] == 50
    # By hand: what each class is called, solved for what there was.
    confusion = np.array(CONFUSION, float)
    shares = confusion[:7, :7] / confusion[:7].sum(1, keepdims=True)
    true = np.linalg.solve(shares.T, np.array(COUNTS) - 0.8 * confusion[7, :7])
    assert list(one["corrected_before_cut"].values()) == pytest.approx(true.tolist())
    parasites = true[1:4].sum()
    corrected = one["corrected"]
    assert one["corrected_counts"]["parasites"]["estimate"] == pytest.approx(parasites)
    assert corrected["parasitemia_percent"]["estimate"] == pytest.approx(
        100 * parasites / true[:4].sum()
    )
    for limit in ("estimate", "lower", "upper"):
        assert corrected["parasites_per_ul"][limit] == pytest.approx(
            5e4 * corrected["parasitemia_percent"][limit]
        )


def test_the_table_and_the_csv_have_the_numbers(folder, capsys):
    run("estimate counts.json --validation metrics.json --output out --limit-cells 1e4 1e6")
    shown = capsys.readouterr().out
    values = json.loads((folder / "out" / "counts.json").read_text())
    for name in (*INSTRUMENT_CLASSES, "parasites", "red cells"):
        (line,) = [each for each in shown.splitlines()[:10] if each.startswith(f"{name}  ")]
        numbers = [
            values[key][name][limit]
            for key in ("raw_counts", "corrected_counts")
            for limit in ("estimate", "lower", "upper")
        ]
        assert [float(text) for text in line.split()[-6:]] == pytest.approx(
            numbers, rel=1e-3, abs=0.51
        )
    assert [each["cells"] for each in values["detection_limit"]] == [1e4, 1e6]
    table = (folder / "out" / "counts.csv").read_text().splitlines()
    assert table[0] == "quantity,class,estimate,lower,upper"
    assert len(table) == 1 + 2 * 9 + 2 * 2
    assert max(map(len, shown.splitlines()[:14])) <= 100


def test_nothing_counted_is_said_with_the_rule_of_three(folder, capsys):
    write(folder / "none.csv", ",".join(INSTRUMENT_CLASSES) + "\n5000,0,0,0,0,0,0\n")
    run("estimate none.csv")
    shown = capsys.readouterr().out
    assert "rule of three at most 3.0" in shown
    # 3.0 of 5,000 cells: 2996 per uL; two-sided 3.69 of 5,000.
    assert "2996 per uL" in shown
    assert "3688" in shown or "3689" in shown


def test_files_of_the_deskewer(folder, capsys):
    run("matrix metrics.json --model my-model-1 --output data_files")
    place = folder / "data_files" / "my-model-1"
    assert sorted(path.name for path in place.iterdir()) == [
        "my-model-1-cmatrix-mean.npy",
        "my-model-1-inv-cmatrix-std.npy",
    ]
    mean = np.load(place / "my-model-1-cmatrix-mean.npy")
    scatter = np.load(place / "my-model-1-inv-cmatrix-std.npy")
    assert mean.shape == scatter.shape == (7, 7)
    assert mean.dtype == scatter.dtype == np.float64
    assert mean[1, 0] == 48 / 800
    # As the corrector uses it: a row of counts times the inverse.
    true = np.array([1000.0, 20, 3, 1, 0, 2, 5])
    np.testing.assert_allclose(true @ mean @ np.linalg.inv(mean), true, atol=1e-9)
    first = scatter.tobytes()
    run("matrix metrics.json --model my-model-1 --output data_files --matched-only")
    np.testing.assert_allclose(np.load(place / "my-model-1-cmatrix-mean.npy").sum(1), 1)
    run("matrix metrics.json --model my-model-1 --output data_files")
    assert np.load(place / "my-model-1-inv-cmatrix-std.npy").tobytes() == first


def write_runs(folder) -> None:
    """Runs that find 40 % of the parasites of the reference, and 100 false ones per uL."""
    lines = ["run,reference_per_ul"]
    for index, reference in enumerate([0, 500, 1000, 2000, 4000]):
        red_cells = 50_000
        parasites = round((0.4 * reference + 100) / 5e6 * red_cells)
        array = run_array([0] * (red_cells - parasites) + [1] * parasites, confidences=0.97)
        np.save(folder / f"r{index}.npy", array)
        lines.append(f"r{index}.npy,{reference}")
    write(folder / "runs.csv", "\n".join(lines) + "\n")


def test_compensation_is_fitted_written_and_applied(folder, capsys):
    write_runs(folder)
    run("compensation runs.csv --model my-model-1 --output data_files")
    path = folder / "data_files/my-model-1/my-model-1-clinical-compensation-no-heatmaps.csv"
    line = read_line(path, 0.95)
    assert (line.m, line.b) == pytest.approx((0.4, 100))
    # All boxes have a probability of 0.97: above, no red cell is left to take a share of.
    assert "0.9725 to 1.0: a run has no red cell at this confidence" in capsys.readouterr().out
    threshold = "--min-class-confidence-threshold 0.95"
    run(f"estimate r3.npy --compensation {path} {threshold} --output out")
    values = json.loads((folder / "out" / "counts.json").read_text())
    assert values["raw"]["parasites_per_ul"]["estimate"] == pytest.approx(900)
    assert values["compensated"]["parasites_per_ul"]["estimate"] == pytest.approx(2000)
    assert values["compensation"]["line"] == "counted"


def test_a_file_of_the_other_line_raises_a_doubt(folder, capsys):
    write_runs(folder)
    run("compensation runs.csv --model m --output .")
    file = "m/m-clinical-compensation-no-heatmaps.csv --min-class-confidence-threshold 0.9"
    run(f"estimate r3.npy --compensation {file}")
    assert "other line" not in capsys.readouterr().out
    run(f"estimate r3.npy --compensation {file} --line reference")
    assert "As --line reference, m = 0.4 says" in capsys.readouterr().out


def test_names_of_compensation_files_and_the_other_line(folder):
    write_runs(folder)
    run("compensation runs.csv --model m --output . --kind cultured --heatmaps --line reference")
    line = read_line(folder / "m" / "m-cultured-compensation-with-heatmaps.csv", 0.8)
    assert (line.m, line.b) == pytest.approx((2.5, -250))
    run(
        "estimate r3.npy --compensation m/m-cultured-compensation-with-heatmaps.csv --output out "
        "--min-class-confidence-threshold 0.8 --line reference"
    )
    values = json.loads((folder / "out" / "counts.json").read_text())
    assert values["compensated"]["parasites_per_ul"]["estimate"] == pytest.approx(2000)


def test_coverage_prints_what_was_simulated(folder, capsys):
    run("coverage --validation metrics.json --samples 300 --parasites 0 20 --seed 4")
    lines = capsys.readouterr().out.splitlines()
    assert "300 samples of 20000 healthy cells" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["0", "20"]
    for line in lines[2:]:
        assert float(line.split("%")[0].split()[-1]) >= 93


def test_coverage_leaves_out_what_would_be_refused(folder, capsys):
    run("coverage --samples 300 --parasites 20 --validation-times 0.01")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("as is refused in earnest too")
    assert 0 < int(lines[-1].split()[0]) < 300
    assert float(lines[2].split("%")[0].split()[-1]) >= 94


def test_thresholds_of_the_validation_are_compared(folder, capsys):
    thresholds = {"objectness": 0.5, "iou": 0.5, "min_class_confidence": 0.95}
    write(folder / "strict.json", metrics(thresholds=thresholds))
    message = refusal("estimate run.npy --validation strict.json", capsys)
    assert "--min-class-confidence-threshold 0.95" in message
    run("estimate run.npy --validation strict.json --min-class-confidence-threshold 0.95")
    assert "only if counts and validation" not in capsys.readouterr().out


def test_scores_that_boxes_were_left_out_by_are_compared_too(folder, capsys):
    plain = {"objectness": 0.5, "iou": 0.5, "min_class_confidence": 0.0}
    scores = [0.25] * 7
    write(folder / "plain.json", metrics(thresholds=plain))
    write(folder / "scores.json", metrics(thresholds={**plain, "min_scores": scores}))
    file = "--score-thresholds FILE.json (a file with these scores: healthy 0.25, ring 0.25"
    assert file in refusal("estimate run.npy --validation scores.json", capsys)
    # What `infer --save-npy --score-thresholds` says of its array.
    write(folder / "run.json", {"score_thresholds": scores})
    assert file in refusal("estimate run.npy --validation plain.json", capsys)
    run("estimate run.npy --validation scores.json")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("estimate run.npy --obj-thresh 2", "--obj-thresh must be in [0, 1], got 2.0"),
        ("estimate run.npy --frames 0", "--frames must be above 0"),
        ("estimate run.npy --limit-cells 0", "--limit-cells must be above 0"),
        ("estimate run.npy --red-cells-per-ul nan", "--red-cells-per-ul must be above 0"),
        ("estimate run.npy --assume-right misc", "give --validation as well"),
        ("coverage --assume-right misc", "give --validation as well"),
        ("estimate run.npy --frames 3", "give --validation as well"),
        ("estimate run.npy --line reference", "give --compensation as well"),
        ("estimate run.npy --compensation f.csv", "say which the counts are of by"),
        ("estimate counts.json --obj-thresh 0.6", "has been counted already"),
        ("estimate counts.json --class-names a b", "has been counted already"),
        ("estimate counts.json --min-class-confidence-threshold 0.9", "does nothing here"),
        ("estimate none.npy", "none.npy: cannot be read"),
        ("estimate none.json", "none.json: cannot be read"),
        ("estimate run.npy --validation none.json", "none.json: cannot be read"),
        ("estimate run.npy --class-names a b c", "7 classes, but 3 names"),
        ("estimate run.npy --parasite-classes worm", "no class worm"),
        ("estimate run.npy --parasite-classes gametocyte", "gametocyte is not"),
        ("estimate run.npy --red-cell-classes ring trophozoite schizont", "they are the same"),
        ("estimate run.npy --output metrics.json", "--output metrics.json: cannot be made"),
        ("matrix metrics.json --model a/b --output .", "--model must be a name"),
        ("matrix counts.json --model a --output .", "expected `confusion`"),
        ("compensation none.csv --model a --output .", "none.csv: cannot be read as CSV"),
        ("compensation counts.json --model a --output .", "expected the line run"),
        ("coverage --parasites -1", "--parasites must be 0 or more"),
        ("coverage --samples 0", "--samples must be above 0"),
    ],
)
def test_mistakes_are_named(folder, capsys, line, expected):
    assert expected in refusal(line, capsys)


def test_no_red_cell_is_no_parasitemia(folder, capsys):
    write(folder / "none.csv", ",".join(INSTRUMENT_CLASSES) + "\n0,0,0,0,0,0,9\n")
    assert "no red cell was counted" in refusal("estimate none.csv", capsys)


def test_as_a_command_and_its_help(folder):
    command = [sys.executable, "-m", "yogo_jax.counts"]
    done = run_command([*command, "--help"])
    assert done.returncode == 0
    for name in ("estimate", "matrix", "compensation", "coverage"):
        assert f"counts {name} " in done.stdout
    done = run_command([*command, "estimate", str(folder / "counts.json")])
    assert done.returncode == 0, done.stderr
    assert "parasites per uL, as counted" in done.stdout


def test_a_threshold_of_0_is_not_the_default(folder):
    np.save("faint.npy", run_array([0, 0, 1], objectness=0.1))
    run("estimate faint.npy --obj-thresh 0 --output out")
    values = json.loads((folder / "out" / "counts.json").read_text())
    assert values["raw_counts"]["red cells"]["estimate"] == 3


def test_the_counts_of_infer_are_not_written_over(folder, capsys):
    (folder / "summary.json").write_text("{}")
    said = refusal("estimate counts.json --output .", capsys)
    assert "would be overwritten" in said
    assert "total" in json.loads((folder / "counts.json").read_text())


def test_corrected_red_cells_of_none_are_no_division(folder, capsys):
    """Extra boxes of the validation leave 0.3 of the one cell that was counted."""
    values = metrics()
    values["images"] = 10
    values["confusion"]["matrix"][7] = [7, 0, 0, 0, 0, 0, 0, 0]
    write(folder / "crowded.json", values)
    total = {**dict.fromkeys(INSTRUMENT_CLASSES, 0), "healthy": 1}
    write(folder / "one.json", {"total": total, "frames": 1})
    run("estimate one.json --validation crowded.json")
    assert "limit of detection" in capsys.readouterr().out
