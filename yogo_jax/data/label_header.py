"""Header rows of label files: which column holds what, taken by name."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from yogo_jax.errors import UserError


CENTRE = ("x_center", "y_center", "width", "height")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# How a name may be spelled, in lower case, without blanks and signs between its letters.
_CLASS_NAMES = {
    *("class", "classid", "classindex", "classname", "classlabel", "cls", "clsid"),
    *("label", "labelid", "labelname", "category", "categoryid", "categoryname"),
}
_CENTRE_NAMES = (
    {"x", "xc", "cx", "xcenter", "xcentre", "centerx", "centrex"},
    {"y", "yc", "cy", "ycenter", "ycentre", "centery", "centrey"},
    {"w", "width", "boxwidth", "bboxwidth"},
    {"h", "height", "boxheight", "bboxheight"},
)
_CORNER_NAMES = (
    {"xmin", "minx", "x1", "left", "xtl", "tlx"},
    {"ymin", "miny", "y1", "top", "ytl", "tly"},
    {"xmax", "maxx", "x2", "right", "xbr", "brx"},
    {"ymax", "maxy", "y2", "bottom", "ybr", "bry"},
)
_CORNERS_FROM_0 = ({"x0"}, {"y0"}, {"x1"}, {"y1"})
_FORMS = ((CENTRE, _CENTRE_NAMES), (CORNERS, _CORNER_NAMES), (CORNERS, _CORNERS_FROM_0))
_MOST_WORDS = 3
_SIGNS = re.compile(r"[\W_]+")


class Columns(NamedTuple):
    """The meaning of the five columns of a label file.

    Attributes:
      names: `class` and four of CENTRE or of CORNERS, in the order of the file.
      class_at: the index of the class among them.
      order: of the four numbers of a row, in the order of CENTRE or CORNERS, the index among them.
      corners: whether the numbers are corners.
    """

    names: tuple[str, ...]
    class_at: int
    order: tuple[int, ...]
    corners: bool

    def __str__(self) -> str:
        return " ".join(self.names)


# Of files without a header, and of most that have one.
STANDARD = Columns(("class", *CENTRE), 0, (0, 1, 2, 3), False)


def find_columns(fields: Sequence[str], is_number: Sequence[bool]) -> Columns | None:
    """The columns that the first row of a file names; None if it is no header but a box.

    A first row of two fields or more without any number is a header.

    Args:
      fields: of the row; a name of several words may be several fields.
      is_number: whether each of them is a number.

    Raises:
      UserError: without the file: its columns are not known.
    """
    if len(fields) < 2 or any(is_number):
        return None
    return _columns_named(tuple(fields))


@lru_cache
def _columns_named(fields: tuple[str, ...]) -> Columns:
    names = _joined(fields)
    if len(names) == 5 and len(set(names)) == 5:
        for columns, spellings in _FORMS:
            found = _in_form(names, columns, spellings)
            if found is not None:
                return found
    raise UserError(
        f"the header names the columns {' '.join(fields)}; expected, in any order, class "
        f"{' '.join(CENTRE)} or class {' '.join(CORNERS)}, all fractions of the image's size; "
        "rename the columns, or remove those that are not read"
    )


def _joined(fields: tuple[str, ...]) -> list[str]:
    """Names in lower case without signs; fields that are words of one known name are one."""
    # A sign alone, such as # before a header, is no name.
    words = [word for field in fields if (word := _SIGNS.sub("", field.lower()))]
    known = _CLASS_NAMES.union(*(each for _, spellings in _FORMS for each in spellings))
    names: list[str] = []
    start = 0
    while start < len(words):
        ends = range(min(start + _MOST_WORDS, len(words)), start, -1)
        end = next((end for end in ends if "".join(words[start:end]) in known), start + 1)
        names.append("".join(words[start:end]))
        start = end
    return names


def _in_form(
    names: Sequence[str], columns: tuple[str, ...], spellings: tuple[set[str], ...]
) -> Columns | None:
    """The columns if the names are a class and these four, in any order."""
    plain = []
    for name in names:
        by_column = zip(("class", *columns), (_CLASS_NAMES, *spellings), strict=True)
        plain += [column for column, spelled in by_column if name in spelled]
    if sorted(plain) != sorted(("class", *columns)):
        return None
    numbers = [name for name in plain if name != "class"]
    order = tuple(numbers.index(column) for column in columns)
    return Columns(tuple(plain), plain.index("class"), order, columns is CORNERS)
