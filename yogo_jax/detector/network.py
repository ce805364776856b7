"""The network: uint8 images to raw channels (tx, ty, tw, th, to, class logits) on the grid.

References:
  He et al. 2015, Delving Deep into Rectifiers (initialization), arXiv:1502.01852.
  Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002, section 4.1 (prior of
  the head).
  Ioffe and Szegedy 2015, Batch Normalization, arXiv:1502.03167.
  Tompson et al. 2015, Efficient Object Localization (dropout of channels), arXiv:1411.4280.
  Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num

from yogo_jax.detector.architectures import (
    LEAKY_SLOPE,
    ConvBackbone,
    ConvBlock,
    ConvNextBackbone,
)
from yogo_jax.detector.cpu_conv import flax_conv3x3
from yogo_jax.detector.decode import BOX_CHANNELS


BATCH_NORM_EPSILON = 1e-5
# Names of the layers whose shape follows from the number of outputs.
OUTPUT_LAYERS = frozenset({"head", "upsample"})
# Standard deviation of the head's kernel if it starts from a prior.
_HEAD_STD = 0.01


def drawn_flat(initializer: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """The same initializer, which draws along one axis: four axes take much longer to compile."""

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return initializer(key, (math.prod(shape),), dtype).reshape(shape)

    return draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialization:
    """The random draw of a fresh network's weights.

    Attributes:
      kernel_init: "fan_out", the original's, keeps the variance of the gradients, "fan_in" that of
        the features (He et al. 2015).
      objectness_prior: objectness that every cell starts with, from a head of small weights; 0
        draws the head like the other layers.
    """

    kernel_init: Literal["fan_out", "fan_in"] = "fan_out"
    objectness_prior: float = 0.0

    def kernel(self, slope: float = LEAKY_SLOPE) -> nn.initializers.Initializer:
        """Of a convolution before a leaky activation of that slope."""
        counted = -2 if self.kernel_init == "fan_in" else -1

        def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            fan = math.prod(shape[:-2]) * shape[counted]
            std = jnp.sqrt(jnp.asarray(2 / (1 + slope**2) / fan, dtype))
            return drawn_flat(nn.initializers.normal(std))(key, shape, dtype)

        return draw

    def head_kernel(self) -> nn.initializers.Initializer:
        """Of the head."""
        if not self.objectness_prior:
            return self.kernel()
        return drawn_flat(nn.initializers.normal(_HEAD_STD))

    def head_bias(self) -> nn.initializers.Initializer:
        """Of the head: 0, but for the objectness."""
        if not self.objectness_prior:
            return nn.initializers.zeros
        prior = math.log(self.objectness_prior / (1 - self.objectness_prior))

        def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            del key
            return jnp.zeros(shape, dtype).at[BOX_CHANNELS - 1].set(prior)

        return draw


ORIGINAL_INITIALIZATION = Initialization()


class BatchNorm(nn.Module):
    """Batch norm over the valid images of a batch, in the convention of the original.

    The running variance takes the unbiased variance of the batch (Flax's own takes the biased
    one), and padding images count neither in the statistics nor in their pixel number. It computes
    in float32 and gives back the precision that it got.
    """

    momentum: float = 0.9
    epsilon: float = BATCH_NORM_EPSILON

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, image_valid: Bool[Array, " b"] | None, train: bool
    ) -> Float[Array, "b h w c"]:
        """The normalised batch; `train` says whether its own statistics or the running ones."""
        channels, given_dtype = x.shape[-1], x.dtype
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            weight = jnp.ones(x.shape[:1]) if image_valid is None else image_valid.astype(x.dtype)
            pixels = weight.sum() * (x.shape[1] * x.shape[2])
            per_image = weight[:, None] / jnp.maximum(pixels, 1)
            mean = (x.sum((1, 2)) * per_image).sum(0)
            squares = jnp.square(x - mean.reshape(1, 1, 1, -1))
            var = (squares.sum((1, 2)) * per_image).sum(0)
            if not self.is_initializing():
                unbiased = var * pixels / jnp.maximum(pixels - 1, 1)
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale / jnp.sqrt(var + self.epsilon)
        shift = bias.reshape(1, 1, 1, -1)
        normed = (x - mean.reshape(1, 1, 1, -1)) * factor.reshape(1, 1, 1, -1) + shift
        return normed.astype(given_dtype)


class ConvUnit(nn.Module):
    """One `ConvBlock`: convolution, batch norm if any, activation, dropout of whole channels."""

    block: ConvBlock
    activation: str
    leaky_slope: float
    initialization: Initialization
    compute_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, image_valid: Bool[Array, " b"] | None, train: bool
    ) -> Float[Array, "b oh ow oc"]:
        """Features of the next stage."""
        block, given = self.block, x
        x = nn.Conv(
            block.channels,
            (3, 3),
            strides=block.stride,
            padding=((1, 1), (1, 1)),
            use_bias=block.bias,
            dtype=self.compute_dtype,
            conv_general_dilated=flax_conv3x3,
            kernel_init=self.initialization.kernel(self.leaky_slope),
            name="conv",
        )(x)
        if block.norm:
            x = BatchNorm(name="norm")(x, image_valid=image_valid, train=train)
        x = nn.silu(x) if self.activation == "silu" else nn.leaky_relu(x, self.leaky_slope)
        if block.dropout:
            x = nn.Dropout(block.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        return x + given if block.residual else x


class ConvNextUnit(nn.Module):
    """Depthwise 7x7, layer norm, two dense layers with GELU between, scaled and added."""

    layer_scale: float
    kernel_init: nn.initializers.Initializer
    compute_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Features of the same shape."""
        channels = x.shape[-1]
        gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (channels,))
        y = nn.Conv(
            channels,
            (7, 7),
            padding=((3, 3), (3, 3)),
            feature_group_count=channels,
            dtype=self.compute_dtype,
            kernel_init=self.kernel_init,
            name="depthwise",
        )(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        dense_init = drawn_flat(nn.initializers.truncated_normal(0.02))
        dense = functools.partial(nn.Dense, dtype=self.compute_dtype, kernel_init=dense_init)
        y = dense(4 * channels, name="expand")(y)
        y = nn.gelu(y, approximate=False)
        y = dense(channels, name="project")(y)
        return x + y * gamma.reshape(1, 1, 1, -1)


class ConvNextTrunk(nn.Module):
    """Stem and stages of a ConvNeXt; every further stage halves the resolution."""

    backbone: ConvNextBackbone
    kernel_init: nn.initializers.Initializer
    compute_dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow oc"]:
        """Features at a stride of `stem_stride * 2^(stages - 1)`."""
        unit_type = nn.remat(ConvNextUnit) if self.rematerialize else ConvNextUnit
        stages = zip(self.backbone.depths, self.backbone.channels, strict=True)
        for stage, (depth, channels) in enumerate(stages):
            stride = self.backbone.stem_stride if stage == 0 else 2
            if stage > 0:
                x = nn.LayerNorm(epsilon=1e-6, name=f"downsample_norm_{stage}")(x)
            x = nn.Conv(
                channels,
                (stride, stride),
                strides=stride,
                padding="VALID",
                dtype=self.compute_dtype,
                kernel_init=self.kernel_init,
                name=f"downsample_{stage}",
            )(x)
            if stage == 0:
                x = nn.LayerNorm(epsilon=1e-6, name="downsample_norm_0")(x)
            for unit in range(depth):
                x = unit_type(
                    self.backbone.layer_scale,
                    self.kernel_init,
                    self.compute_dtype,
                    name=f"stage_{stage}_{unit}",
                )(x)
        return x


class YogoNetwork(nn.Module):
    """The whole network of one architecture.

    Attributes:
      backbone: what to build, see `architectures.py`.
      num_classes: k, so that the head has `outputs` = 5 + k channels.
      normalize_images: divide pixels by 255 first, as the checkpoint was trained.
      compute_dtype: of convolutions and what lies between them; norms compute in float32, and what
        comes out is float32.
      initialization: how fresh weights are drawn.
      rematerialize: gradients keep the input of each ConvNeXt unit alone, see `train_outputs`.
    """

    backbone: ConvBackbone | ConvNextBackbone
    num_classes: int
    normalize_images: bool
    compute_dtype: DTypeLike = jnp.float32
    initialization: Initialization = ORIGINAL_INITIALIZATION
    rematerialize: bool = False

    def scaled(self, images: Num[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The input of the first layer, from pixels from 0 to 255."""
        x = images.astype(jnp.float32)
        return x / 255 if self.normalize_images else x

    @nn.compact
    def __call__(
        self,
        images: Num[Array, "b h w c"],
        *,
        train: bool = False,
        image_valid: Bool[Array, " b"] | None = None,
        blocks: Sequence[int] | None = None,
    ) -> Float[Array, "b oh ow oc"]:
        """Raw channels (tx, ty, tw, th, to, class logits) per cell, see `decode.py`.

        Args:
          images: pixels from 0 to 255, uint8 or float.
          train: statistics of the batch and dropout; needs a "dropout" key.
          image_valid: False on padding images, which batch norm leaves out; None is all valid.
          blocks: of a chain of blocks, compute these alone, and the head after the last block.
            `images` are then the features before the first of them. None is the whole network.
        """
        x = self.scaled(images) if blocks is None else images
        outputs = BOX_CHANNELS + self.num_classes
        dtype, backbone, drawn = self.compute_dtype, self.backbone, self.initialization
        head = functools.partial(nn.Conv, outputs, (1, 1), dtype=dtype, name="head")
        if isinstance(backbone, ConvBackbone):
            last = len(backbone.blocks) - 1
            for index in range(last + 1) if blocks is None else blocks:
                unit = ConvUnit(
                    backbone.blocks[index],
                    backbone.activation,
                    backbone.leaky_slope,
                    drawn,
                    dtype,
                    name=f"block_{index}",
                )
                x = unit(x, image_valid=image_valid, train=train)
            if blocks is not None and blocks[-1] != last:
                return x
            x = head(kernel_init=drawn.head_kernel(), bias_init=drawn.head_bias())(x)
            return x.astype(jnp.float32)
        factor = backbone.upsampling
        upsample = nn.ConvTranspose(
            outputs,
            (factor, factor),
            strides=(factor, factor),
            padding="VALID",
            dtype=dtype,
            kernel_init=drawn.head_kernel(),
            bias_init=drawn.head_bias(),
            name="upsample",
        )
        trunk = ConvNextTrunk(backbone, drawn.kernel(), dtype, self.rematerialize, name="trunk")
        x = head(kernel_init=drawn.kernel())(trunk(x))
        return upsample(x).astype(jnp.float32)


def init_variables(
    network: YogoNetwork, key: jax.Array, *, image_hw: tuple[int, int], channels: int
) -> dict:
    """Freshly drawn `params` and `batch_stats` (maybe empty); the key alone decides the values."""
    shape = (1, *image_hw, channels)
    return {"batch_stats": {}, **network.init(key, jnp.zeros(shape, jnp.uint8), train=False)}


def train_outputs(
    network: YogoNetwork,
    variables: Mapping[str, Any],
    images: Num[Array, "b h w c"],
    *,
    image_valid: Bool[Array, " b"],
    dropout_key: jax.Array,
    rematerialize: bool = False,
) -> tuple[Float[Array, "b gh gw outputs"], Any]:
    """Raw channels of a batch in training, and the new running statistics.

    Args:
      network: without weights.
      variables: `params` and `batch_stats`.
      images: pixels from 0 to 255.
      image_valid: False on padding images.
      dropout_key: draws the channels that are dropped.
      rematerialize: gradients keep what lies between segments of the network alone, and compute the
        rest again. The results are the same but for rounding.

    References:
      Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    apply = functools.partial(
        network.apply,
        train=True,
        image_valid=image_valid,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats"],
    )
    backbone, batch_stats = network.backbone, variables["batch_stats"]
    if not rematerialize or not isinstance(backbone, ConvBackbone):
        if rematerialize:
            apply = functools.partial(network.clone(rematerialize=True).apply, **apply.keywords)
        raw, mutated = apply(variables, images)
        return raw, mutated.get("batch_stats", {})
    x, new_stats = network.scaled(images), dict(batch_stats)

    def segment(blocks: Sequence[int]) -> Callable[[Any, Array], tuple[Array, Any]]:
        def features(params: Any, x: Array) -> tuple[Array, Any]:
            return apply({"params": params, "batch_stats": batch_stats}, x, blocks=blocks)

        return _rematerialized(features)

    for blocks in backbone.segments():
        x, mutated = segment(blocks)(variables["params"], x)
        # Those of other blocks come back as they were.
        names = {f"block_{index}" for index in blocks} & batch_stats.keys()
        new_stats |= {name: mutated["batch_stats"][name] for name in names}
    return x, new_stats


def _rematerialized(
    function: Callable[[Any, Array], tuple[Array, Any]],
) -> Callable[[Any, Array], tuple[Array, Any]]:
    """The same function of (params, features), which keeps no more than these for the gradients.

    Both gradients come out together: what one of them reads would be held until it is computed.
    """
    call = jax.custom_vjp(function)

    def forward(params: Any, x: Array) -> tuple[Any, Any]:
        return jax.vjp(jax.checkpoint(function), params, x)

    def backward(vjp: Callable[[Any], Any], gradient: Any) -> Any:
        return jax.lax.optimization_barrier(vjp(gradient))

    call.defvjp(forward, backward)
    return call
