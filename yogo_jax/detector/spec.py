"""What a model is, apart from its weights: everything that using it takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, UInt8

from yogo_jax.detector.backbones import get_backbone
from yogo_jax.detector.decode import Predictions, decode
from yogo_jax.detector.network import YogoNetwork
from yogo_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The description that travels in every checkpoint.

    Attributes:
      architecture: a name in `backbones.py`.
      class_names: in the order of the class channels.
      image_hw: the size in px that the network was trained for.
      anchor_wh: the prior, as fractions of that image.
      rgb: three channels instead of one.
      normalize_images: whether pixels are divided by 255 inside.
      size_multiplier_wh: original size / cropped size of a network for a crop.
    """

    architecture: str
    class_names: tuple[str, ...]
    image_hw: tuple[int, int]
    anchor_wh: tuple[float, float]
    rgb: bool
    normalize_images: bool
    size_multiplier_wh: tuple[float, float] = (1.0, 1.0)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 3 if self.rgb else 1

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of the head."""
        return get_backbone(self.architecture).grid_hw(self.image_hw)

    def network(self) -> YogoNetwork:
        """The network, without weights."""
        return YogoNetwork(
            get_backbone(self.architecture), len(self.class_names), self.normalize_images
        )

    def decode(self, raw: Float[Array, "b gh gw outputs"]) -> Predictions:
        """Predictions of a batch from the raw channels of its head."""

        def one(image_raw: Array) -> Predictions:
            return decode(
                image_raw, anchor_wh=self.anchor_wh, size_multiplier_wh=self.size_multiplier_wh
            )

        return jax.vmap(one)(raw)

    def predict(self, variables: Mapping[str, Any], images: UInt8[Array, "b h w c"]) -> Predictions:
        """Predictions of a batch with running statistics and no dropout."""
        raw = self.network().apply(variables, images, train=False)
        assert isinstance(raw, jax.Array)
        return self.decode(raw)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """The spec from what `to_dict` gave, after JSON.

        Raises:
          UserError: fields are missing or unknown.
        """
        try:
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
            return cls(**plain)
        except (TypeError, AttributeError) as error:
            raise UserError(f"this description of a model cannot be used: {error}") from error
