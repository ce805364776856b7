"""The Python interface: `yogo_jax.load`, and models that predict as `infer` does."""

import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import yogo_jax
from drawn_models import write_random_checkpoint
from inferences import THRESHOLD, detections, run_infer, write_frames, write_models
from runs import ROOT, run_command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data") / "run_7")


def run_python(script: str, *arguments: object) -> str:
    """The output of a script in a process of its own."""
    done = run_command([sys.executable, "-c", script, *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_checkpoint_keeps_its_compilations(models, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("YOGO_JAX_CACHE", str(tmp_path))
    script = (
        "import sys, yogo_jax; yogo_jax.load(sys.argv[1])\n"
        "import jax; print(jax.config.jax_compilation_cache_dir)"
    )
    folder = run_python(script, models["checkpoint"])
    assert folder.startswith(str(tmp_path / "compilations"))


def test_the_package_is_imported_in_no_time():
    script = (
        "import sys; before = set(sys.modules); import yogo_jax\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = set(ast.literal_eval(run_python(script)))
    assert not loaded & {"numpy", "jax", "jaxtyping", "PIL", "flax"}


def test_public_names():
    tree = ast.parse((ROOT / "yogo_jax" / "__init__.py").read_text())
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("yogo_jax")
        for alias in node.names
    }
    assert typed == yogo_jax._MODULES
    assert sorted(typed) == yogo_jax.__all__
    assert set(yogo_jax.__all__) <= set(dir(yogo_jax))
    for name in yogo_jax.__all__:
        assert getattr(yogo_jax, name).__module__ == typed[name]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        yogo_jax.lode  # noqa: B018


def rows_of(found: list[yogo_jax.Detections]) -> np.ndarray:
    """The rows that `infer --csv` writes, as `inferences.detections` reads them."""
    rows = [
        np.column_stack(
            [
                np.full(len(each), image_id),
                each.boxes_xyxy_px,
                each.objectness,
                each.class_ids,
                each.scores,
                each.class_probs,
            ]
        )
        for image_id, each in enumerate(found)
    ]
    return np.concatenate(rows)


MODELS = {
    "checkpoint": ("checkpoint", {}),
    "checkpoint, strip": ("checkpoint", {"crop_height": 0.5}),
    "xml": ("ir", {}),
    "onnx": ("onnx", {}),
    "xml, strip": ("half", {}),
}


@pytest.mark.parametrize(("model", "options"), MODELS.values(), ids=MODELS)
def test_predicts_what_infer_finds(model, options, models, frames, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    run_infer(
        models[model], "--images", frames, "--output", tmp_path, "--csv", *flags,
        "--obj-thresh", THRESHOLD, "--iou-thresh", 0.3, "--min-class-confidence-threshold", 0.34,
    )  # fmt: skip
    expected = detections(tmp_path)
    assert len(expected) > 10
    loaded = yogo_jax.load(models[model], **options)
    paths = sorted(frames.iterdir())
    found = loaded.predict(paths, objectness=THRESHOLD, iou=0.3, min_class_confidence=0.34)
    np.testing.assert_array_equal(rows_of(found).astype(np.float32), expected.astype(np.float32))
    alone = loaded.predict(str(paths[2]), THRESHOLD, 0.3, 0.34)
    np.testing.assert_array_equal(rows_of([alone])[:, 1:], rows_of(found[2:3])[:, 1:])


def test_images_of_all_kinds(models, frames):
    model = yogo_jax.load(models["ir"])
    path = sorted(frames.iterdir())[0]
    gray = np.asarray(Image.open(path))
    given = [path, gray, gray[..., None], np.repeat(gray[..., None], 3, 2)]
    found = model.predict(given, objectness=THRESHOLD)
    assert len(found[0]) > 3
    for image, each in zip(given[1:], found[1:], strict=True):
        np.testing.assert_array_equal(rows_of([each]), rows_of(found[:1]))
        assert each.image_hw == (96, 128)
        assert each.image.shape[:2] == (96, 128)
        assert np.shares_memory(each.image, image)
        assert each.draw().shape == (192, 256, 3)
    np.testing.assert_array_equal(found[0].image[..., 0], gray)


def test_boxes_are_in_pixels_of_the_image_that_was_given(models, frames):
    path = sorted(frames.iterdir())[0]
    large = Image.open(path).resize((256, 192), Image.Resampling.NEAREST)
    for model in (yogo_jax.load(models["ir"]), yogo_jax.load(models["half"])):
        found = model.predict(np.asarray(large), objectness=0.45)
        assert found.image_hw == (192, 256)
        centres = (found.boxes_xyxy_px[:, :2] + found.boxes_xyxy_px[:, 2:]) / 2
        assert centres[:, 0].max() > 128
        rows = (48, 144) if model.image_hw == (48, 128) else (0, 192)
        assert centres[:, 1].min() >= rows[0] - 8
        assert centres[:, 1].max() <= rows[1] + 8


def test_a_network_of_three_channels_sees_gray_images(frames, tmp_path):
    model = yogo_jax.load(write_random_checkpoint(tmp_path / "rgb", rgb=True))
    path = sorted(frames.iterdir())[0]
    found = model.predict([path, np.asarray(Image.open(path))], objectness=THRESHOLD)
    assert len(found[0]) > 0
    np.testing.assert_array_equal(rows_of(found[:1]), rows_of(found[1:]))


def test_what_a_model_says_of_itself(models):
    model = yogo_jax.load(str(models["half"]), class_names=["a", "b", "c"])
    assert isinstance(model, yogo_jax.Model)
    assert model.class_names == ("a", "b", "c")
    assert model.image_hw == (48, 128)
    assert model.thresholds == yogo_jax.Thresholds(0.5, 0.5, 0.0)
    assert repr(model).endswith("model.xml': 48x128 px, gray, f32, classes a, b, c)")


def test_thresholds_of_classes(models, frames):
    model = yogo_jax.load(models["ir"])
    path = sorted(frames.iterdir())[0]
    every = model.predict(path, objectness=THRESHOLD)
    # One threshold for all classes changes no class.
    least = tuple(float(np.median(every.scores)) for _ in every.class_names)
    some = model.predict(path, objectness=THRESHOLD, class_thresholds=least)
    kept = every.scores >= np.float32(least[0])
    np.testing.assert_array_equal(some.scores, every.scores[kept])
    np.testing.assert_array_equal(some.class_ids, every.class_ids[kept])
    # A low one draws boxes to its class, in all that follows from it.
    drawn = model.predict(path, class_thresholds=(0.9, 0.9, 1e-3))
    assert drawn.counts() == {"healthy": 0, "ring": 0, "misc": len(drawn)}
    assert len(drawn) > 3
    np.testing.assert_array_equal(drawn.scores, drawn.class_scores[:, 2])
    assert {each["category_id"] for each in drawn.to_coco(0)} == {2}
    assert drawn[1:3].class_ids.tolist() == [2, 2]
    assert (drawn.draw() != dataclasses.replace(drawn, class_thresholds=()).draw()).any()


IMAGE = np.zeros((96, 128), np.uint8)
REFUSED = {
    "empty list": (([],), {}, "found an empty list"),
    "floats": ((IMAGE / 255,), {}, "image 0: expected an image of uint8.* found float64"),
    "batch": (([IMAGE, IMAGE[None]],), {}, r"image 1: .* found uint8 of shape \(1, 96, 128\)"),
    "no rows": ((IMAGE[:0],), {}, r"found uint8 of shape \(0, 128\)"),
    "no file": (("nowhere.png",), {}, "nowhere.png: does not exist"),
    "objectness": ((IMAGE,), {"objectness": 1.5}, r"objectness must be in \[0, 1\], got 1.5"),
    "iou": ((IMAGE,), {"iou": -0.1}, r"iou must be in \[0, 1\], got -0.1"),
    "confidence": ((IMAGE,), {"min_class_confidence": 2}, "min_class_confidence must be in"),
    "too few": (
        (IMAGE,),
        {"class_thresholds": (0.5,)},
        "must have one for each of healthy, ring, misc, or none, got 1",
    ),
    "no threshold": (
        (IMAGE,),
        {"class_thresholds": (0.5, 0, 0.5)},
        "class_thresholds of ring must be 1e-06 or more, got 0",
    ),
}


@pytest.mark.parametrize(("given", "thresholds", "message"), REFUSED.values(), ids=REFUSED)
def test_predictions_refused(given, thresholds, message, models):
    model = yogo_jax.load(models["onnx"])
    with pytest.raises(yogo_jax.UserError, match=message):
        model.predict(*given, **thresholds)


def test_a_stack_is_refused(models, tmp_path):
    pages = [Image.fromarray(IMAGE)] * 2
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="a stack of 2 images"):
        yogo_jax.load(models["onnx"]).predict(tmp_path / "stack.tif")


LOAD_REFUSED = {
    "names": ({"class_names": "abc"}, "class_names must be a list of names"),
    "precision": ({"precision": "f64"}, "precision must be one of f32, bf16, f16, half, got 'f64'"),
    "crop": ({"crop_height": 0.0}, "crop_height must be more than 0"),
    "batch": ({"batch_size": 0}, "batch_size must be 1 or more"),
    "other names": ({"class_names": ("a", "b")}, "has 2 names"),
    "normalization": ({"normalize_images": True}, "says itself whether its pixels are divided"),
}


@pytest.mark.parametrize(("options", "message"), LOAD_REFUSED.values(), ids=LOAD_REFUSED)
def test_models_refused(options, message, models):
    with pytest.raises(yogo_jax.UserError, match=message):
        yogo_jax.load(models["ir"], **options)
    with pytest.raises(yogo_jax.UserError, match="expected a run's workdir"):
        yogo_jax.load("nowhere")


# Refuses the packages of a training, as where they are not installed.
WITHOUT_JAX = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "grain"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refusing())
"""


@pytest.mark.parametrize("kind", ["ir", "onnx"])
def test_exported_models_run_without_jax(kind, models, frames, tmp_path):
    path = sorted(frames.iterdir())[0]
    script = WITHOUT_JAX + (
        "import yogo_jax\n"
        "found = yogo_jax.load(sys.argv[1]).predict(sys.argv[2], objectness=float(sys.argv[3]))\n"
        "assert len(found) and found.draw().any() and found.to_coco(0)\n"
        "from yogo_jax import infer\n"
        "infer.main([sys.argv[1], '--images', sys.argv[2], '--output', sys.argv[4],\n"
        "    '--obj-thresh', sys.argv[3], '--draw-boxes', '--csv', '--coco', '--save-npy'])\n"
        "assert not {'jax', 'flax', 'optax', 'orbax'} & set(sys.modules)\n"
        "print(len(found))\n"
    )
    said = run_python(script, models[kind], path, THRESHOLD, tmp_path / "out")
    count = int(said.splitlines()[-1])
    assert len(detections(tmp_path / "out")) == count > 0


@pytest.mark.slow
def test_exported_and_loaded_again(models, frames, tmp_path):
    model = yogo_jax.load(models["checkpoint"], crop_height=0.5)
    ir = model.export(tmp_path / "exported", precision="fp32", target="cpu")
    assert ir == tmp_path / "exported" / "model.xml"
    path = sorted(frames.iterdir())[0]
    again = yogo_jax.load(ir)
    assert again.image_hw == model.image_hw == (48, 128)
    ours, theirs = (each.predict(path, objectness=THRESHOLD) for each in (model, again))
    np.testing.assert_allclose(ours.boxes_xyxy_px, theirs.boxes_xyxy_px, atol=1e-2)
    with pytest.raises(yogo_jax.UserError, match="--target must be one of ncs2, cpu"):
        model.export(tmp_path / "other", target="gpu")
    with pytest.raises(yogo_jax.UserError, match="is exported already"):
        again.export(tmp_path / "other")


def test_types_are_shipped():
    assert (Path(yogo_jax.__file__).parent / "py.typed").exists()
