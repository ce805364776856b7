"""`yogo_jax.infer` as a command: what it writes, from which model and source, what it refuses."""

import io
import json
import os
import shutil
import sys

import numpy as np
import onnx
import pytest
from PIL import Image
from pycocotools.coco import COCO

from bridge.converted import write_converted
from bridge.to_ir import convert_to_ir, save_ir
from bridge.verify import outputs_and_ranges
from drawn_models import make_spec, write_random_checkpoint
from inferences import (
    CLASS_NAMES,
    THRESHOLD,
    detections,
    read_rows,
    refused_infer,
    run_infer,
    write_frames,
    write_models,
)
from reference import greedy_nms
from runs import run_command
from test_frame_sources import save_stack, save_video, save_zarr
from yogo_jax.checkpoint.store import read_metadata, restore_variables
from yogo_jax.data.images import read_image
from yogo_jax.data.labels import read_label_files
from yogo_jax.detector.spec import served_spec


ALL_OUTPUTS = (
    "--draw-boxes",
    "--save-preds",
    "--with-confidence",
    "--save-npy",
    "--csv",
    "--coco",
    "--count",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "run_7")


def expected_rows(checkpoint, frames, crop_height=None) -> list[np.ndarray]:
    """Slow twin: for each frame, rows of corners in px of what is seen, objectness, probs."""
    trained = make_spec("quarter_filters")
    spec = served_spec(trained, crop_height=crop_height)
    rows, columns = spec.image_hw
    top = (trained.image_hw[0] - rows + 1) // 2
    found = []
    for path in sorted(frames.iterdir()):
        image = read_image(path, image_hw=trained.image_hw, rgb=False)[top : top + rows]
        variables = restore_variables(checkpoint, trained)
        outputs = outputs_and_ranges(spec, variables, image[None])[0][0]
        cells = outputs.reshape(8, -1).T
        cells = cells[cells[:, 4] > THRESHOLD]
        corners = np.concatenate(
            [cells[:, :2] - cells[:, 2:4] / 2, cells[:, :2] + cells[:, 2:4] / 2], axis=1
        )
        kept = greedy_nms(corners, cells[:, 4] * cells[:, 5:].max(1), 0.5)
        corners_px = corners * np.array([columns, rows, columns, rows])
        found.append(np.concatenate([corners_px, cells[:, 4:]], axis=1)[kept])
    return found


@pytest.fixture(scope="module")
def cropped(models, frames, tmp_path_factory):
    """All outputs together, of the middle half of the frames."""
    output = tmp_path_factory.mktemp("cropped") / "out"
    run_infer(
        models["half"], "--images", frames, "--output", output, "--obj-thresh", THRESHOLD,
        *ALL_OUTPUTS,
    )  # fmt: skip
    return output, expected_rows(models["checkpoint"], frames, crop_height=0.5)


@pytest.mark.smoke
def test_everything_is_written_and_nothing_else(cropped):
    output, _ = cropped
    assert sorted(path.name for path in output.iterdir()) == [
        "coco.json", "counts.csv", "counts.json", "detections.csv", "labels", "pictures",
        "run_7.json", "run_7.npy", "summary.json",
    ]  # fmt: skip
    stems = [f"f{i}" for i in range(6)]
    assert sorted(path.name for path in (output / "labels").iterdir()) == [
        f"{s}.txt" for s in stems
    ]
    assert sorted(path.name for path in (output / "pictures").iterdir()) == [
        f"{s}.png" for s in stems
    ]


