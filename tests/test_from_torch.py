"""Checkpoints of the original: what is read, what is taken over, and what is refused unrun."""

import collections
import io
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

from bridge import from_torch
from bridge.converted import recognize_architecture
from bridge.torch_archive import read_torch_archive
from parity import RECORDED_NAMES, load, parity_file
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.errors import UserError
from yogo_jax.synthetic.cells import CLASS_NAMES


def saved_quarter(**changes):
    """The content of a recorded file; a change of None removes an entry."""
    saved = dict(read_torch_archive(parity_file("model_quarter_filters.pth")))
    saved["model_state_dict"] = dict(saved["model_state_dict"])
    for name, value in changes.items():
        group = saved["model_state_dict"] if name.startswith("weights__") else saved
        key = name.removeprefix("weights__")
        if value is None:
            group.pop(key)
        else:
            group[key] = value
    return saved


@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_a_recorded_file_becomes_a_checkpoint(name, tmp_path):
    path = parity_file(f"model_{name}.pth")
    from_torch.main([str(path), "--output", str(tmp_path / "checkpoint")])
    folder = find_checkpoint(tmp_path / "checkpoint")
    metadata = read_metadata(folder)
    assert metadata.source == path.name
    assert (metadata.step, metadata.epoch) == (1234, 3)
    spec = metadata.model
    assert spec.architecture == name
    assert spec.class_names == tuple("abcdefg")
    assert spec.image_hw == (96, 128)
    assert not spec.rgb
    assert not spec.normalize_images
    recorded = load(f"model_{name}.npz")
    variables = restore_variables(folder, spec)
    # The recorded images are noise of any value, so they go in as floats and not as `predict`'s
    # uint8.
    apply = jax.jit(lambda each, images: spec.decode(spec.network().apply(each, images)))
    predictions = apply(variables, recorded["x"].transpose(0, 2, 3, 1))
    served = recorded["served"].transpose(0, 2, 3, 1)
    probs = jax.nn.softmax(predictions.class_logits)
    np.testing.assert_allclose(predictions.boxes_cxcywh, served[..., :4], atol=1e-5, rtol=2e-6)
    np.testing.assert_allclose(predictions.objectness, served[..., 4], atol=1e-5)
    np.testing.assert_allclose(probs, served[..., 5:], atol=1e-5)


def test_files_from_before_some_entries_existed():
    saved = saved_quarter(
        weights__is_rgb=None,
        weights__normalize_images=None,
        weights__height_multiplier=None,
        weights__width_multiplier=None,
        classes=None,
        model_version=None,
        normalize_images=None,
    )
    said = []
    spec, _ = from_torch.convert(saved, say=said.append)
    assert spec.architecture == "quarter_filters"
    assert spec.class_names == CLASS_NAMES
    assert spec.size_multiplier_wh == (1.0, 1.0)
    assert not spec.rgb
    assert not spec.normalize_images
    assert len(said) == 2


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        pytest.param({}, {}, False, id="not at all"),
        pytest.param({"weights__normalize_images": np.array(True)}, {}, True, id="in the network"),
        pytest.param({"normalize_images": True}, {}, True, id="only in the training"),
        pytest.param({}, {"normalize_images": True}, True, id="by the flag"),
    ],
)
def test_division_by_255_is_that_of_the_training(changes, options, expected):
    spec, _ = from_torch.convert(saved_quarter(**changes), say=lambda _: None, **options)
    assert spec.normalize_images is expected


def test_a_cropped_network_keeps_its_multiplier():
    saved = saved_quarter(
        weights__img_size=np.array([48, 128]), weights__height_multiplier=np.array(2.0)
    )
    spec, _ = from_torch.convert(saved)
    assert spec.image_hw == (48, 128)
    assert spec.size_multiplier_wh == (1.0, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RECORDED_NAMES) - {"silu_model"}))
def test_architectures_are_recognized_by_their_shapes(name):
    weights = read_torch_archive(parity_file(f"model_{name}.pth"))["model_state_dict"]
    assert recognize_architecture(weights) == name


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param({"model_state_dict": None}, {}, "model_state_dict", id="no weights"),
        pytest.param({"weights__img_size": None}, {}, "has no img_size", id="no image size"),
        pytest.param(
            {"weights__anchor_w": np.zeros(3)}, {}, "anchor_w must have 1 values", id="anchor"
        ),
        pytest.param(
            {"model_version": "yolo"}, {}, "unknown architecture 'yolo'", id="architecture"
        ),
        pytest.param(
            {"model_version": "half_filters"},
            {},
            r"no weights of half_filters: .* must have the shape \(8,\), got \(4,\)",
            id="other architecture",
        ),
        pytest.param(
            {"weights__model.4.0.weight": None}, {}, "block_4/conv/kernel", id="a weight is gone"
        ),
        pytest.param({"weights__is_rgb": np.array(True)}, {}, "is_rgb speaks of 3", id="rgb"),
        pytest.param({"weights__num_classes": np.array(4)}, {}, "4 classes, but 7", id="classes"),
        pytest.param({}, {"class_names": ("a", "b")}, "7 classes, but 2 names", id="names"),
    ],
)
def test_what_does_not_fit_is_refused(changes, options, message):
    with pytest.raises(UserError, match=message):
        from_torch.convert(saved_quarter(**changes), **options)


