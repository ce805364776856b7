"""HTML pages of one self-contained file: no script, no request, for phones and the dark, too.

A page is a list of sections, a section a list of blocks: what they look like is decided here and in
`templates/page.html`, what they say by the caller. A click enlarges figures and pictures. What
is wider than the window scrolls by itself, with a shade at the edge where there is more.
"""

import base64
import functools
import io
import itertools
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
    """A table; cells that are numbers are set to the right, None is shown as a dash.

    Attributes:
      header: titles of the columns; the first column names the rows.
      rows: as many cells each as the header has.
      caption: what the table says, one sentence.
      wrap: breaks long texts into lines, where a table of numbers would rather be scrolled.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    wrap: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot, as `plots.draw` makes it.

    Attributes:
      svg: the drawing, trusted.
      caption: what is to be seen, for those who see it and those who do not.
      wide: takes the whole width of the page.
    """

    kind: ClassVar[str] = "figure"
    svg: markupsafe.Markup
    caption: str
    wide: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in units of the drawing."""
        return plots.size_of(self.svg)

    @property
    def least_width_px(self) -> int:
        """From which width on its text can be read."""
        return plots.least_width_px(self.svg)


@dataclass(frozen=True)
class Picture:
    """A picture of pixels, embedded.

    Attributes:
      image: gray or RGB.
      caption: what it shows.
      wide: takes the whole width of the page.
      lossy: embedded as JPEG, for frames of a camera, whose noise takes much room as PNG.
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
        """The picture inside its address."""
        buffer = io.BytesIO()
        if self.lossy:
            # Thin coloured lines need their colour at every pixel.
            self.image.save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
        else:
            self.image.save(buffer, "PNG", optimize=True)
        kind = "jpeg" if self.lossy else "png"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Small pictures with their captions, as many side by side as there is room for."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Text as it is, in a box that is closed at first."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Link:
    """A line that leads to another file.

    Attributes:
      text: what is clicked.
      address: relative to the page, with slashes.
    """

    kind: ClassVar[str] = "link"
    text: str
    address: str


Block = Text | Table | Figure | Picture | Gallery | Code | Link


@dataclass(frozen=True)
class Section:
    """A part of a page with a title and a link in the table of contents.

    Attributes:
      anchor: unique on the page, [a-z-]+.
      title: of the section.
      blocks: from top to bottom; figures and pictures that are not wide stand side by side.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML text. All text is escaped but the SVG of figures."""
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
    """Neighbours that are drawn (and stand side by side), or are not, together."""
    for is_drawn, run in itertools.groupby(
        blocks, lambda block: isinstance(block, Figure | Picture)
    ):
        yield is_drawn, list(run)


def format_cell(value: Any) -> str:
    """A cell's text: four digits of a fraction, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