def test_the_instruments_array(cropped):
    output, expected = cropped
    array = np.load(output / "run_7.npy")
    assert array.dtype == np.float32
    assert array.shape == (8 + 3, sum(map(len, expected)))
    assert array.shape[1] > 20
    ids = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(expected)])
    rows = np.concatenate(expected)
    np.testing.assert_array_equal(array[0], ids)
    np.testing.assert_allclose(array[1:6].T, rows[:, :5], atol=2e-3)
    np.testing.assert_array_equal(array[6], rows[:, 5:].argmax(1))
    np.testing.assert_allclose(array[7], rows[:, 5:].max(1), atol=1e-5)
    np.testing.assert_allclose(array[8:].T, rows[:, 5:], atol=1e-5)
    notes = json.loads((output / "run_7.json").read_text())
    assert notes.pop("write_date")
    assert notes == {
        "run_name": "run_7",
        "model_name": "half",
        "class_names": list(CLASS_NAMES),
        "obj_thresh": THRESHOLD,
        "iou_thresh": 0.5,
        "min_class_confidence_threshold": 0.0,
        "vertical_crop_height_px": 48,
    }


def test_tables_and_coco_are_of_the_whole_frame(cropped):
    output, expected = cropped
    rows = np.concatenate(expected)
    found = detections(output)
    whole = rows[:, :4] + np.array([0, 24, 0, 24])
    np.testing.assert_allclose(found[:, 1:5], whole, atol=2e-3)
    np.testing.assert_allclose(found[:, 7], rows[:, 4] * rows[:, 5:].max(1), atol=1e-5)
    coco = COCO(output / "coco.json")
    annotations = coco.loadAnns(coco.getAnnIds())
    boxes = np.asarray([annotation["bbox"] for annotation in annotations])
    cut = whole.clip(0, [128, 96, 128, 96])
    np.testing.assert_allclose(boxes[:, :2], cut[:, :2], atol=2e-3)
    np.testing.assert_allclose(boxes[:, 2:], cut[:, 2:] - cut[:, :2], atol=2e-3)
    assert [a["category_id"] for a in annotations] == rows[:, 5:].argmax(1).tolist()
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    assert coco.imgs[5] == {"id": 5, "file_name": "f5.png", "width": 128, "height": 96}
    ids = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(expected)])
    assert [a["image_id"] for a in annotations] == ids.tolist()


def test_counts_by_frame_and_in_all(cropped):
    output, expected = cropped
    table = read_rows(output / "counts.csv")
    for i, (row, rows) in enumerate(zip(table, expected, strict=True)):
        counts = np.bincount(rows[:, 5:].argmax(1), minlength=3)
        assert row == {
            "image_id": str(i),
            "image": f"f{i}.png",
            **dict(zip(CLASS_NAMES, map(str, counts), strict=True)),
            "total": str(len(rows)),
        }
    counts = np.bincount(np.concatenate(expected)[:, 5:].argmax(1), minlength=3)
    assert json.loads((output / "counts.json").read_text()) == {
        "frames": 6,
        "skipped": 0,
        "total": int(counts.sum()),
        "by_class": dict(zip(CLASS_NAMES, counts.tolist(), strict=True)),
    }


def test_label_files_are_labels(cropped):
    output, expected = cropped
    for i, rows in enumerate(expected):
        lines = (output / "labels" / f"f{i}.txt").read_text().splitlines()
        values = np.asarray([[float(value) for value in line.split()] for line in lines])
        corners = (rows[:, :4] + np.array([0, 24, 0, 24])) / np.array([128, 96, 128, 96])
        corners = corners.clip(0, 1)
        expected_values = np.column_stack(
            [
                rows[:, 5:].argmax(1),
                (corners[:, :2] + corners[:, 2:]) / 2,
                corners[:, 2:] - corners[:, :2],
                rows[:, 4] * rows[:, 5:].max(1),
            ]
        )
        np.testing.assert_allclose(values, expected_values, atol=2e-5)


