"""HTML pages in one file without scripts or requests, for desktops and phones, light and dark.

A page is a list of sections, and a section is a list of blocks. The caller gives the content; this
file and `templates/page.html` decide the look. A click enlarges figures and pictures. Blocks that
are wider than the window scroll sideways, and a shade at the edge shows that there is more.
"""

import base64
import functools
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import markupsafe
from PIL import Image

from yogo_jax.reports import plots


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Table:
    """A table; numbers are right-aligned, None is shown as a dash.

    Attributes:
      header: titles of the columns; the first column names the rows.
      rows: cells, as many in each row as the header has.
      caption: content of the table in one sentence.
      wrap: True breaks long texts into lines; False lets a wide table scroll.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    wrap: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot made by `plots.draw`.

    Attributes:
      svg: the drawing; it is not escaped.
      caption: description of the drawing, also for screen readers.
      wide: True takes the whole width of the page.
    """

    kind: ClassVar[str] = "figure"
    svg: markupsafe.Markup
    caption: str
    wide: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in units of the drawing."""
        _, _, width, height = map(float, self.svg.split('viewBox="', 1)[1].split('"', 1)[0].split())
        return width, height

    @property
    def least_width_px(self) -> int:
        """Least width at which all of its text has LEAST_TEXT_PX or more."""
        return math.ceil(self.size[0] * plots.LEAST_TEXT_PX / plots.FONT_SIZE)


@dataclass(frozen=True)
class Picture:
    """A raster image, embedded in the page.

    Attributes:
      image: gray or RGB.
      caption: description of the image.
      wide: True takes the whole width of the page.
      lossy: True embeds it as JPEG; the noise of camera frames makes PNG files large.
    """

    kind: ClassVar[str] = "picture"
    image: Image.Image
    caption: str
    wide: bool = False
    lossy: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px."""
        return self.image.size

    @property
    def data_uri(self) -> str:
        """The image as a `data:` address."""
        buffer = io.BytesIO()
        if self.lossy:
            # Without subsampling, thin coloured lines keep their colour.
            self.image.save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
        else:
            self.image.save(buffer, "PNG", optimize=True)
        kind = "jpeg" if self.lossy else "png"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Small pictures with captions; as many stand side by side as fit."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Preformatted text in a box that is closed at first."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Link:
    """A link to another file.

    Attributes:
      text: the text of the link.
      address: address relative to the page, with slashes.
    """

    kind: ClassVar[str] = "link"
    text: str
    address: str


def link_to(text: str, file: Path, folder: Path) -> Link:
    """Returns a link to a file, for a page in `folder`."""
    return Link(text, Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix())


Block = Text | Table | Figure | Picture | Gallery | Code | Link


@dataclass(frozen=True)
class Section:
    """A part of a page with a title and a link in the table of contents.

    Attributes:
      anchor: name that is unique on the page, [a-z-]+.
      title: title of the section.
      blocks: blocks from top to bottom; narrow figures and pictures stand side by side.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Returns the page as HTML. All text is escaped, except the SVG of figures."""
    return _template().render(title=title, subtitle=subtitle, sections=sections)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    environment.filters["runs"] = _runs
    environment.tests["numeric"] = _is_numeric
    return environment.get_template("page.html")


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[bool, list[Block]]]:
    """Groups neighbouring blocks: drawn ones, which stand side by side, and others."""
    for is_drawn, run in itertools.groupby(
        blocks, lambda block: isinstance(block, Figure | Picture)
    ):
        yield is_drawn, list(run)


def format_cell(value: Any) -> str:
    """Writes the value of a cell: four decimals of a fraction, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
