import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.converted import to_variables
from bridge.torch_archive import read_torch_archive
from parity import RECORDED_NAMES, load, parity_file
from yogo_jax.detector.architectures import BACKBONES, ConvNextBackbone, get_backbone
from yogo_jax.detector.decode import decode
from yogo_jax.detector.network import (
    BatchNorm,
    Initialization,
    YogoNetwork,
    init_variables,
    train_outputs,
)
from yogo_jax.errors import UserError


RECIPE_NAMES = ("double_filters", "triple_filters", "depth_ver_2", "convnext_small")


def make_network(name: str, num_classes: int = 7) -> YogoNetwork:
    return YogoNetwork(get_backbone(name), num_classes, normalize_images=False)


def to_nhwc(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def upstream_layout(predictions, class_values) -> np.ndarray:
    """Predictions of a batch as the original's [b 5+k gh gw]."""
    parts = (predictions.boxes_cxcywh, predictions.objectness[..., None], class_values)
    return np.asarray(jnp.concatenate(parts, -1)).transpose(0, 3, 1, 2)


def decode_batch(raw, anchor_wh, size_multiplier_wh=(1.0, 1.0)):
    one = functools.partial(decode, anchor_wh=anchor_wh, size_multiplier_wh=size_multiplier_wh)
    return jax.vmap(one)(raw)


def num_params(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# Their receptive field by hand: 15 px after three strides of 2, then 16 px more with each layer.
OUR_NAMES = ("yogo_n", "yogo_s", "yogo_m", "yogo_d")


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("base_model", 59), ("depth_ver_0", 15)),
        *(("yogo_n", 79), ("yogo_s", 111), ("yogo_m", 111), ("yogo_d", 191)),
    ],
)
def test_receptive_fields(name, side):
    assert get_backbone(name).receptive_field == side


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["base_model", "yogo_n"])
def test_a_cell_sees_its_receptive_field_and_no_more(name):
    network = make_network(name, 2)
    variables = init_variables(network, jax.random.key(1), image_hw=(64, 64), channels=1)
    size = 8 * 21

    def middle(image):
        raw = network.apply(variables, image[None])
        return raw[0, raw.shape[1] // 2, raw.shape[2] // 2, 4]

    image = jax.random.uniform(jax.random.key(2), (size, size, 1), minval=50, maxval=200)
    seen = np.argwhere(np.asarray(jax.jit(jax.grad(middle))(image))[..., 0])
    assert (np.ptp(seen, axis=0) + 1).tolist() == [get_backbone(name).receptive_field] * 2


def test_a_head_starts_from_its_prior():
    drawn = Initialization(kernel_init="fan_in", objectness_prior=0.05)
    network = YogoNetwork(get_backbone("yogo_n"), 7, True, initialization=drawn)
    variables = init_variables(network, jax.random.key(0), image_hw=(64, 64), channels=3)
    images = jax.random.randint(jax.random.key(1), (2, 64, 96, 3), 0, 256).astype(jnp.uint8)
    objectness = jax.nn.sigmoid(network.apply(variables, images)[..., 4])
    np.testing.assert_allclose(objectness, 0.05, atol=0.03)
    kernel = variables["params"]["block_4"]["conv"]["kernel"]
    expected = np.sqrt(2 / (1 + 1 / 64) / (9 * 64))
    assert float(kernel.std()) == pytest.approx(expected, rel=0.02)


def test_all_twelve_architectures_of_the_original_are_covered():
    assert sorted((*RECORDED_NAMES, *RECIPE_NAMES, *OUR_NAMES)) == sorted(BACKBONES)


@pytest.mark.optimized
@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_recorded_outputs_of_a_checkpoint(name):
    recorded = load(f"model_{name}.npz")
    state = read_torch_archive(parity_file(f"model_{name}.pth"))["model_state_dict"]
    variables, network = to_variables(state, name), make_network(name)
    anchor_wh = (float(state["anchor_w"]), float(state["anchor_h"]))
    apply = jax.jit(network.apply)

    predictions = decode_batch(apply(variables, to_nhwc(recorded["x"])), anchor_wh)
    raw = upstream_layout(predictions, predictions.class_logits)
    served = upstream_layout(predictions, jax.nn.softmax(predictions.class_logits))
    # Some boxes of depth_ver_4 are 3.8 images tall: there PyTorch itself strays by 1.2e-5 from one
    # CPU to the next, hence the small relative part.
    np.testing.assert_allclose(raw, recorded["raw"], atol=1e-5, rtol=2e-6)
    np.testing.assert_allclose(served, recorded["served"], atol=1e-5, rtol=2e-6)

    cropped = decode_batch(
        apply(variables, to_nhwc(recorded["x"][:, :, 24:72])), anchor_wh, (1.0, 2.0)
    )
    crop48 = upstream_layout(cropped, jax.nn.softmax(cropped.class_logits))
    assert cropped.objectness.shape[1:] == tuple(recorded["grid"])
    np.testing.assert_allclose(crop48, recorded["crop48"], atol=1e-5, rtol=2e-6)
    assert num_params(variables["params"]) == recorded["num_params"]


def recipe_state(recorded: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The weights that the recording was made with: drawn anew from each parameter's name."""
    state = {}
    for key, shape_text in zip(recorded[f"{name}/names"], recorded[f"{name}/shapes"], strict=True):
        shape = tuple(int(part) for part in str(shape_text).split("x"))
        rng = np.random.default_rng(zlib.crc32(str(key).encode()))
        leaf = str(key).split(".")[-1]
        if leaf == "running_var":
            value = rng.uniform(0.5, 1.5, shape)
        elif leaf == "running_mean":
            value = rng.normal(0, 0.1, shape)
        elif leaf == "gamma":
            value = rng.uniform(0.1, 0.3, shape)
        elif leaf == "bias":
            value = rng.normal(0, 0.05, shape)
        elif len(shape) == 1:
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = rng.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[str(key)] = value.astype(np.float32)
    return state


@pytest.mark.optimized
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_recorded_outputs_of_recipe_weights(name):
    recorded = load("recipe_models.npz")
    state = recipe_state(recorded, name)
    variables = to_variables(state, name)
    logits = jax.jit(make_network(name).apply)(variables, to_nhwc(recorded[f"{name}/x"]))
    in_order = np.asarray(logits).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(in_order, recorded[f"{name}/logits"], rtol=1e-4, atol=1e-4)

    predictions = decode_batch(logits, (0.0425, 0.0555))
    raw = upstream_layout(predictions, predictions.class_logits)
    np.testing.assert_allclose(raw[:, :5], recorded[f"{name}/raw"][:, :5], rtol=1e-5, atol=1e-5)
    assert num_params(variables["params"]) == recorded[f"{name}/num_params"]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_grid_arithmetic_agrees_with_the_network(name):
    network = make_network(name)
    images = jax.ShapeDtypeStruct((1, 193, 260, 1), jnp.uint8)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    raw = jax.eval_shape(network.apply, variables, images)
    assert raw.shape[1:3] == network.backbone.grid_hw((193, 260))
    assert raw.shape[3] == 12


@pytest.mark.parametrize(
    ("name", "image_hw", "grid_hw"),
    [
        pytest.param("base_model", (772, 1032), (97, 129), id="full frame"),
        pytest.param("base_model", (193, 1032), (25, 129), id="instrument's crop"),
        pytest.param("convnext_small", (772, 1032), (96, 128), id="convnext"),
    ],
)
def test_grids_of_the_instrument(name, image_hw, grid_hw):
    assert get_backbone(name).grid_hw(image_hw) == grid_hw


def test_unknown_architecture_names_those_that_exist():
    with pytest.raises(UserError, match=r"unknown architecture 'base'.*base_model"):
        get_backbone("base")


def test_fresh_weights_have_the_deviation_of_kaiming():
    variables = init_variables(
        make_network("base_model"), jax.random.key(3), image_hw=(32, 32), channels=1
    )
    kernel = variables["params"]["block_4"]["conv"]["kernel"]
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / 1.0001 / (128 * 9)), rel=0.01)
    biases = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if "bias" in jax.tree_util.keystr(path)
    ]
    assert all(not leaf.any() for leaf in biases)