def test_pictures_show_the_whole_frame_and_what_was_looked_at(cropped, frames):
    output, _ = cropped
    picture = np.asarray(Image.open(output / "pictures" / "f0.png")).astype(int)
    frame = np.asarray(Image.open(frames / "f0.png"))
    assert picture.shape == (192, 256, 3)  # small frames are drawn at twice their size
    doubled = np.asarray(Image.fromarray(frame).resize((256, 192), Image.Resampling.BILINEAR))
    changed = (np.abs(picture - doubled[..., None]) > 0).any(-1)
    # The dashed line is where the strip begins; far above it nothing is drawn.
    assert changed[48].mean() > 0.9
    assert not changed[:8].any()


def run_of(models, name, source, output, *more):
    run_infer(models[name], *source, "--output", output, "--csv", "--obj-thresh", THRESHOLD, *more)
    return detections(output)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["onnx", "ir"])
def test_exported_models_find_what_the_checkpoint_finds(name, models, frames, tmp_path):
    source = ("--images", frames)
    ours = run_of(models, "checkpoint", source, tmp_path / "a")
    theirs = run_of(models, name, source, tmp_path / "b")
    assert len(ours) > 40
    np.testing.assert_allclose(theirs, ours, atol=2e-3)


def test_a_crop_of_the_checkpoint_is_what_is_exported_for_it(models, frames, tmp_path):
    source = ("--images", frames)
    exported = run_of(models, "half", source, tmp_path / "a")
    for number, crop in enumerate((0.5, 48)):
        ours = run_of(models, "checkpoint", source, tmp_path / f"b{number}", "--crop-height", crop)
        np.testing.assert_allclose(ours, exported, atol=2e-3)
    onnx_ = run_of(models, "half_onnx", source, tmp_path / "c", "--crop-height", 0.5)
    np.testing.assert_allclose(onnx_, exported, atol=2e-3)


def test_strips_go_in_as_they_are(models, frames, tmp_path):
    whole = run_of(models, "half", ("--images", frames), tmp_path / "a")
    (tmp_path / "strips").mkdir()
    for path in frames.iterdir():
        Image.fromarray(np.asarray(Image.open(path))[24:72]).save(tmp_path / "strips" / path.name)
    strips = run_of(models, "half", ("--images", tmp_path / "strips"), tmp_path / "b")
    strips[:, [2, 4]] += 24
    np.testing.assert_allclose(strips, whole, atol=1e-4)


def test_frames_of_another_size_are_resized_as_in_training(models, tmp_path):
    frames = write_frames(tmp_path / "frames", count=2, image_hw=(192, 256))
    found = run_of(models, "ir", ("--images", frames), tmp_path / "a")
    rows = np.concatenate(expected_rows(models["checkpoint"], frames))
    np.testing.assert_allclose(found[:, 1:5], 2 * rows[:, :4], atol=5e-3)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["list", "stack", "zarr", "video"])
def test_other_sources_give_the_same(kind, models, frames, tmp_path, monkeypatch):
    folder = run_of(models, "ir", ("--images", frames), tmp_path / "a")
    paths = sorted(frames.iterdir())
    array = np.stack([np.asarray(Image.open(path)) for path in paths])
    if kind == "list":
        source = ("--images", "-")
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths)))
    elif kind == "stack":
        save_stack(tmp_path / "run.tif", array)
        source = ("--path-to-images", tmp_path / "run.tif")
    elif kind == "zarr":
        save_zarr(tmp_path / "run.zip", np.moveaxis(array, 0, 2), (96, 128, 1))
        source = ("--path-to-zarr", tmp_path / "run.zip")
    else:
        save_video(tmp_path / "run.mkv", array)
        source = ("--video", tmp_path / "run.mkv")
    other = run_of(models, "ir", source, tmp_path / "b", "--save-preds")
    np.testing.assert_array_equal(other, folder)
    stem = {"list": "f5", "stack": "run_000005"}.get(kind, "000005")
    assert (tmp_path / "b" / "labels" / f"{stem}.txt").exists()


