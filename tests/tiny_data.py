"""Small data sets for tests: dark discs on a bright ground, one look a class."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def write_dataset(
    folder: Path | str,
    *,
    images: int = 12,
    class_names: tuple[str, ...] = ("healthy", "ring"),
    seed: int = 0,
    image_hw: tuple[int, int] = (64, 96),
    cells_hw: tuple[int, int] = (2, 3),
    published: bool = False,
    suffix: str = ".png",
) -> Path:
    """Writes images, YOLO labels and `definition.yml`, and returns the path of the latter.

    Every image has a grid of `cells_hw` jittered discs that do not overlap; classes take turns, so
    each is in every image of enough cells. Half of the images are for training, a quarter each
    for validation and test: by `dataset_split_fractions`, or with `published` in folders of their
    own under `dataset_paths`, `val_paths` and `test_paths`.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    splits = {"all": images}
    if published:
        quarter = images // 4
        splits = {"train": images - 2 * quarter, "val": quarter, "test": quarter}
    for split, count in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels, rows = _image(rng, image_hw, cells_hw, len(class_names), first_class=i)
            name = f"{split}_{i:04d}"
            Image.fromarray(pixels).save(folder / "images" / split / f"{name}{suffix}")
            (folder / "labels" / split / f"{name}.txt").write_text("".join(rows))
    path = folder / "definition.yml"
    path.write_text(_definition(class_names, tuple(splits)))
    return path


def add_thumbnails(definition: Path) -> None:
    """Cuts the cells of the first four images out, a folder a class, and names these folders."""
    folder = definition.parent
    class_names = yaml.safe_load(definition.read_text())["class_names"]
    for path in sorted(folder.glob("images/*/*.png"))[:4]:
        pixels = Image.open(path)
        width, height = pixels.size
        rows = (folder / "labels" / path.parent.name / f"{path.stem}.txt").read_text().splitlines()
        for i, row in enumerate(rows):
            name, x, y, w, h = row.split()
            box = [(float(x) - float(w) / 2) * width, (float(y) - float(h) / 2) * height]
            box += [box[0] + float(w) * width, box[1] + float(h) * height]
            cells = folder / "thumbnails" / class_names[int(name)]
            cells.mkdir(parents=True, exist_ok=True)
            pixels.crop([round(side) for side in box]).save(cells / f"{path.stem}_{i}.png")
    lines = [f"  {name}: thumbnails/{name}" for name in class_names]
    with definition.open("a") as file:
        file.write("\n".join(["thumbnail_augmentation:", *lines]) + "\n")


def spoil_labels(definition: Path, kind: str, image_hw: tuple[int, int] = (64, 96)) -> None:
    """Writes the labels of `write_dataset` in another form.

    Kinds: corners, upper_left, pixels, pixel_corners, some_pixels, from_one, from_one_in_pixels,
    notes (from one, with a notes.json), names, one_bad_class, right.
    """
    for i, path in enumerate(sorted(definition.parent.glob("labels/all/*.txt"))):
        rows = []
        for j, row in enumerate(path.read_text().splitlines()):
            class_id, *numbers = row.split()
            x, y, w, h = map(float, numbers)
            if kind == "upper_left" and j == 0:
                x, y = 0.45 * w, 0.45 * h  # cells at the edge are cut there
                w, h = 0.9 * w, 0.9 * h
            corners = kind in ("corners", "pixel_corners")
            box = [x, y, w, h]
            if corners:
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            if kind == "upper_left":
                box = [x - w / 2, y - h / 2, w, h]
            if "pixel" in kind and (kind != "some_pixels" or i < 5):
                box = (np.array(box) * np.tile(image_hw[::-1], 2)).tolist()
            if "from_one" in kind or kind == "notes":
                class_id = str(int(class_id) + 1)
            if kind == "names":
                class_id = ("healthy", "ring")[int(class_id)]
            if kind == "one_bad_class" and i == j == 0:
                class_id = "2"
            rows.append(" ".join([class_id, *(f"{number:.6f}" for number in box)]))
        path.write_text("\n".join(rows))
    if kind == "notes":
        notes = '{"categories": [{"id": 1, "name": "healthy"}, {"id": 2, "name": "ring"}]}'
        (definition.parent / "labels" / "notes.json").write_text(notes)


def _image(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    cells_hw: tuple[int, int],
    n_classes: int,
    first_class: int,
) -> tuple[np.ndarray, list[str]]:
    pixels = rng.normal(200, 4, image_hw)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    pitch = np.array(image_hw) / cells_hw
    rows = []
    for i, cell in enumerate(np.ndindex(*cells_hw)):
        class_id = (first_class + i) % n_classes
        radius = rng.uniform(0.25, 0.4) * pitch.min()
        room = np.maximum(pitch / 2 - radius - 1, 0)
        cy, cx = (np.array(cell) + 0.5) * pitch + rng.uniform(-room, room)
        distance = np.hypot(y + 0.5 - cy, x + 0.5 - cx)
        pixels[distance < radius] -= 100
        # The classes differ in the size of a bright spot in the middle.
        pixels[distance < radius * class_id / n_classes] += 80
        box = (
            cx / image_hw[1],
            cy / image_hw[0],
            2 * radius / image_hw[1],
            2 * radius / image_hw[0],
        )
        rows.append(f"{class_id} " + " ".join(f"{value:.6f}" for value in box) + "\n")
    return pixels.clip(0, 255).astype(np.uint8), rows


def _definition(class_names: tuple[str, ...], splits: tuple[str, ...]) -> str:
    keys = {"all": "dataset_paths", "train": "dataset_paths"}
    lines = ["class_names:", *(f'- "{name}"' for name in class_names)]
    for split in splits:
        lines += [
            f"{keys.get(split, split + '_paths')}:",
            f"  {split}:",
            f"    image_path: images/{split}",
            f"    label_path: labels/{split}",
        ]
    if splits == ("all",):
        lines += ["dataset_split_fractions:", "  train: 0.5", "  val: 0.25", "  test: 0.25"]
    return "\n".join(lines) + "\n"
