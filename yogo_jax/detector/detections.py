"""The detections of one image, as NumPy arrays, and the thresholds that they passed."""

import base64
import dataclasses
import html
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from yogo_jax.drawing import as_frame, draw_boxes
from yogo_jax.errors import UserError


WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
# Rows of the table that stands for detections without a picture.
_MOST_ROWS = 10
# By so much rounding of half precision may leave [0, 1].
_ROUNDING = 1e-3


class NotNumbersError(UserError):
    """A network gives values that are NaN or infinite, where it may see an object."""


def check_numbers(unusable: int, image: str) -> None:
    """Refuses an image of that name if cells were left out because they hold no numbers.

    Raises:
      NotNumbersError: there are such cells.
    """
    if unusable:
        cells = "1 cell" if unusable == 1 else f"{unusable} cells"
        raise not_numbers(image, f"NaN or infinite values in {cells}")


def not_numbers(image: str, found: str) -> NotNumbersError:
    """The error on an image for which a network gives something else than numbers."""
    return NotNumbersError(
        f"{image}: the network gives {found}, expected numbers. In half precision values leave its "
        "range: compute in f32. If it is so in f32, too, the weights are damaged: use another "
        "checkpoint"
    )


class Thresholds(NamedTuple):
    """The thresholds that a box passes to count as a detection, and the rule for its class.

    Without class thresholds a box has its most probable class. With them, the score of a class is
    objectness times its probability; a box has the class of the largest ratio of score and
    threshold (of equal ones the first), and counts if that score reaches its threshold.

    Attributes:
      objectness: a box lies above it.
      iou: of the NMS.
      min_class_confidence: probability that the class of a box exceeds, if it is above 0.
      class_thresholds: least score of each class, above 0; empty: the most probable class.
    """

    objectness: float = 0.5
    iou: float = 0.5
    min_class_confidence: float = 0.0
    class_thresholds: tuple[float, ...] = ()

    @classmethod
    def of_classes(cls, class_thresholds: Sequence[float], iou: float = 0.5) -> "Thresholds":
        """The thresholds by which every box counts that reaches one of its class thresholds.

        No score exceeds the objectness, so a box below the least of them never counts.
        """
        # A box lies above the objectness threshold, but may lie at that of its class.
        least = np.nextafter(np.float32(min(class_thresholds)), np.float32(0))
        return cls(min(float(least), 1.0), iou, 0.0, tuple(map(float, class_thresholds)))

    def changed(
        self,
        class_names: Sequence[str],
        *,
        objectness: float | None = None,
        iou: float | None = None,
        min_class_confidence: float | None = None,
        class_thresholds: Sequence[float] | None = None,
    ) -> "Thresholds":
        """These thresholds of a model, with others that a user gives in their place.

        Args:
          class_names: of the model.
          objectness: None keeps it, here and below; but beside class thresholds that are given it
            is what `of_classes` says.
          iou: of the NMS.
          min_class_confidence: see above.
          class_thresholds: empty is the rule of the most probable class, above objectness 0.5.

        Raises:
          UserError: a value is out of range, class thresholds are not one a class, or an objectness
            is given to a model that decides by class thresholds.
        """
        at = self
        if class_thresholds is None:
            if at.class_thresholds and objectness is not None:
                said = ", ".join(
                    f"{name} {each:g}"
                    for name, each in zip(class_names, at.class_thresholds, strict=True)
                )
                raise UserError(
                    f"objectness {objectness:g}: this model decides by a score of each class "
                    f"({said}), not by objectness: leave out the objectness (--obj-thresh), or add "
                    "--decision most_probable (in Python class_thresholds=()), by which boxes "
                    "above an objectness have their most probable class"
                )
        else:
            class_thresholds = tuple(class_thresholds)
            check_class_thresholds(class_thresholds, class_names)
            if class_thresholds:
                at = self.of_classes(class_thresholds, self.iou)
            elif self.class_thresholds:
                at = Thresholds(iou=self.iou)
            at = at._replace(min_class_confidence=self.min_class_confidence)
        given: dict[str, Any] = {
            "objectness": objectness,
            "iou": iou,
            "min_class_confidence": min_class_confidence,
        }
        at = at._replace(**{name: each for name, each in given.items() if each is not None})
        for name in given:
            if not 0 <= (value := getattr(at, name)) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {value}")
        return at


# Below it the inverse of a threshold would not be exact enough in single precision.
_LEAST_THRESHOLD = 1e-6


def check_class_thresholds(class_thresholds: Sequence[float], class_names: Sequence[str]) -> None:
    """Refuses class thresholds that are not one for each class, or too near to 0.

    Raises:
      UserError: naming the class.
    """
    if class_thresholds and len(class_thresholds) != len(class_names):
        raise UserError(
            f"class_thresholds must have one for each of {', '.join(class_names)}, or none, got "
            f"{len(class_thresholds)}"
        )
    for name, each in zip(class_names, class_thresholds, strict=False):
        if not _LEAST_THRESHOLD <= each < float("inf"):
            raise UserError(
                f"class_thresholds of {name} must be {_LEAST_THRESHOLD:g} or more, got {each}"
            )