def test_a_network_of_unknown_classes_needs_their_names():
    saved = saved_quarter(classes=None, weights__num_classes=np.array(3))
    for name in ("model.7.weight", "model.7.bias"):
        saved["model_state_dict"][name] = saved["model_state_dict"][name][:8]
    with pytest.raises(UserError, match=r"none of its 3 classes: add --class-names A,B,C"):
        from_torch.convert(saved)
    spec, _ = from_torch.convert(saved, class_names=("x", "y", "z"))
    assert spec.class_names == ("x", "y", "z")


def write_archive(path, data: bytes, storages: tuple[bytes, ...] = ()) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage)


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(os.system, "posix.system", id="command"),
        pytest.param(eval, "builtins.eval", id="eval"),
        pytest.param(getattr, "builtins.getattr", id="getattr"),
        pytest.param(io.open, "open", id="file"),
        pytest.param(np.load, "numpy", id="numpy"),
    ],
)
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path, capsys, function, name):
    mark = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    evil = Evil(function, f"touch {mark}" if function is os.system else str(mark))
    # What is harmless comes first: nothing may have run when the rest is refused.
    write_archive(path, pickle.dumps(collections.OrderedDict(model_state_dict={}, x=evil)))
    output = tmp_path / "checkpoint"
    with pytest.raises(SystemExit) as stopped:
        from_torch.main([str(path), "--output", str(output)])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "refused, nothing of it was run" in message
    assert name in message
    assert not mark.exists()
    assert not output.exists()


def tensor_pickle(*, count: int, offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of one float tensor over storage 0, opcode by opcode as there is no PyTorch."""

    def ints(*values: int) -> bytes:
        return b"".join(b"I%d\n" % value for value in values)

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n" + ints(count) + b"tQ"
    arguments = storage + ints(offset) + b"(" + ints(*shape) + b"t(" + ints(*strides) + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


def test_a_tensor_is_a_view_of_its_storage_copied(tmp_path):
    storage = np.arange(8, dtype="<f4").tobytes()
    data = tensor_pickle(count=8, offset=1, shape=(2, 3), strides=(1, 2))
    write_archive(tmp_path / "x.pth", data, (storage,))
    np.testing.assert_array_equal(read_torch_archive(tmp_path / "x.pth"), [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        pytest.param({"offset": 1}, "reaches to element 4 of 4", id="past the end"),
        pytest.param({"strides": (2, 2)}, "reaches to element", id="strides"),
        pytest.param({"strides": (-1, 1)}, "strides", id="negative stride"),
        pytest.param({"offset": -1}, "at -1", id="negative offset"),
        pytest.param({"count": 9}, "16 bytes, not 36", id="storage too short"),
        pytest.param({"shape": (2,)}, "without a storage of its own", id="rank"),
        pytest.param({"strides": (0, 0), "shape": (99, 99)}, "over a storage of 4", id="bomb"),
    ],
)
def test_a_tensor_never_reads_outside_its_storage(tmp_path, tensor, message):
    values = {"count": 4, "offset": 0, "shape": (2, 2), "strides": (2, 1), **tensor}
    storage = np.arange(4, dtype="<f4").tobytes()
    write_archive(tmp_path / "x.pth", tensor_pickle(**values), (storage,))
    with pytest.raises(UserError, match=message):
        read_torch_archive(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "no zip archive", id="empty"),
        pytest.param(b"hello", "no zip archive", id="text"),
        pytest.param(b"PK\x03\x04rest", "cut off or damaged", id="truncated"),
        pytest.param(pickle.dumps({"a": 1}), "bare pickle", id="before 1.6"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_torch_archive(tmp_path / "x.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_torch_archive(tmp_path / "missing.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, share):
    whole = parity_file("model_quarter_filters.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="cut off or damaged"):
        read_torch_archive(tmp_path / "x.pth")


def test_an_existing_output_is_not_written_over(tmp_path, capsys):
    (tmp_path / "checkpoint").mkdir()
    path = parity_file("model_quarter_filters.pth")
    with pytest.raises(SystemExit):
        from_torch.main([str(path), "--output", str(tmp_path / "checkpoint")])
    assert "--output" in capsys.readouterr().err
