"""The description of a model: everything that using it takes, apart from its weights."""

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, UInt8

from yogo_jax.detector.architectures import get_backbone
from yogo_jax.detector.decode import Predictions, decode
from yogo_jax.detector.grid import whole_frame_hw
from yogo_jax.detector.network import ORIGINAL_INITIALIZATION, Initialization, YogoNetwork
from yogo_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The description that travels in every checkpoint.

    Attributes:
      architecture: a name in `architectures.py`.
      class_names: in the order of the class channels.
      image_hw: the size in px that the network was trained for.
      anchor_wh: the prior, as fractions of that image.
      rgb: three channels instead of one.
      normalize_images: whether pixels are divided by 255 inside.
      size_multiplier_wh: original size / cropped size of a network for a crop.
      class_temperature: what class logits are divided by, so that their probabilities are as often
        right as they say; see `metrics/calibration.py`.
      apply_orientation: whether images are turned as their EXIF or TIFF tag says.
    """

    architecture: str
    class_names: tuple[str, ...]
    image_hw: tuple[int, int]
    anchor_wh: tuple[float, float]
    rgb: bool
    normalize_images: bool
    size_multiplier_wh: tuple[float, float] = (1.0, 1.0)
    class_temperature: float = 1.0
    apply_orientation: bool = True

    def __post_init__(self) -> None:
        # In the form of Unicode that definitions are read in: the same text has several.
        names = tuple(unicodedata.normalize("NFC", name) for name in self.class_names)
        object.__setattr__(self, "class_names", names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 3 if self.rgb else 1

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(rows, columns) of the head."""
        return get_backbone(self.architecture).grid_hw(self.image_hw)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Rows and columns of the whole frame of which `image_hw` is the middle."""
        multiplier_w, multiplier_h = self.size_multiplier_wh
        return whole_frame_hw(self.image_hw, (multiplier_w, multiplier_h))

    def network(
        self,
        compute_dtype: DTypeLike = jnp.float32,
        initialization: Initialization = ORIGINAL_INITIALIZATION,
    ) -> YogoNetwork:
        """The network, without weights."""
        return YogoNetwork(
            get_backbone(self.architecture),
            len(self.class_names),
            self.normalize_images,
            compute_dtype,
            initialization,
        )

    def decode(self, raw: Float[Array, "b gh gw outputs"]) -> Predictions:
        """Predictions of a batch from the raw channels of its head."""

        def one(image_raw: Array) -> Predictions:
            return decode(
                image_raw, anchor_wh=self.anchor_wh, size_multiplier_wh=self.size_multiplier_wh
            )

        predictions = jax.vmap(one)(raw)
        if self.class_temperature == 1:
            return predictions
        class_logits = predictions.class_logits / self.class_temperature
        return predictions._replace(class_logits=class_logits)

    def predict(
        self,
        variables: Mapping[str, Any],
        images: Num[Array, "b h w c"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> Predictions:
        """Predictions of a batch with running statistics and no dropout.

        Args:
          variables: `params` and `batch_stats`.
          images: pixels from 0 to 255.
          compute_dtype: of the convolutions and of what lies between them; the result is float32.
        """
        raw = self.network(compute_dtype).apply(variables, images, train=False)
        assert isinstance(raw, jax.Array)
        return self.decode(raw)

    def outputs(
        self,
        variables: Mapping[str, Any],
        images: UInt8[Array, "b h w c"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b outputs gh gw"]:
        """`predict` in the layout of exported models: xc, yc, w, h, objectness, class probs."""
        return self.layout(self.predict(variables, images, compute_dtype=compute_dtype))

    def layout(self, predictions: Predictions) -> Float[Array, "b outputs gh gw"]:
        """Predictions of a batch in the layout of exported models."""
        parts = (
            predictions.boxes_cxcywh,
            predictions.objectness[..., None],
            jax.nn.softmax(predictions.class_logits),
        )
        return jnp.concatenate(parts, axis=-1).transpose(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `apply_orientation` only where it is off."""
        values = dataclasses.asdict(self)
        if self.apply_orientation:
            del values["apply_orientation"]  # code before there was such a field reads the rest
        return values

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


def served_spec(
    spec: ModelSpec,
    *,
    crop_height: float | None = None,
    image_hw: tuple[int, int] | None = None,
) -> ModelSpec:
    """The model for images of another size at the same scale: cells keep their size in px.

    Args:
      spec: as trained.
      crop_height: rows to keep, all columns: up to 1 a fraction of the height, above that px.
      image_hw: rows and columns instead.

    Raises:
      UserError: the size is not positive, or smaller than one cell of the grid.
    """
    rows, columns = spec.image_hw
    if crop_height is not None:
        wanted = round(crop_height * rows) if crop_height <= 1 else round(crop_height)
        if wanted > rows:
            raise UserError(f"--crop-height {crop_height:g}: the network's images have {rows} rows")
        image_hw = (wanted, columns)
    if image_hw is None:
        return spec
    grid_rows, grid_columns = spec.grid_hw
    cell_hw = (-(-rows // grid_rows), -(-columns // grid_columns))
    if image_hw[0] < cell_hw[0] or image_hw[1] < cell_hw[1]:
        raise UserError(
            f"an image of {image_hw[0]}x{image_hw[1]} px is smaller than one cell of the grid, "
            f"{cell_hw[0]}x{cell_hw[1]} px: choose a larger --crop-height or --image-hw"
        )
    multiplier_w, multiplier_h = spec.size_multiplier_wh
    return dataclasses.replace(
        spec,
        image_hw=image_hw,
        size_multiplier_wh=(
            multiplier_w * columns / image_hw[1],
            multiplier_h * rows / image_hw[0],
        ),
    )
