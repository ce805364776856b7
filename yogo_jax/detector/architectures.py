"""The named architectures, as data: what `network.py` builds and what the grid follows from.

References:
  Liu et al. 2022, A ConvNet for the 2020s (ConvNeXt), arXiv:2201.03545, table 9 (ConvNeXt-S).
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from yogo_jax.detector.grid import convolved_hw, receptive_field
from yogo_jax.errors import UserError


# The original's.
LEAKY_SLOPE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvBlock:
    """3x3 convolution with padding 1, then batch norm if any, activation, channel dropout.

    A residual block adds its input to the result; it keeps resolution and channels.
    """

    channels: int
    stride: int = 1
    bias: bool = True
    norm: bool = False
    dropout: float = 0.0
    residual: bool = False

    def layers(self) -> Iterator[tuple[int, int, int]]:
        """(kernel, stride, padding) of its convolutions."""
        yield 3, self.stride, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvBackbone:
    """A chain of blocks with one activation; the head is a 1x1 convolution on top."""

    blocks: tuple[ConvBlock, ...]
    activation: Literal["leaky_relu", "silu"] = "leaky_relu"
    leaky_slope: float = LEAKY_SLOPE

    def grid_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the head for an image of `image_hw` pixels."""
        return convolved_hw(image_hw, self._layers())

    @property
    def receptive_field(self) -> int:
        """Side in px of the part of the image that a cell sees."""
        return receptive_field(self._layers())

    def segments(self) -> Iterator[range]:
        """Runs of blocks, each up to where the resolution falls; behind that every block alone."""
        last = max((i for i, block in enumerate(self.blocks) if block.stride > 1), default=-1)
        first = 0
        for index, block in enumerate(self.blocks):
            if block.stride > 1 or index > last:
                yield range(first, index + 1)
                first = index + 1

    def _layers(self) -> Iterator[tuple[int, int, int]]:
        return (layer for block in self.blocks for layer in block.layers())

    def scaled(self, factor: float) -> "ConvBackbone":
        """The same chain with all channels times `factor`."""
        blocks = (
            dataclasses.replace(block, channels=int(block.channels * factor))
            for block in self.blocks
        )
        return dataclasses.replace(self, blocks=tuple(blocks))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNextBackbone:
    """ConvNeXt without its classifier; a transposed 4x4 convolution undoes two of its strides."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    stem_stride: int = 4
    upsampling: int = 4
    layer_scale: float = 1e-6

    def grid_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the head for an image of `image_hw` pixels."""
        strides = (self.stem_stride, *(2 for _ in self.depths[1:]))
        rows, columns = convolved_hw(image_hw, ((stride, stride, 0) for stride in strides))
        return rows * self.upsampling, columns * self.upsampling

    @property
    def receptive_field(self) -> int:
        """Side in px of the part of the image that a cell sees."""
        layers = []
        for stage, depth in enumerate(self.depths):
            stride = self.stem_stride if stage == 0 else 2
            layers += [(stride, stride, 0), *[(7, 1, 3)] * depth]
        return receptive_field(layers)


Backbone = ConvBackbone | ConvNextBackbone


def _normed(channels: int, stride: int = 1, *, bias: bool = False) -> ConvBlock:
    return ConvBlock(channels=channels, stride=stride, bias=bias, norm=True)


def _plain(channels: int, stride: int = 1, *, dropout: float = 0.0) -> ConvBlock:
    return ConvBlock(channels=channels, stride=stride, dropout=dropout)


_BASE = ConvBackbone(
    blocks=(
        _normed(16, 2),
        _plain(32, dropout=0.05),
        _plain(64, 2, dropout=0.1),
        _plain(128, dropout=0.15),
        _normed(128, 2),
        _normed(128, bias=True),
        _plain(128),
    )
)


def _yogo(channels: int, residuals: int) -> ConvBackbone:
    """A network of ours: three strides, then residual blocks at stride 8, where pixels are few.

    The slope is one that half precision holds exactly, so that the stick computes the activation
    together with its convolution.
    """
    block = dataclasses.replace(_normed(channels), residual=True)
    strides = (_normed(16, 2), _normed(32, 2), _normed(channels, 2))
    return ConvBackbone(blocks=(*strides, *[block] * residuals), leaky_slope=1 / 8)


BACKBONES: dict[str, Backbone] = {
    "base_model": _BASE,
    "silu_model": dataclasses.replace(_BASE, activation="silu"),
    "double_filters": _BASE.scaled(2),
    "triple_filters": _BASE.scaled(3),
    "half_filters": _BASE.scaled(0.5),
    "quarter_filters": _BASE.scaled(0.25),
    "depth_ver_0": ConvBackbone(
        blocks=(_normed(32, 2), _plain(128, 2, dropout=0.1), _normed(128, 2))
    ),
    "depth_ver_1": ConvBackbone(
        blocks=(
            _normed(16, 2),
            _plain(64, 2, dropout=0.1),
            _plain(128, dropout=0.15),
            _normed(128, 2),
            _plain(128),
        )
    ),
    "depth_ver_2": _BASE,
    "depth_ver_3": ConvBackbone(
        blocks=(
            _normed(16, 2),
            _plain(32, dropout=0.05),
            _plain(32, dropout=0.05),
            _plain(64, 2, dropout=0.1),
            _plain(128, dropout=0.15),
            _normed(128, bias=True),
            # The original has neither bias nor batch norm here; weights of its checkpoints say so.
            ConvBlock(channels=128, stride=2, bias=False),
            _normed(128, bias=True),
            _plain(128),
        )
    ),
    "depth_ver_4": ConvBackbone(
        blocks=(
            _normed(16, 2),
            _plain(16),
            _plain(32, dropout=0.05),
            _plain(32, dropout=0.05),
            _plain(64, 2, dropout=0.1),
            _plain(64),
            _plain(128, dropout=0.15),
            _normed(128, bias=True),
            _plain(128, 2),
            _normed(128, bias=True),
            _plain(128),
        )
    ),
    "yogo_n": _yogo(64, 4),
    "yogo_s": _yogo(64, 6),
    "yogo_m": _yogo(96, 6),
    # As much work as yogo_s, in more layers with fewer channels.
    "yogo_d": _yogo(48, 11),
    "convnext_small": ConvNextBackbone(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
}


def get_backbone(name: str) -> Backbone:
    """The architecture of that name.

    Raises:
      UserError: no architecture has that name; the message lists those that exist.
    """
    if name not in BACKBONES:
        raise UserError(
            f"model.name: unknown architecture {name!r}; known are {', '.join(sorted(BACKBONES))}"
        )
    return BACKBONES[name]