@pytest.mark.parametrize("batch_size", [4, 6])
def test_batches_do_not_change_what_is_found(batch_size, models, frames, tmp_path):
    source = ("--images", frames)
    ours = run_of(models, "checkpoint", source, tmp_path / "a")
    other = run_of(models, "checkpoint", source, tmp_path / "b", "--batch-size", batch_size)
    np.testing.assert_allclose(other, ours, atol=1e-3)


@pytest.mark.parametrize("name", ["checkpoint", "ir"])
def test_half_precision_is_not_single_precision(name, models, frames, tmp_path, capsys):
    source = ("--images", frames, "--iou-thresh", 1)
    single = run_of(models, name, source, tmp_path / "a", "--batch-size", 2)
    try:
        half = run_of(models, name, source, tmp_path / "b", "--half", "--batch-size", 2)
    except SystemExit:
        assert "this CPU computes in" in capsys.readouterr().err
        pytest.skip("this CPU computes in single precision only")
    assert " in bf16 on" in capsys.readouterr().out
    # The objectness of nearly all cells is close to the threshold: as many are not found.
    mean, other = single[:, 5].mean(), half[:, 5].mean()
    assert mean != other
    assert other == pytest.approx(mean, abs=5e-3)


def as_of_another_maker(path, folder):
    """The model without what our export wrote into it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, folder / "foreign.onnx")
    return folder / "foreign.onnx"


def test_a_model_of_another_maker_needs_to_be_told(models, frames, tmp_path, capsys):
    foreign = as_of_another_maker(models["onnx"], tmp_path)
    base = (foreign, "--images", frames, "--output", tmp_path / "out", "--csv")
    base = (*base, "--obj-thresh", THRESHOLD)
    assert "gives 3 classes, it does not name them" in refused_infer(capsys, *base)
    message = refused_infer(capsys, *base, "--class-names", "A,B")
    assert "gives 3 classes, --class-names has 2" in message
    message = refused_infer(capsys, *base, "--class-names", "A,B,C")
    assert "add --normalize-images if" in message
    run_infer(*base, "--class-names", "A", "B", "C", "--no-normalize-images")
    ours = run_of(models, "onnx", ("--images", frames), tmp_path / "ours")
    np.testing.assert_array_equal(detections(tmp_path / "out"), ours)
    assert {row["class"] for row in read_rows(tmp_path / "out" / "detections.csv")} <= set("ABC")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_model_that_gives_no_probabilities_is_refused(suffix, models, frames, tmp_path, capsys):
    model = onnx.load(models["onnx"])
    del model.metadata_props[:]
    concat = next(node for node in model.graph.node if node.op_type == "Concat")
    sigmoid = next(node for node in model.graph.node if concat.input[2] in node.output)
    assert sigmoid.op_type == "Sigmoid"
    concat.input[2] = sigmoid.input[0]
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".onnx":
        onnx.save(model, path)
    else:
        save_ir(convert_to_ir(model, half_precision=False, metadata={}), path)
    told = ("--class-names", "A,B,C", "--no-normalize-images")
    message = refused_infer(capsys, path, "--images", frames, "--output", tmp_path / "out", *told)
    assert f"{path}: its objectness and class probabilities go from -" in message
    assert "expected 0 to 1: export it with a sigmoid of the objectness" in message


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_model_for_batches_of_any_size(suffix, models, frames, tmp_path):
    model = onnx.load(models["onnx"])
    del model.metadata_props[:]
    for each in (model.graph.input[0], model.graph.output[0]):
        each.type.tensor_type.shape.dim[0].dim_param = "n"
    path = tmp_path / f"any{suffix}"
    if suffix == ".onnx":
        onnx.save(model, path)
    else:
        save_ir(convert_to_ir(model, half_precision=False, metadata={}), path)
    source = ("--images", frames, "--class-names", "A,B,C", "--no-normalize-images")
    found = run_of({"it": path}, "it", source, tmp_path / "a")
    ours = run_of(models, "ir", ("--images", frames), tmp_path / "b")
    np.testing.assert_allclose(found, ours, atol=2e-3)


def test_a_network_of_three_channels_sees_gray_frames(frames, tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "rgb", rgb=True)
    found = []
    array = np.stack([np.asarray(Image.open(path)) for path in sorted(frames.iterdir())])
    save_zarr(tmp_path / "run.zarr", array, (1, 96, 128))
    for number, source in enumerate((("--images", frames), ("--zarr", tmp_path / "run.zarr"))):
        output = tmp_path / str(number)
        run_infer(checkpoint, *source, "--output", output, "--csv", "--obj-thresh", THRESHOLD)
        found.append(detections(output))
    assert len(found[0]) > 0
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_pixels_are_divided_for_a_model_of_another_maker(suffix, models, frames, tmp_path):
    # Without the division that ours begins with.
    model = onnx.load(models["onnx"])
    first = model.graph.node[0]
    assert first.op_type == "Mul"
    model.graph.node[1].input[0] = first.input[0]
    model.graph.node.remove(first)
    del model.metadata_props[:]
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".onnx":
        onnx.save(model, path)
    else:
        save_ir(convert_to_ir(model, half_precision=False, metadata={}), path)
    source = ("--images", frames, "--class-names", "A,B,C", "--normalize-images")
    found = run_of({"it": path}, "it", source, tmp_path / "a")
    ours = run_of(models, "ir", ("--images", frames), tmp_path / "b")
    np.testing.assert_allclose(found, ours, atol=2e-3)


def test_a_strip_for_a_model_of_another_maker(models, frames, tmp_path, capsys):
    foreign = as_of_another_maker(models["half_onnx"], tmp_path)
    told = ("--class-names", "A,B,C", "--no-normalize-images")
    base = (foreign, "--images", frames, "--obj-thresh", THRESHOLD, *told)
    message = refused_infer(capsys, *base, "--output", tmp_path / "x")
    assert "the network takes 48x128 px, the frame is 96x128" in message
    assert "--crop-height 0.5 for its middle rows" in message
    run_infer(*base, "--output", tmp_path / "a", "--csv", "--crop-height", 0.5)
    ours = run_of(models, "half", ("--images", frames), tmp_path / "b")
    np.testing.assert_allclose(detections(tmp_path / "a"), ours, atol=2e-3)
    run_infer(*base, "--output", tmp_path / "c", "--count", "--crop-height", 1)


def test_broken_frames_are_skipped_named_and_counted(models, frames, tmp_path, capsys):
    folder = shutil.copytree(frames, tmp_path / "run")
    (folder / "f1.png").write_bytes((folder / "f1.png").read_bytes()[:80])
    (folder / "f4.png").write_bytes(b"")
    found = run_of(
        models, "ir", ("--images", folder), tmp_path / "a", "--count", "--save-preds", "--coco"
    )
    said = capsys.readouterr().out
    assert "4 frames, 2 skipped" in said
    assert "f4.png: the file is empty" in said
    assert set(found[:, 0]) == {0, 2, 3, 5}
    reasons = read_rows(tmp_path / "a" / "skipped.csv")
    assert [row["image"] for row in reasons] == ["f1.png", "f4.png"]
    counts = read_rows(tmp_path / "a" / "counts.csv")
    assert [row["total"] == "" for row in counts] == [False, True, False, False, True, False]
    assert len(list((tmp_path / "a" / "labels").iterdir())) == 4
    assert len(json.loads((tmp_path / "a" / "coco.json").read_text())["images"]) == 4
    whole = run_of(models, "ir", ("--images", frames), tmp_path / "b")
    np.testing.assert_array_equal(found, whole[np.isin(whole[:, 0], [0, 2, 3, 5])])
    message = refused_infer(
        capsys, models["ir"], "--images", folder, "--output", tmp_path / "c", "--strict"
    )
    assert "f1.png" in message
    assert "without --strict it would be skipped" in message


def test_a_run_without_a_single_frame_that_can_be_read_fails(models, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for index in range(3):
        (folder / f"f{index}.png").write_bytes(b"broken")
    message = refused_infer(capsys, models["ir"], "--images", folder, "--output", tmp_path / "a")
    assert "none of the 3 frames could be read" in message
    assert len(read_rows(tmp_path / "a" / "skipped.csv")) == 3


def test_the_weights_of_an_ir_are_not_it(models, frames, tmp_path, capsys):
    weights = models["ir"].with_suffix(".bin")
    message = refused_infer(capsys, weights, "--images", frames, "--output", tmp_path / "a")
    assert f"these are the weights of {models['ir']}: give that" in message


def test_nothing_asked_for_is_counting(models, frames, tmp_path, capsys):
    run_infer(
        models["ir"], "--images", frames / "f0.png", "--output-dir", tmp_path / "out", "--use-tqdm"
    )
    said, bar = capsys.readouterr()
    assert "1/1" in bar
    assert "frames/s" in bar
    assert "no output was asked for: counting, as with --count" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "counts.csv",
        "counts.json",
        "summary.json",
    ]


def test_quiet_prints_the_summary_alone(models, frames, tmp_path, capsys):
    base = (models["ir"], "--images", frames, "--use-tqdm", "--output")
    run_infer(*base, tmp_path / "told")
    told = capsys.readouterr()
    run_infer(*base, tmp_path / "quiet", "--quiet")
    quiet = capsys.readouterr()
    assert "frames" in told.err
    assert quiet.err == ""
    assert "counting, as with --count" in told.out
    first, *_, last = quiet.out.splitlines()
    assert f"\n{first}\n" in told.out
    assert first.endswith(" boxes")
    assert last.startswith(f"written to {tmp_path / 'quiet'}: counts.csv")


def test_no_boxes_at_all(models, frames, tmp_path):
    run_infer(
        models["ir"], "--images", frames, "--output", tmp_path / "out", "--obj-thresh", 1,
        *ALL_OUTPUTS, "--output-img-filetype", ".tif",
    )  # fmt: skip
    assert np.load(tmp_path / "out" / "run_7.npy").shape == (11, 0)
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"] == []
    assert (tmp_path / "out" / "labels" / "f0.txt").read_text() == ""
    with Image.open(tmp_path / "out" / "pictures" / "f0.tif") as picture:
        assert picture.format == "TIFF"


def test_predictions_are_read_as_labels(models, frames, tmp_path):
    run_infer(
        models["ir"], "--images", frames, "--output", tmp_path / "out", "--save-preds",
        "--obj-thresh", THRESHOLD,
    )  # fmt: skip
    for path in (tmp_path / "out" / "labels").iterdir():
        (labels,) = read_label_files([path], CLASS_NAMES, None, on_bad_label="error")
        assert len(labels.class_ids) == len(path.read_text().splitlines())


FLAG_REFUSALS = [
    pytest.param(["--obj-thresh", 1.5], "--obj-thresh must be in [0, 1]", id="threshold"),
    pytest.param(["--batch-size", 0], "--batch-size must be 1 or more", id="batch size"),
    pytest.param(["--workers", 0], "--workers must be 1 or more", id="workers"),
    pytest.param(["--crop-height", 0], "--crop-height must be more than 0", id="no crop"),
    pytest.param(["--with-confidence"], "is of --save-preds", id="confidence of nothing"),
    pytest.param(["--output-img-filetype", ".tif"], "is of --draw-boxes", id="type of nothing"),
    pytest.param(["--zarr-layout", "hwn"], "is of --zarr", id="layout of nothing"),
    pytest.param(["--normalize-images"], "leave out --normalize-images", id="knows itself"),
    pytest.param(["--class-names", "A"], "--class-names has 1 names", id="other names"),
    pytest.param(["--crop-height", 0.5], "was exported for 96 rows of 96", id="other crop"),
]


@pytest.mark.parametrize(("flags", "message"), FLAG_REFUSALS)
def test_flags_refused(flags, message, models, frames, tmp_path, capsys):
    base = (models["ir"], "--images", frames, "--output", tmp_path / "out")
    assert message in refused_infer(capsys, *base, *flags)


def test_models_refused(models, frames, tmp_path, capsys):
    base = ("--images", frames, "--output", tmp_path / "out")
    assert "nowhere.xml: does not exist" in refused_infer(capsys, "nowhere.xml", *base)
    assert "expected a run's workdir" in refused_infer(capsys, tmp_path, *base)
    for name, message in (("a.xml", "OpenVINO cannot read it"), ("a.onnx", "cannot load it")):
        (tmp_path / name).write_text("no model")
        assert message in refused_infer(capsys, tmp_path / name, *base)
    message = refused_infer(capsys, models["onnx"], *base, "--half")
    assert "ONNX Runtime computes in the precision of the file" in message
    message = refused_infer(capsys, models["onnx"], *base, "--batch-size", 2)
    assert "--batch-size: an .onnx fixes it" in message


def test_without_the_runtimes_it_says_what_to_install(
    models, frames, tmp_path, capsys, monkeypatch
):
    base = ("--images", frames, "--output", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refused_infer(capsys, models["onnx"], *base)
    assert "ONNX Runtime is needed" in message
    assert "pip install 'yogo-jax[runtime]'" in message
    monkeypatch.setitem(sys.modules, "bridge.quiet_openvino", None)
    assert "OpenVINO is needed" in refused_infer(capsys, models["ir"], *base)


def test_help_teaches():
    done = run_command([sys.executable, "-m", "yogo_jax.infer", "--help"])
    assert done.returncode == 0
    for text in ("--images frames/ --output found --draw-boxes --count", "--resume", "--zarr"):
        assert text in done.stdout


def test_the_array_says_the_order_of_its_classes(models, frames, tmp_path):
    names = ["--class-names", "misc", "ring", "healthy"]
    flags = ["--images", frames, "--obj-thresh", THRESHOLD, "--save-npy", "--output"]
    run_infer(models["ir"], *flags, tmp_path / "out", *names)
    beside = json.loads((tmp_path / "out" / "run_7.json").read_text())
    assert beside["class_names"] == names[1:]


def test_blanks_around_class_names_are_no_part_of_them(models, frames, tmp_path):
    run_infer(models["ir"], "--images", frames, "--output", tmp_path, "--class-names", "a, b,c")
    assert list(json.loads((tmp_path / "counts.json").read_text())["by_class"]) == ["a", "b", "c"]


def test_a_class_name_twice_would_lose_counts(models, frames, tmp_path, capsys):
    flags = ["--images", frames, "--output", tmp_path, "--class-names", "a", "a", "b"]
    assert "--class-names has a twice" in refused_infer(capsys, models["ir"], *flags)


def test_names_that_are_no_utf8(models, frames, tmp_path):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    shutil.copy(os.fsencode(frames / "f0.png"), folder + b"/caf\xe9.png")
    flags = ["--draw-boxes", "--save-preds", "--csv", "--coco", "--count", "--output"]
    run_infer(models["ir"], "--images", tmp_path / "odd", *flags, tmp_path / "out")
    assert [row["image"] for row in read_rows(tmp_path / "out" / "counts.csv")] == [r"caf\xe9.png"]


@pytest.mark.parametrize("name", ["counts.csv", "coco.json"])
def test_resuming_nothing_does_not_write_over_other_files(models, frames, name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    flags = ["--images", frames, "--output", tmp_path, "--count", "--coco", "--resume"]
    assert f"already holds {name}" in refused_infer(capsys, models["ir"], *flags)
    assert (tmp_path / name).read_text() == "mine"


def test_a_pattern_that_matches_the_pictures_can_be_resumed(models, tmp_path):
    folder = write_frames(tmp_path / "run", count=2)
    flags = ["--images", f"{folder}/**/*.png", "--output", folder, "--draw-boxes", "--count"]
    run_infer(models["ir"], *flags)
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    run_infer(models["ir"], *flags, "--resume")
    assert len(read_rows(folder / "counts.csv")) == 2


@pytest.mark.parametrize("name", ["summary.json", "infer.journal"])
def test_json_of_others_is_named(models, frames, name, tmp_path, capsys):
    (tmp_path / name).write_text("[]\n")
    flags = ["--images", frames, "--output", tmp_path, "--count", "--resume"]
    assert "none of ours" in refused_infer(capsys, models["ir"], *flags)


def test_frames_that_are_resized_are_told_of_once(models, tmp_path, capsys):
    folder = write_frames(tmp_path / "large", count=3, image_hw=(192, 256))
    run_infer(models["ir"], "--images", folder, "--output", tmp_path / "out")
    said = capsys.readouterr().out
    assert said.count("frames of 192x256 px are resized to the 96x128 px") == 1


def test_whole_frames_of_a_crop_are_not_resized(models, frames, tmp_path, capsys):
    run_infer(models["half"], "--images", frames, "--output", tmp_path / "out")
    assert "resized" not in capsys.readouterr().out


def test_an_odd_frame_is_skipped_unless_it_is_the_first(models, tmp_path, capsys):
    """For a model that does not say of which frame it takes a part."""
    folder = write_frames(tmp_path / "run", count=3)
    model = onnx.load(models["onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    flags = ["--images", folder, "--class-names", ",".join(CLASS_NAMES), "--no-normalize-images"]
    Image.new("L", (50, 50)).save(folder / "thumbnail.png")
    run_infer(tmp_path / "plain.onnx", *flags, "--output", tmp_path / "out")
    (skipped,) = read_rows(tmp_path / "out" / "skipped.csv")
    assert skipped["image"] == "thumbnail.png"
    assert "the frame is 50x50: say how much of a frame it is for, --crop" in skipped["reason"]
    (folder / "thumbnail.png").rename(folder / "a.png")
    said = refused_infer(capsys, tmp_path / "plain.onnx", *flags, "--output", tmp_path / "again")
    assert "--crop-height 1 for the whole frame" in said
    assert "1.92" not in said  # rows of more than the frame has


def test_an_ir_without_its_weights_is_named(models, frames, tmp_path, capsys):
    shutil.copy(models["ir"], tmp_path / "model.xml")
    said = refused_infer(
        capsys, tmp_path / "model.xml", "--images", frames, "--output", tmp_path / "out"
    )
    assert "model.bin is missing" in said


def test_a_folder_with_a_dot_keeps_its_name(models, tmp_path):
    folder = write_frames(tmp_path / "2024-01-01 10.30.15", count=1)
    run_infer(models["ir"], "--images", folder, "--output", tmp_path / "out", "--save-npy")
    assert (tmp_path / "out" / "2024-01-01 10.30.15.npy").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers_is_refused(value, models, frames, tmp_path, capsys):
    metadata = read_metadata(models["checkpoint"])
    variables = restore_variables(models["checkpoint"], metadata.model)
    head = variables["params"]["head"]
    bias = np.asarray(head["bias"]).copy()
    bias[-1] = value  # of the last class
    spoiled = {**variables, "params": {**variables["params"], "head": {**head, "bias": bias}}}
    write_converted(tmp_path / "spoiled", metadata.model, spoiled, source="drawn")
    flags = ("--obj-thresh", THRESHOLD, "--output", tmp_path / "out", "--count")
    error = refused_infer(capsys, tmp_path / "spoiled", "--images", frames, *flags)
    assert "NaN or infinite values in " in error
    assert "f0.png" in error
