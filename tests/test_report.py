"""Reports of evaluations and of runs, as a reader opens them, and what the command refuses."""

import html
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from browser import assert_figures_can_be_read, assert_fits_the_width, open_page
from evaluations import evaluation_of, image_result, labelled_images
from runs import run_command, tiny_config
from tiny_data import write_dataset
from yogo_jax import report
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.detector.detections import Thresholds
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError
from yogo_jax.reports import history
from yogo_jax.reports.evaluation_page import Subject, remove_pictures_of, write_results
from yogo_jax.reports.history import History, differing_fields, names_of, read_run
from yogo_jax.training.trainer import train_and_evaluate


NAMES = ("healthy", "ring", "trophozoite", "schizont", "gametocyte", "wbc", "<misc> & other dirt")


def subject_of(class_names, image_hw=(64, 96), history=None):
    spec = ModelSpec(
        architecture="quarter_filters",
        class_names=class_names,
        image_hw=image_hw,
        anchor_wh=(0.1, 0.1),
        rgb=False,
        normalize_images=True,
    )
    config = {"seed": 3, "train": {"epochs": 2}}
    return Subject("A test", "of <nothing>", spec, Thresholds(), config, history)


def write(folder, images, class_names, **options):
    evaluation = evaluation_of(images, class_names)
    subject = subject_of(class_names, **options)
    return write_results(folder, evaluation, subject, checkpoint=folder, step=7, pictures=2)