def decide(objectness: Any, class_probs: Any, class_thresholds: tuple[float, ...]) -> Any:
    """The class of each box, by the rule of `Thresholds`; of NumPy or JAX as what is given.

    Args:
      objectness: of each box, float [n].
      class_probs: probability of each class, float [n k].
      class_thresholds: of `Thresholds`.

    Returns:
      Whole numbers [n].
    """
    if not class_thresholds:
        return class_probs.argmax(-1)
    # Not a division: compilers replace one by constants with this, which is rounded otherwise.
    inverse = 1 / np.asarray(class_thresholds, np.float32)[None]
    return (objectness[:, None] * class_probs * inverse).argmax(-1)


def passes(objectness: Any, class_probs: Any, thresholds: Thresholds) -> Any:
    """Which boxes count after the NMS, by their class; arguments as of `decide`.

    Returns:
      True and false [n].
    """
    class_ids = decide(objectness, class_probs, thresholds.class_thresholds)
    passed = np.arange(class_probs.shape[-1])[None] == class_ids[:, None]
    if thresholds.min_class_confidence > 0:
        passed = passed & (class_probs > thresholds.min_class_confidence)
    if thresholds.class_thresholds:
        least = np.asarray(thresholds.class_thresholds, np.float32)[None]
        passed = passed & (objectness[:, None] * class_probs >= least)
    return passed.any(-1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detections:
    """The n detections of one image among k classes, by objectness times largest probability.

    They have a length and can be indexed: `found[0]`, `found[:10]`, `found[found.scores > 0.9]` and
    `found[[3, 1]]` are detections of the same image. A notebook shows them as a picture.

    Attributes:
      boxes_xyxy: corners (x1, y1, x2, y2) as fractions of what the network saw, float [n 4]; see
        `boxes_xyxy_px` for pixels. Boxes may reach over the edges.
      objectness: how sure the network is of an object, float [n] in [0, 1].
      class_probs: probability of each class, float [n k] in [0, 1].
      class_names: of the k classes.
      image_hw: rows and columns of the image.
      window_xyxy: the part of the image that the network saw, as fractions of the image.
      image: the pixels, uint8 [h w c], if they were kept.
      class_thresholds: by which their classes are decided, see `Thresholds`.

    Raises:
      UserError: a field has another shape or range; the message names it.

    Example:
      >>> found = yogo_jax.load("runs/first").predict("frame.png")
      >>> found[found.scores > 0.9].counts()
    """

    boxes_xyxy: np.ndarray
    objectness: np.ndarray
    class_probs: np.ndarray
    class_names: tuple[str, ...]
    image_hw: tuple[int, int]
    window_xyxy: tuple[float, float, float, float] = WHOLE_IMAGE
    image: np.ndarray | None = None
    class_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        n, k = len(self.objectness), len(self.class_names)
        shapes = {"boxes_xyxy": (n, 4), "objectness": (n,), "class_probs": (n, k)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind != "f":
                raise UserError(
                    f"Detections.{name} must be floats of shape {shape}, got {array.dtype} of "
                    f"shape {array.shape}"
                )
        for name in ("objectness", "class_probs"):
            values = getattr(self, name)
            # Written so that a NaN is refused.
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise UserError(
                    f"Detections.{name} must be in [0, 1], got {values.min():g} to {values.max():g}"
                )
        if not np.isfinite(self.boxes_xyxy).all():
            raise UserError("Detections.boxes_xyxy must be finite, got NaN or infinity")
        if len(set(self.class_names)) != k:
            raise UserError(f"Detections.class_names must differ, got {self.class_names}")
        if min(self.image_hw) < 1:
            raise UserError(f"Detections.image_hw must be 1 or more, got {self.image_hw}")
        check_class_thresholds(self.class_thresholds, self.class_names)
        x1, y1, x2, y2 = self.window_xyxy
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            raise UserError(
                f"Detections.window_xyxy must be a part of the image, got {self.window_xyxy}"
            )

    def __len__(self) -> int:
        return len(self.objectness)

    def __getitem__(
        self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray
    ) -> "Detections":
        rows = np.atleast_1d(np.arange(len(self))[index])
        return dataclasses.replace(
            self,
            boxes_xyxy=self.boxes_xyxy[rows],
            objectness=self.objectness[rows],
            class_probs=self.class_probs[rows],
        )

    def __iter__(self) -> Iterator["Detections"]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Detections({self._summary()})"

    def _summary(self) -> str:
        rows, columns = self.image_hw
        named = ", ".join(f"{count} {name}" for name, count in self.counts().items() if count)
        return f"{len(self)} in {rows}x{columns} px" + (f": {named}" if named else "")

    @property
    def class_ids(self) -> Int32[np.ndarray, " n"]:
        """The class of each, an index into `class_names`, decided as `Thresholds` says."""
        decided = decide(self.objectness, self.class_probs, self.class_thresholds)
        return decided.astype(np.int32)

    @property
    def class_scores(self) -> np.ndarray:
        """Objectness times the probability of each class, float [n k]."""
        return self.objectness[:, None] * self.class_probs

    @property
    def class_confidences(self) -> np.ndarray:
        """The probability of the class of each, float [n]."""
        return self.class_probs[np.arange(len(self)), self.class_ids]

    @property
    def scores(self) -> np.ndarray:
        """Objectness times the probability of the class of each, float [n]."""
        return self.objectness * self.class_confidences

    @property
    def boxes_in_image_xyxy(self) -> Float32[np.ndarray, "n 4"]:
        """Corners as fractions of the whole image; they may reach over its edges."""
        x1, y1, x2, y2 = self.window_xyxy
        scale = np.asarray((x2 - x1, y2 - y1, x2 - x1, y2 - y1))
        return (self.boxes_xyxy * scale + (x1, y1, x1, y1)).astype(np.float32)

    @property
    def boxes_xyxy_px(self) -> Float32[np.ndarray, "n 4"]:
        """Corners in pixels of the whole image; they may reach over its edges."""
        return self.boxes_in_image_xyxy * self._sides_px()

    def _sides_px(self) -> Float32[np.ndarray, " 4"]:
        rows, columns = self.image_hw
        return np.asarray((columns, rows, columns, rows), np.float32)

    def counts(self) -> dict[str, int]:
        """Detections of each class, by its name; a class without any has 0."""
        by_class = np.bincount(self.class_ids, minlength=len(self.class_names))
        return dict(zip(self.class_names, by_class.tolist(), strict=True))

    def draw(self, image: np.ndarray | None = None) -> UInt8[np.ndarray, "h2 w2 3"]:
        """An RGB picture of the image with its boxes, their classes and scores.

        A dashed line is around the part that the network saw, if that is not all. Small images are
        drawn at twice their size, so that the text can be read.

        Args:
          image: uint8, [h w], [h w 1] or [h w 3]; None is the one that was kept.

        Raises:
          UserError: no image was kept, or the given one is of another size or type.
        """
        if image is None:
            image = self.image
        if image is None:
            raise UserError("no image was kept with these detections: give it, draw(image)")
        frame = as_frame(image)
        if frame.shape[:2] != self.image_hw:
            raise UserError(
                f"expected the image of these detections, {self.image_hw[0]}x{self.image_hw[1]} "
                f"px, found {frame.shape[0]}x{frame.shape[1]} px"
            )
        window = None
        if self.window_xyxy != WHOLE_IMAGE:
            window = np.asarray([self.window_xyxy], np.float32)
        picture = draw_boxes(
            frame,
            self.boxes_in_image_xyxy,
            self.class_ids,
            self.class_names,
            scores=self.scores,
            label_boxes_xyxy=window,
        )
        return np.asarray(picture)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row a detection and the columns of `infer --csv`.

        These are x1_px, y1_px, x2_px, y2_px, objectness, class_id, class, confidence (the score)
        and the probability of each class, p_NAME.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise UserError(
                "pandas is not installed, which a DataFrame needs: pip install pandas"
            ) from None
        corners = ("x1_px", "y1_px", "x2_px", "y2_px")
        columns = dict(zip(corners, self.boxes_xyxy_px.T, strict=True))
        columns |= {"objectness": self.objectness, "class_id": self.class_ids}
        columns |= {"class": [self.class_names[i] for i in self.class_ids.tolist()]}
        columns |= {"confidence": self.scores}
        columns |= {
            f"p_{name}": probs
            for name, probs in zip(self.class_names, self.class_probs.T, strict=True)
        }
        return pandas.DataFrame(columns)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections as COCO results, the form that `pycocotools` loads with `loadRes`.

        `bbox` is (x, y, width, height) in pixels, cut at the edges of the image; `category_id` is
        the index of the class.

        Args:
          image_id: of the image in the COCO data set.
        """
        boxes = self.boxes_xyxy_px.astype(np.float64).clip(0, self._sides_px())
        found = []
        for (x1, y1, x2, y2), class_id, score in zip(
            boxes.tolist(), self.class_ids.tolist(), self.scores.tolist(), strict=True
        ):
            width, height = x2 - x1, y2 - y1
            found.append(
                {
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": [x1, y1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
        return found

    def _repr_html_(self) -> str:
        """The picture for a notebook; without an image, a table of the first detections."""
        caption = f"<p>{html.escape(self._summary())}</p>"
        if self.image is not None:
            png = io.BytesIO()
            Image.fromarray(self.draw()).save(png, format="PNG")
            data = base64.b64encode(png.getvalue()).decode("ascii")
            return f'{caption}<img alt="detections" src="data:image/png;base64,{data}">'
        rows = []
        best = self[:_MOST_ROWS]
        for box, class_id, score in zip(
            best.boxes_xyxy_px, best.class_ids, best.scores, strict=True
        ):
            cells = (self.class_names[class_id], f"{score:.2f}", *(f"{side:.1f}" for side in box))
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        head = "".join(f"<th>{name}</th>" for name in ("class", "score", "x1", "y1", "x2", "y2"))
        table = "".join(f"<tr>{row}</tr>" for row in (head, *rows))
        left = len(self) - len(best)
        return f"{caption}<table>{table}</table>" + (f"<p>and {left} more</p>" if left else "")