def test_division_by_255_is_inside_the_network():
    plain = make_network("quarter_filters")
    scaled = plain.clone(normalize_images=True)
    variables = init_variables(plain, jax.random.key(0), image_hw=(32, 32), channels=1)
    images = jax.random.randint(jax.random.key(1), (2, 32, 32, 1), 0, 256).astype(jnp.uint8)
    expected = jax.jit(plain.apply)(variables, images.astype(jnp.float32) / 255)
    np.testing.assert_allclose(jax.jit(scaled.apply)(variables, images), expected, atol=1e-6)


def test_batch_norm_ignores_padding_images():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3))
    padded = jnp.concatenate([x, jnp.full((2, 5, 6, 3), 1e3)])
    norm = BatchNorm()
    variables = norm.init(jax.random.key(1), x, image_valid=None, train=True)

    def run(batch, image_valid):
        return norm.apply(
            variables, batch, image_valid=image_valid, train=True, mutable=["batch_stats"]
        )

    alone, stats = run(x, None)
    with_padding, padded_stats = run(padded, jnp.arange(6) < 4)
    np.testing.assert_allclose(with_padding[:4], alone, atol=1e-6)
    for name, expected in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2), ddof=1))):
        start = 0.0 if name == "mean" else 1.0
        for found in (stats, padded_stats):
            value = found["batch_stats"][name]
            np.testing.assert_allclose(value, 0.9 * start + 0.1 * expected, rtol=1e-5, atol=1e-6)