def logged(epochs=3, steps=4):
    """Records of a run that is in the middle of its last epoch."""
    records = []
    for step in range(1, epochs * steps - 1):
        epoch = (step - 1) // steps + 1
        terms = {"objectness": 2 / step, "box": 1 / step, "classification": 1 / step}
        train = {"epoch": epoch, "loss": 4 / step, **terms, "learning_rate": 1e-3}
        records.append({"kind": "train", "step": step, **train})
        if step % steps == 0:
            found = {"loss": 5 / step, "mAP50": 0.1 * epoch, "mAP50_95": 0.05 * epoch}
            records.append({"kind": "validation", "step": step, "epoch": epoch, **found})
    return records


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation of seven classes on images that are there."""
    folder = tmp_path_factory.mktemp("evaluated")
    definition = write_dataset(folder / "data", class_names=NAMES)
    images = labelled_images(definition, 0, len(NAMES))
    metrics = write(folder, images, NAMES, history=History("run", logged()))
    return folder, images, metrics


def test_pictures_of_others_stay_and_those_of_an_earlier_evaluation_go(tmp_path):
    definition = write_dataset(tmp_path / "data", class_names=NAMES)
    images = labelled_images(definition, 0, len(NAMES))
    folder, foreign = tmp_path / "out", ["007_of_somebody.png", "000_own.png", "notes.txt"]
    (folder / "pictures").mkdir(parents=True)
    for name in foreign:
        (folder / "pictures" / name).write_text("mine")
    first = write(folder, images, NAMES)["picture_files"]
    assert len(first) == 2
    # Another two images: those of the first evaluation would pass for theirs.
    second = write(folder, images[2:], NAMES)["picture_files"]
    assert not set(first) & set(second)
    there = {path.name for path in (folder / "pictures").iterdir()}
    assert there == {*foreign, *second}
    assert all((folder / "pictures" / name).read_text() == "mine" for name in foreign)


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"picture_files": 3}',
        '{"picture_files": ["../metrics.json", "000_a/../../metrics.json", 3, "a.png"]}',
    ],
    ids=["no-json", "list", "number", "elsewhere"],
)
def test_nothing_is_removed_for_a_record_of_another_kind(tmp_path, content):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_text("mine")
    metrics = tmp_path / "metrics.json"
    metrics.write_text(content)
    remove_pictures_of(metrics, pictures, [])
    assert (pictures / "a.png").exists()
    assert metrics.read_text() == content


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)])
def test_a_report_in_a_browser(evaluated, width, dark):
    folder, images, _ = evaluated
    worst = sorted(images, key=lambda image: -image.loss)[:6]
    with open_page(folder / "report.html", width=width, dark=dark) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        titles = page.locator("h2").all_text_contents()
        assert titles == [
            "Summary",
            "Classes",
            "Thresholds",
            "Confusion",
            "Calibration",
            "Counts in a frame",
            "Frames of the largest loss",
            "Training",
            "Config",
        ]
        drawn = {
            section: page.locator(f"#{section} svg").count()
            for section in ("curves", "confusion", "calibration", "counts", "training")
        }
        assert drawn == {"curves": 4, "confusion": 1, "calibration": 1, "counts": 2, "training": 4}
        # Something is drawn in each: lines or cells beside the axes.
        for svg in page.locator("svg").all():
            assert svg.locator("path, use").count() > 10
        captions = page.locator("#worst figcaption").all_text_contents()
        assert [caption.split(":")[0] for caption in captions] == [
            image.path.rsplit("/")[-1] for image in worst
        ]
        sizes = page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert sizes == [192] * 6
        # Names of classes are text, whatever is in them.
        assert page.locator("#curves svg text", has_text="<misc> & other dirt").count() == 4
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_metrics_of_a_test_hold_all_that_was_there_and_more(evaluated):
    folder, images, metrics = evaluated
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    before = evaluation_of(images, NAMES).metrics
    for key in before.keys() - {"loss"}:
        assert metrics[key] == before[key]
    assert metrics["test_loss"] == before["loss"]
    low, high = metrics["intervals"]["mAP50"]
    assert low < metrics["mAP50"] < high
    for name in NAMES:
        counts = metrics["counts_by_class"][name]
        assert counts["bias"] == pytest.approx((counts["predicted"] - counts["true"]) / 12)
        assert 0 < metrics["best_f1_by_class"][name]["f1"] <= 1
        assert 0.5 < metrics["roc_area_by_class"][name] <= 1


A = (0.1, 0.1, 0.4, 0.4)


@pytest.mark.parametrize(
    ("predicted", "labels", "class_names", "texts"),
    [
        pytest.param([], [], ("cell",), ["There is no true box", "nothing to calibrate"], id="no"),
        pytest.param([], [A], ("cell",), ["nothing to calibrate"], id="nothing found"),
        pytest.param([A], [], ("cell", "ring"), ["There is no true box"], id="false alarm"),
        pytest.param([A], [A], ("cell", "ring"), ["have no line: 1ring."], id="one class found"),
        pytest.param([A], [A], ("cell",), ["No intervals"], id="one box, one class"),
        pytest.param([A], [A], NAMES * 2, ["the 10 most frequent classes"], id="many classes"),
    ],
)
def test_a_report_of_next_to_nothing(tmp_path, predicted, labels, class_names, texts):
    class_names = tuple(f"{index}{name}" for index, name in enumerate(class_names))
    Image.fromarray(np.full((64, 96), 90, np.uint8)).save(tmp_path / "frame.png")
    probs = np.tile(np.eye(len(class_names))[0], (len(predicted), 1))
    scores = [0.9] * len(predicted)
    ids = [0] * len(labels)
    image = image_result(predicted, scores, probs, labels, ids, path=tmp_path / "frame.png")
    metrics = write(tmp_path / "out", [image], class_names)
    assert metrics["intervals"]["mAP50"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    for text in texts:
        assert text in page
    assert ">nan<" not in page.lower()


def page_of(folder, boxes, objectness, probs, labels, ids, class_names=NAMES[:3]):
    Image.fromarray(np.full((64, 96), 90, np.uint8)).save(folder / "frame.png")
    image = image_result(boxes, objectness, probs, labels, ids, path=folder / "frame.png")
    metrics = write(folder / "out", [image], class_names)
    return metrics, html.unescape((folder / "out" / "report.html").read_text())


B = (0.6, 0.6, 0.9, 0.9)


def test_findings_stand_first_and_are_in_the_metrics(tmp_path):
    metrics, page = page_of(tmp_path, [B], [0.4], [(1, 0, 0)], [A, A, B], [0, 0, 1])
    nothing, lost = metrics["findings"]
    assert nothing.startswith("nothing is found: no prediction in 1 images with 3 boxes")
    assert "healthy (boxes: 2), ring (boxes: 1)" in lost
    assert nothing in page
    assert lost in page
    assert page.index(">Findings<") < page.index(">Summary<")


def test_without_findings_there_is_no_such_section(tmp_path):
    probs = [(0.9, 0.05, 0.05), (0.05, 0.9, 0.05)]
    metrics, page = page_of(tmp_path, [A, B], [0.9, 0.9], probs, [A, B], [0, 1])
    assert metrics["findings"] == []
    assert ">Findings<" not in page


def test_a_report_shows_the_originals_protocol_and_sensitivity(evaluated):
    folder, _, metrics = evaluated
    page = html.unescape((folder / "report.html").read_text())
    said = f"By the original's protocol mAP50 is {metrics['mAP50_original']:.4f}"
    assert said in page
    assert metrics["mAP50_original"] != metrics["mAP50"]
    values = metrics["sensitivity_at_false_positives"]
    cells = f"{values['red_cells']:,}"
    red = values["red_cell_class"]
    assert f"10^6 boxes of {red}. The set has {cells} of these boxes." in page
    for rate in ("1*", "10*", "100*", "1000*"):
        assert page.count(f">{rate}</th>") == 1
    assert f"of {red} that are needed: 1,000,000 for 1, 100,000 for 10, 10,000 for 100" in page
    rarest = list(values["by_class"].values())[-1]
    assert 0 < rarest["1000"] <= 1
    assert set(values["by_class"]) == set(NAMES) - {red}


def test_one_class_has_no_sensitivity_to_rare_ones(tmp_path):
    metrics, page = page_of(tmp_path, [A], [0.9], [(1,)], [A], [0], ("cell",))
    assert metrics["sensitivity_at_false_positives"]["by_class"] == {}
    assert "false positives per 10^6" not in page


# --- Reports of runs ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    definition = write_dataset(folder / "data")
    workdir = folder / "first run"
    train_and_evaluate(tiny_config(definition), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_leaves_a_report_of_its_test(run):
    with open_page(run / "test" / "report.html", width=360) as page:
        assert_fits_the_width(page)
        assert page.title() == "Test of first run"
        assert page.locator("#training svg").count() == 4
        assert page.locator("#worst img").count() == 3


@pytest.mark.slow
def test_a_report_of_one_run(run, capsys):
    report.main([str(run)])
    assert capsys.readouterr().out.splitlines() == [
        "first run: finished",
        f"written {run / 'report.html'}",
    ]
    with open_page(run / "report.html", width=360) as page:
        assert_fits_the_width(page)
        assert page.locator("#training svg").count() == 4
        page.get_by_role("link", name="Report of the test of first run").click()
        assert page.title() == "Test of first run"


@pytest.fixture(scope="module")
def unfinished(run):
    """A run that still trains: the last line is being written, nothing is tested."""
    workdir = run.parent / "second"
    workdir.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["optim"]["learning_rate"] = 0.125
    config["train"]["epochs"] = 8
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(record) for record in logged()]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st')
    return workdir


@pytest.mark.slow
def test_a_report_of_several_runs_one_of_which_still_trains(run, unfinished, tmp_path, capsys):
    page_file = tmp_path / "page.html"
    report.main([str(run), str(unfinished), "--output", str(page_file)])
    assert "second: unfinished: epoch 2.5 of 8" in capsys.readouterr().out
    test = json.loads((run / "test" / "metrics.json").read_text())
    with open_page(page_file, width=360, dark=True) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        assert page.locator("#training svg").count() == 5
        for svg in page.locator("#training svg").all():
            assert svg.locator("text", has_text="second").count() == 1
        rows = page.locator("#differences tbody tr").all_text_contents()
        assert [" ".join(row.split()) for row in rows] == [
            "optim.learning_rate 0.0003 0.125",
            "train.epochs 2 8",
        ]
        (row,) = page.locator("#runs tbody tr", has_text="second").all()
        cells = row.locator("td").all_text_contents()
        assert cells[:2] == ["unfinished: epoch 2.5 of 8", "10"]
        assert cells[2:] == ["0.6250", "8", "0.2000", "0.6250", "0.2000", "-"]
        assert f"{test['test_loss']:,.4f}" in page.locator("#test").inner_text()
        assert page.get_by_role("link", name="Report of the test").count() == 1
        page.get_by_text("Config of second").click()
        assert page.get_by_text('"learning_rate": 0.125').is_visible()


def test_a_test_of_an_earlier_version_beside_a_new_one(run, tmp_path):
    earlier = shutil.copytree(run, tmp_path / "earlier")
    file = earlier / "test" / "metrics.json"
    test = json.loads(file.read_text())
    new_keys = ("findings", "sensitivity_at_false_positives")
    kept = {k: v for k, v in test.items() if not k.endswith("_original") and k not in new_keys}
    file.write_text(json.dumps(kept | {"mAP50": 0.123}))
    page = html.unescape(report.report([run, earlier], output=tmp_path / "p.html").read_text())
    assert "with every mAP and AP by the original's protocol: earlier." in page
    row = page[page.index("mAP50 by the original's protocol") :].split("</tr>")[0]
    assert ">0.1230<" in row
    assert f">{test['mAP50_original']:.4f}<" in row
    alone = html.unescape(report.report([run], output=tmp_path / "q.html").read_text())
    assert "earlier version" not in alone


def test_before_the_first_epoch_is_over_the_axis_counts_steps(unfinished, tmp_path):
    workdir = shutil.copytree(unfinished, tmp_path / "young")
    records = [json.dumps(record) for record in logged()[:2]]
    (workdir / "metrics.jsonl").write_text("\n".join(records) + "\n")
    young = read_run(workdir, "young")
    assert young.state == "unfinished: step 2 of epoch 1 of 8"
    output = report.report([workdir])
    assert ">step</text>" in output.read_text()
    assert ">epoch</text>" not in output.read_text()


def test_a_run_without_a_test_is_trained_when_its_epochs_are_over(unfinished, tmp_path):
    workdir = shutil.copytree(unfinished, tmp_path / "trained")
    config = json.loads((workdir / "config.json").read_text())
    config["train"]["epochs"] = 2
    (workdir / "config.json").write_text(json.dumps(config))
    assert read_run(workdir, "trained").state == "trained"


def test_epochs_of_a_history():
    unfinished = History("run", logged(epochs=3, steps=4))
    assert unfinished.steps_per_epoch == 4
    assert unfinished.last_step == 10
    assert unfinished.best["step"] == 8
    training = [record for record in unfinished.records if record["kind"] == "train"]
    assert History("run", training).steps_per_epoch == 4
    scores = [0.3, 0.5, 0.4]
    validations = [
        {"kind": "validation", "step": step, "epoch": step, "loss": 3.0 - step, "mAP50": score}
        for step, score in enumerate(scores)
    ]
    assert History("run", validations).best["step"] == 2
    assert History("run", validations, "mAP50").best["step"] == 1
    assert History("run", training[:4]).steps_per_epoch is None
    assert History("run", training).best is None


@pytest.mark.parametrize(
    ("steps", "size"), [(1, 1), (200, 1), (201, 2), (250, 2), (399, 2), (400, 2), (1001, 6)]
)
def test_each_point_of_a_loss_curve_is_the_mean_of_equally_many_steps(steps, size):
    losses = np.random.default_rng(0).normal(1, 0.1, steps)
    records = [
        {"kind": "train", "step": step, "epoch": 1, "loss": loss}
        for step, loss in enumerate(losses, start=1)
    ]
    means = history._means(history._values(History("run", records), "train", "loss"))
    assert len(means) == -(-steps // size) <= 200
    # Each is the mean of `size` neighbours: those around the mean of their steps.
    for step, loss in means:
        first = round(step - (size + 1) / 2)
        assert loss == pytest.approx(losses[first : first + size].mean(), rel=1e-12)
    # From the first to the last, which is the latest that there is.
    assert means[0, 0] == (size + 1) / 2
    assert means[-1, 0] == steps - (size - 1) / 2
    assert (np.diff(means[:, 0]) > 0).all()
    (figure,) = history.history_figures([History("run", records)])
    said = f"Loss of the training images (each point is the mean of {size} steps)."
    assert figure.caption == (said if size > 1 else "Loss of the training images.")


def test_validations_are_not_averaged():
    records = [{"kind": "train", "step": 900, "epoch": 300, "loss": 1.0}]
    for epoch in range(1, 301):
        found = {"loss": 2.0 + (epoch == 150), "mAP50": 0.5}
        records.append({"kind": "validation", "step": 3 * epoch, "epoch": epoch, **found})
    points = history._values(History("run", records), "validation", "loss")
    assert len(points) == 300
    assert points[149].tolist() == [450, 3.0]
    assert (np.delete(points[:, 1], 149) == 2).all()


@pytest.mark.parametrize(
    ("keep_best", "validation", "map50"),
    [
        (["loss"], None, None),
        (["mAP50"], None, " The checkpoint with the highest mAP50 is tested."),
        (["loss", "loss"], " The checkpoint with the lowest loss is tested.", ""),
        (["mAP50", "mAP50"], "", " The checkpoint with the highest mAP50 is tested."),
        (
            ["loss", "mAP50"],
            " The checkpoint with the lowest loss of 0 is tested.",
            " The checkpoint with the highest mAP50 of 1 is tested.",
        ),
    ],
)
def test_captions_say_which_checkpoint_is_tested(keep_best, validation, map50):
    runs = [History(str(index), logged(), each) for index, each in enumerate(keep_best)]
    captions = [figure.caption for figure in history.history_figures(runs)]
    if len(runs) > 1:
        assert captions[1] == f"Loss of the validation images.{validation}"
        assert captions[2] == f"mAP50 of the validation images.{map50}"
        assert captions[3] == "mAP50-95 of the validation images."
        return
    tested = " The checkpoint with the lowest loss is tested." if keep_best == ["loss"] else ""
    assert captions[0] == f"Loss of the training images and of the validation images.{tested}"
    assert captions[2] == f"Mean average precision of the validation images.{map50 or ''}"


def test_runs_of_different_length_say_how_their_losses_are_averaged():
    runs = [History("short", logged()), History("long", logged(epochs=100))]
    caption = history.history_figures(runs)[0].caption
    assert caption == "Training loss (each point is the mean of several steps: short 1, long 2)."


def test_names_and_differences(tmp_path):
    workdirs = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert names_of(workdirs) == [str(workdirs[0]), str(workdirs[1]), "other"]
    configs = [{"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [2], "d": 2}, "e": 0}]
    assert differing_fields(configs) == [("b.c", [[1], [2]]), ("e", [None, 0])]
    assert differing_fields(configs[:1] * 3) == []


def damaged(unfinished, folder, file, text):
    workdir = shutil.copytree(unfinished, folder)
    (workdir / file).parent.mkdir(exist_ok=True)
    (workdir / file).write_text(text)
    return workdir


START = '{"kind": "start", "step": 0, "host": "a"}\n'


@pytest.mark.parametrize("logged_text", [None, "", START, '{"kind": "tr'])
def test_a_run_that_has_logged_nothing_is_named_and_the_others_are_drawn(
    run, unfinished, tmp_path, capsys, logged_text
):
    silent = tmp_path / "silent"
    silent.mkdir()
    shutil.copy(unfinished / "config.json", silent)
    if logged_text is not None:
        (silent / "metrics.jsonl").write_text(logged_text)
    page = tmp_path / "page.html"
    report.main([str(unfinished), str(silent), str(run), "--output", str(page)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "silent: nothing is logged yet"
    assert lines[2] == "first run: finished"
    text = page.read_text()
    assert text.count("<svg") == 5
    assert ">epoch</text>" in text
    assert "Nothing is logged yet, so no line is drawn: silent." in text
    # Of runs that all have logged nothing there is no page.
    page.unlink()
    with pytest.raises(SystemExit) as stop:
        report.main([str(silent), "--output", str(page)])
    assert stop.value.code == 2
    assert f"{silent}: nothing is logged yet in metrics.jsonl" in capsys.readouterr().err
    assert not page.exists()


def test_a_run_that_goes_on_after_its_test_shows_no_test(run, tmp_path):
    longer = shutil.copytree(run, tmp_path / "longer")
    assert read_run(longer, "longer").test is not None
    lines = (longer / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] != "test"]
    (longer / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert read_run(longer, "longer").test is None
    output = report.report([longer])
    assert "Report of the test" not in output.read_text()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        pytest.param("config.json", "{", "config.json: cannot be read as JSON", id="config"),
        pytest.param("config.json", "[]", "expected an object with train", id="list"),
        pytest.param("config.json", '{"train": 3}', "expected train.epochs", id="no epochs"),
        pytest.param("metrics.jsonl", '{"step": 1}\n', "expected objects with 'kind'", id="kind"),
        pytest.param(
            "metrics.jsonl", '{"kind": "train", "step": 1}\n', "'step' and 'epoch'", id="fields"
        ),
        pytest.param("test/metrics.json", "{}", "expected an object with mAP50", id="test"),
    ],
)
def test_damaged_files_are_named(unfinished, tmp_path, file, text, message):
    workdir = damaged(unfinished, tmp_path / "run", file, text)
    with pytest.raises(UserError, match=message):
        read_run(workdir, "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["nowhere"], "nowhere: expected the workdir of a run, found no such", id="no"),
        pytest.param(["TMP"], "found no config.json in it", id="folder"),
        pytest.param(["RUN", "RUN/."], "is given twice", id="twice"),
        pytest.param(["RUN", "--output", "TMP"], "is a folder: give the name", id="output"),
        pytest.param(["RUN", "--output", "RUN/config.json/x"], "cannot be written", id="below"),
    ],
)
def test_the_command_refuses(unfinished, tmp_path, capsys, flags, message):
    places = {"RUN": unfinished, "TMP": tmp_path}
    for name, place in places.items():
        flags = [flag.replace(name, str(place)) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        report.main(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mistake_is_told_by_the_command_itself(unfinished):
    done = run_command([sys.executable, "-m", "yogo_jax.report", str(unfinished), "nowhere"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere")
    assert read_metrics(unfinished / "metrics.jsonl")[-1]["step"] == 10
