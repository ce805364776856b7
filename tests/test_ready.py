"""Networks of the package by name, with one that the test itself packs."""

import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import yogo_jax
from processes import two_processes
from runs import ROOT
from yogo_jax.calibrate import calibrate
from yogo_jax.checkpoint import ready
from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.ready import pack_network, ready_network, ready_networks, unpack_network
from yogo_jax.checkpoint.run_data import PATHS_OF_TRAIN, with_absolute_paths, with_paths_of
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.config.schema import Config
from yogo_jax.detector.network import init_variables
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


SPEC = ModelSpec(
    architecture="quarter_filters",
    class_names=("a", "b"),
    image_hw=(64, 96),
    anchor_wh=(0.25, 0.25),
    rgb=False,
    normalize_images=True,
)


def drawn_network() -> tuple[dict, Metadata]:
    variables = init_variables(SPEC.network(), jax.random.key(0), image_hw=(64, 96), channels=1)
    metadata = Metadata(
        model=SPEC,
        config={"data": {"definition": "/somebody/data.yml"}},
        step=7,
        epoch=1,
        position=7,
        data_fingerprint="f",
        validation={"mAP50": 0.5},
        git_revision="r",
    )
    return variables, metadata


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A network of the package named `tiny`."""
    folder = tmp_path / "networks"
    folder.mkdir()
    monkeypatch.setattr(ready, "NETWORKS", folder)
    monkeypatch.chdir(tmp_path)
    variables, metadata = drawn_network()
    pack_network(folder / "tiny.npz", variables, metadata)
    return folder / "tiny.npz"


def test_a_packed_network_is_the_same_in_half_precision(packed):
    variables, metadata = drawn_network()
    found, described = unpack_network(packed)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    assert described.model == SPEC
    assert (described.step, described.validation) == (7, {"mAP50": 0.5})
    # Nothing of the computer that it was trained on.
    assert b"somebody" not in packed.read_bytes()
    assert described.config == {}
    with zipfile.ZipFile(packed) as file:
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_DEFLATED}
    before = packed.read_bytes()
    pack_network(packed, variables, metadata)
    assert packed.read_bytes() == before


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    variables, metadata = drawn_network()
    variables["params"]["head"]["bias"] = variables["params"]["head"]["bias"].at[0].set(1e6)
    with pytest.raises(UserError, match="params/head/bias: its values leave the range"):
        pack_network(tmp_path / "large.npz", variables, metadata)
    assert not (tmp_path / "large.npz").exists()


def test_a_name_is_a_checkpoint(packed, tmp_path):
    assert find_checkpoint(ready.Path("tiny")) == packed
    # An export or a calibration gets what was found, and looks again.
    assert find_checkpoint(packed) == packed
    assert read_metadata(packed).model == SPEC
    expected, _ = unpack_network(packed)
    restored = restore_variables(packed, SPEC)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, expected))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    model = yogo_jax.load("tiny")
    assert model.class_names == ("a", "b")
    assert len(model.predict(np.zeros((64, 96), np.uint8)).class_names) == 2


def test_what_lies_here_goes_before_the_package(packed, tmp_path):
    assert ready_network("tiny") == packed
    for other in ("other", "./tiny", str(tmp_path / "tiny"), "runs/tiny"):
        assert ready_network(other) is None
    (tmp_path / "tiny").mkdir()
    assert ready_network("tiny") is None
    with pytest.raises(UserError, match=r"tiny: expected a run's workdir .* found neither"):
        find_checkpoint(ready.Path("tiny"))


def test_an_unknown_name_is_told_the_known_ones(packed):
    with pytest.raises(UserError, match=r"network of the package \(tiny\), found no such folder"):
        yogo_jax.load("tinny")


def test_a_network_of_the_package_is_not_changed(packed):
    before = packed.read_bytes()
    with pytest.raises(UserError, match=r"tiny is a network of the package and stays as it is"):
        calibrate(ready.Path("tiny"), "synthetic")
    assert packed.read_bytes() == before


def test_a_network_of_the_package_is_exported(packed, tmp_path):
    ir = yogo_jax.load("tiny").export(tmp_path / "exported")
    assert yogo_jax.load(ir).class_names == ("a", "b")


@pytest.mark.acceptance
def test_two_processes_start_from_a_network_of_the_package(packed, tmp_path):
    """Each reads it by itself, on all devices of both."""
    script = tmp_path / "read.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport jax\nimport numpy as np\n"
        "from yogo_jax.checkpoint import ready\n"
        "from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables\n"
        "from yogo_jax.parallel import Coordinates, Devices, join_processes\n"
        "_, _, coordinator, _, count, _, index = sys.argv\n"
        "join_processes(Coordinates(coordinator, int(count), int(index)))\n"
        f"ready.NETWORKS = Path({str(packed.parent)!r})\n"
        "folder = find_checkpoint(Path('tiny'))\n"
        "spec = read_metadata(folder).model\n"
        "for place in (None, Devices().copied):\n"
        "    leaves = jax.tree.leaves(restore_variables(folder, spec, place))\n"
        "    print(sum(float(np.abs(leaf.addressable_data(0)).sum()) for leaf in leaves))\n"
    )
    log = tmp_path / "log"
    processes = two_processes([sys.executable, str(script)], log)
    codes = [process.wait(timeout=120) for process in processes]
    said = [log.with_suffix(f".{index}").read_text() for index in range(2)]
    assert codes == [0, 0], said
    total = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(unpack_network(packed)[0]))
    for each in said:
        sums = [float(line) for line in each.splitlines() if "[Gloo]" not in line]
        assert sums == pytest.approx([total, total])


def test_a_run_records_the_name(packed, tmp_path):
    fields = {"data.definition": "synthetic", "train.from_pretrained": "tiny"}
    config = with_absolute_paths(Config.from_file("base", **fields))
    assert config.train.from_pretrained == "tiny"
    # It lies nowhere, but is not gone as the file of a project that was moved.
    recorded, now = (
        {"train": {**dict.fromkeys(PATHS_OF_TRAIN, ""), "from_pretrained": name}}
        for name in ("tiny", "/other")
    )
    assert with_paths_of(now, recorded) == recorded


NETWORKS = ready_networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_package(name, tmp_path):
    path = NETWORKS[name]
    assert path.stat().st_size <= 1_000_000
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for part in ("## Data", "## Made by", "## Measured", "## What it is not for"):
        assert part in card, f"{name}.md has no {part}"
    _, metadata = unpack_network(path)
    model = metadata.model
    assert set(model.class_names) <= set(card.replace(",", " ").replace("|", " ").split())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_of_strong_starts_from_a_network_of_the_package(name):
    model = read_metadata(NETWORKS[name]).model
    config = yogo_jax.Config.from_file("strong")
    assert model.architecture == config.model.name
    assert model.normalize_images == config.data.normalize_images


def test_the_package_has_networks_and_the_build_takes_them():
    assert NETWORKS
    assert '"networks/*"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_fresh_process_finds_boxes(tmp_path):
    """A network by name, in another folder, and a drawn frame."""
    code = (
        "import json, numpy as np, yogo_jax\n"
        "from yogo_jax.synthetic.smear import CLASS_PROPORTIONS, draw_frame, draw_slide\n"
        "rng = np.random.default_rng(0)\n"
        "slide, wanted = draw_slide(rng), {'cells_per_frame': 40}\n"
        "wanted['class_proportions'] = CLASS_PROPORTIONS\n"
        "frame = draw_frame(rng, slide, (480, 640), **wanted)\n"
        "found = yogo_jax.load('smear').predict(frame.image)\n"
        "print(json.dumps([len(frame.class_ids), len(found), found.class_names]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    true, found, names = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 * true < found < 1.5 * true
    assert "ring" in names