def test_dropout_drops_whole_channels_of_single_images():
    network = make_network("depth_ver_0")
    variables = init_variables(network, jax.random.key(0), image_hw=(64, 64), channels=1)
    images = jax.random.randint(jax.random.key(1), (4, 64, 64, 1), 0, 256).astype(jnp.uint8)
    _, state = network.apply(
        variables,
        images,
        train=True,
        rngs={"dropout": jax.random.key(2)},
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name == "block_1",
    )
    (features,) = state["intermediates"]["block_1"]["__call__"]
    dropped = np.asarray((features == 0).all(axis=(1, 2)))
    assert 0.03 < dropped.mean() < 0.2
    assert (dropped.any(0) & ~dropped.all(0)).any()
    assert not np.asarray(features == 0)[
        ~np.broadcast_to(dropped[:, None, None], features.shape)
    ].any()


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("shape", [(3, 3, 1, 16), (1, 1, 64, 12), (7, 7, 1, 8)], ids=str)
def test_kernels_are_the_draws_of_variance_scaling(mode, shape):
    key, slope = jax.random.key(3), 0.125
    library = nn.initializers.variance_scaling(2 / (1 + slope**2), mode, "normal")
    drawn = Initialization(kernel_init=mode).kernel(slope)(key, shape)
    np.testing.assert_array_equal(drawn, library(key, shape, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quarter_filters", "yogo_n", "depth_ver_3", "tiny_convnext"])
def test_features_computed_twice_give_the_same_gradients(name, monkeypatch):
    tiny = ConvNextBackbone(depths=(1, 2), channels=(8, 16))
    monkeypatch.setitem(BACKBONES, "tiny_convnext", tiny)
    network = make_network(name)
    variables = init_variables(network, jax.random.key(0), image_hw=(48, 64), channels=1)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 48, 64, 1)), jnp.uint8)
    valid = jnp.asarray([True, True, True, False])

    def result(params, rematerialize):
        raw, stats = train_outputs(
            network,
            {**variables, "params": params},
            images,
            image_valid=valid,
            dropout_key=jax.random.key(1),
            rematerialize=rematerialize,
        )
        return jnp.square(raw).sum(), (raw, stats)

    def both(rematerialize):
        function = functools.partial(result, rematerialize=rematerialize)
        return jax.jit(jax.value_and_grad(function, has_aux=True))(variables["params"])

    (_, plain), gradients = both(False)
    (_, twice), gradients_twice = both(True)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    assert jax.tree.structure((plain, gradients)) == jax.tree.structure((twice, gradients_twice))
    for ours, theirs in zip(jax.tree.leaves(twice), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradients_twice), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("base_model", [[0], [1, 2], [3, 4], [5], [6]]),
        ("depth_ver_0", [[0], [1], [2]]),
        ("depth_ver_4", [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9], [10]]),
    ],
)
def test_segments_end_where_the_resolution_falls(name, segments):
    found = [list(each) for each in get_backbone(name).segments()]
    assert [i for blocks in found for i in blocks] == list(range(len(get_backbone(name).blocks)))
    assert found == segments
