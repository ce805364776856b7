"""A small data set with one mistake of each kind, and the place of each."""

import shutil
from pathlib import Path

from tiny_data import write_dataset


def append(path: Path, row: str) -> str:
    """Adds a row to a label file and returns its place as `file:line`."""
    rows = path.read_text()
    path.write_text(f"{rows}{row}\n")
    return f"{path}:{rows.count(chr(10)) + 1}"


def plant(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """Writes the data set; returns its definition, and the places of the findings by kind."""
    definition = write_dataset(folder, images=24, class_names=("healthy", "ring"), published=True)

    def file(kind: str, split: str, index: int) -> Path:
        suffix = ".png" if kind == "images" else ".txt"
        return folder / kind / split / f"{split}_{index:04d}{suffix}"

    planted: dict[str, list[str]] = {}
    # A frame of the training once more in the test split, with its labels.
    for kind in ("images", "labels"):
        shutil.copy(file(kind, "train", 1), file(kind, "test", 9))
    planted["identical_across_splits"] = [str(file("images", "train", 1))]
    # Two centres 2 px apart, in one cell of 8 px, of boxes that differ in size.
    planted["shared_cell"] = [append(file("labels", "train", 2), "0 0.0625 0.0625 0.1 0.1")]
    append(file("labels", "train", 2), "1 0.0833 0.0625 0.06 0.06")
    planted["bad_label"] = [
        append(file("labels", "val", 0), "7 0.5 0.5 0.1 0.1"),
        append(file("labels", "val", 1), "0 0.5 0.5 0 0.1"),
    ]
    file("images", "val", 2).unlink()
    planted["label_without_image"] = [str(file("labels", "val", 2))]
    file("labels", "val", 3).unlink()
    planted["unlabelled_image"] = [str(file("images", "val", 3))]
    file("labels", "train", 3).write_bytes(b"0 0.5 0.5 0.1 0.1 \xff\n")
    planted["unreadable_label_file"] = [str(file("labels", "train", 3))]
    broken = file("images", "train", 4)
    broken.write_bytes(broken.read_bytes()[:90])
    planted["unreadable_image"] = [str(broken)]
    shutil.copy(file("images", "train", 5), folder / "images" / "train" / "train_0005.jpg")
    planted["ambiguous_name"] = [str(folder / "images" / "train")]
    planted["small_box"] = [append(file("labels", "test", 0), "1 0.02 0.02 0.001 0.001")]
    planted["overhanging_box"] = [append(file("labels", "test", 1), "1 0.98 0.03 0.06 0.05")]
    planted["duplicate_box"] = [append(file("labels", "test", 2), "1 0.0832 0.1 0.1 0.18")]
    # The border of two columns of cells is between them: neither loses its cell.
    append(file("labels", "test", 2), "1 0.0834 0.1 0.1 0.18")
    return definition, planted
