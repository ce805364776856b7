"""An audit from start to end: both halves of it, printed and written."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.run_data import definition_path
from yogo_jax.checkpoint.store import find_checkpoint, read_metadata, restore_variables
from yogo_jax.data.definition import DatasetDefinition, load_definition
from yogo_jax.data.headers import stretch_of
from yogo_jax.data.records import MIN_BOX_AREA, boxes_by_class
from yogo_jax.detector.architectures import get_backbone
from yogo_jax.errors import UserError
from yogo_jax.files import make_folder, write_atomically, write_json
from yogo_jax.inspection.audit import Inspection, inspect_data
from yogo_jax.inspection.box_checks import Grid
from yogo_jax.inspection.page import render_inspection
from yogo_jax.inspection.suspects import Suspects, find_suspects


# The size at which "synthetic" is looked at if none is given.
NATIVE_IMAGE_HW = (772, 1032)


class Audit(NamedTuple):
    """Both halves of an audit; the second is None without a detector."""

    inspection: Inspection
    suspects: Suspects | None


def audit(
    definition: str,
    *,
    output: Path | None = None,
    min_box_area: float | None = None,
    workers: int = 0,
    top: int = 40,
    apply_orientation: bool | None = None,
    architecture: str | None = None,
    image_hw: tuple[int, int] | None = None,
    grid_hw: tuple[int, int] | None = None,
    checkpoint: Path | None = None,
    min_confidence: float = 0.8,
    batch_size: int = 8,
    say: Callable[[str], None] = print,
) -> Audit:
    """Looks for everything that is wrong with a data set.

    Args:
      definition: a data set definition (.yml), or "synthetic".
      output: folder for `inspection.html`, `inspection.json` and `suspects.csv`; None writes none.
      min_box_area: as `data.min_box_area`; None for that of the checkpoint, else the usual one.
      workers: threads that decode images; 0 for one a core.
      top: findings of a kind on the page, and labels ranked by loss.
      apply_orientation: turn images by their EXIF or TIFF tag; None for as the checkpoint's run
        did, else True.
      architecture: network of the grid on which boxes are binned; None for `base_model`.
      image_hw: size that images will be trained at; None for the size of most images.
      grid_hw: the grid itself, (rows, columns).
      checkpoint: a run's workdir or a checkpoint: a detector that looks at every label.
      min_confidence: least probability of another class, or of an object that has no label.
      batch_size: images per step of the detector.
      say: takes the lines of the report.

    Raises:
      UserError: the definition or the checkpoint cannot be used, or there is no such architecture.
    """
    folder = None if checkpoint is None else find_checkpoint(checkpoint)
    metadata = None if folder is None else read_metadata(folder)
    if apply_orientation is None:
        apply_orientation = metadata is None or metadata.model.apply_orientation
    if metadata is not None:
        model = dataclasses.replace(metadata.model, apply_orientation=apply_orientation)
        metadata = dataclasses.replace(metadata, model=model)
    choose_grid = _grid_chooser(metadata, architecture, image_hw, grid_hw)
    shown_hw = image_hw or NATIVE_IMAGE_HW if metadata is None else metadata.model.image_hw
    data = load_definition(definition_path(definition, shown_hw))
    if metadata is not None:
        _refuse_other_classes(data, metadata)
    if output is not None:
        make_folder(output, "--output")
    if min_box_area is None:
        trained = None if metadata is None else metadata.data_settings().min_box_area
        min_box_area = MIN_BOX_AREA if trained is None else trained

    inspection = inspect_data(
        data,
        min_box_area=min_box_area,
        choose_grid=choose_grid,
        workers=workers or os.cpu_count() or 1,
        apply_orientation=apply_orientation,
    )
    say(inspection.to_text())
    if (line := _stretch_line(inspection)) is not None:
        say(line)

    suspects = None
    if folder is not None and metadata is not None:
        train = inspection.used["train"]
        device = jax.devices()[0]
        say(f"\n{folder} on {device.platform} ({device.device_kind})")
        suspects = find_suspects(
            inspection,
            metadata.model,
            restore_variables(folder, metadata.model),
            weights=metadata.trained_loss_weights(boxes_by_class(train).tolist()),
            batch_size=batch_size,
            min_confidence=min_confidence,
            top=top,
        )
        say("\n".join(suspects.lines()))
    if output is not None:
        _write(output, inspection, suspects, top=top, detector=str(checkpoint))
    last = f"\nfindings: {inspection.count:,}"
    if suspects is not None:
        last += f", contradictions of the detector: {suspects.count:,}"
    say(last)
    if output is not None:
        say(f"written {output / 'inspection.html'}")
    return Audit(inspection, suspects)


def _refuse_other_classes(data: DatasetDefinition, metadata: Metadata) -> None:
    if data.class_names != metadata.model.class_names:
        raise UserError(
            f"{data.path} has the classes {', '.join(data.class_names)}, but the checkpoint was "
            f"trained on {', '.join(metadata.model.class_names)}: they must be the same, in the "
            "same order"
        )


def _grid_chooser(
    metadata: Metadata | None,
    architecture: str | None,
    image_hw: tuple[int, int] | None,
    grid_hw: tuple[int, int] | None,
) -> Callable[[tuple[int, int] | None], Grid | None]:
    """The grid as a function of the size of most images, None if no image could be read."""
    if grid_hw is not None:
        return lambda _: Grid(grid_hw, None, None)
    if metadata is not None:
        architecture, image_hw = metadata.model.architecture, metadata.model.image_hw
    name = architecture or "base_model"
    backbone = get_backbone(name)

    def choose(usual_hw: tuple[int, int] | None) -> Grid | None:
        hw = image_hw or usual_hw
        if hw is None:
            return None
        return Grid(backbone.grid_hw(hw), hw, name, backbone.receptive_field)

    return choose


def _stretch_line(inspection: Inspection) -> str | None:
    """A warning if images would be stretched to the size of the grid's images."""
    if inspection.grid is None or inspection.grid.image_hw is None:
        return None
    paths = inspection.used["train"].image_paths
    found = stretch_of(paths, inspection.grid.image_hw, inspection.scanned.apply_orientation)
    return None if found is None else str(found)


def _write(
    output: Path, inspection: Inspection, suspects: Suspects | None, *, top: int, detector: str
) -> None:
    values = inspection.to_dict()
    if suspects is not None:
        values["suspects"] = suspects.to_dict()
        write_atomically(output / "suspects.csv", suspects.to_csv())
    write_json(output / "inspection.json", values)
    page = render_inspection(inspection, suspects, top=top, detector=detector)
    write_atomically(output / "inspection.html", page)
