"""Plots as SVG in the colours of the page, so one drawing fits light and dark pages.

Series differ in colour and in line or marker, so no information depends on colour alone.
"""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import markupsafe


# These colours are replaced by the colours of the page, which `templates/page.html` defines.
INK, INK_SOFT, GROUND = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b0{index}" for index in range(1, 8))
_COLOURS = {
    INK: "ink",
    INK_SOFT: "ink-soft",
    GROUND: "panel",
    **{colour: f"series-{index}" for index, colour in enumerate(SERIES, start=1)},
}
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# In inches of 72 units. A page shows a figure as wide as its column; on a phone of 360 px a unit is
# a little more than 1 px.
WIDTH, HEIGHT, WIDE = 4.0, 3.1, 9.6
# Size of all text in units. A page shows no text smaller than LEAST_TEXT_PX.
FONT_SIZE = 10.5
LEAST_TEXT_PX = 11
LABEL_LENGTH = 24
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    # A class may be called "$x". No text here is a formula.
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.edgecolor": INK_SOFT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK_SOFT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": INK_SOFT,
    "ytick.color": INK_SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE,
    "lines.linewidth": 1.8,
}


def draw(
    name: str,
    plot: Callable[[Any], None],
    *,
    wide: bool = False,
    height: float = HEIGHT,
) -> markupsafe.Markup:
    """Draws a plot as SVG for a page.

    matplotlib is imported here, because its import takes a second and only pages need it.

    Args:
      name: name that is unique on its page, so that ids in the SVG are unique; [a-z0-9-]+.
      plot: draws on the matplotlib axes that it receives; labelled lines get a legend below.
      wide: True for a figure that takes the whole width of the page.
      height: height in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name, "svg.id": name}):
        figure = Figure(figsize=(WIDE if wide else WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        plot(axes)
        _show_underscored(axes)
        if axes.get_legend() is None:
            _put_legend_below(figure, axes)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return markupsafe.Markup(_for_page(buffer.getvalue()))


def series_style(index: int) -> dict[str, Any]:
    """Returns colour and line style of the `index`-th series; 49 series are all different."""
    turn, colour = divmod(index, len(SERIES))
    return {"color": SERIES[colour], "linestyle": LINES[(colour + turn) % len(LINES)]}


def use_log_scale(axes: Any, which: str) -> None:
    """Makes the "x" or "y" axis logarithmic, with plain numbers; called after all is drawn."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    if high < 5 * low:
        # So short an axis may contain no power of ten, and no double or half of one.
        axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    else:
        # An axis of many powers of ten has no room for more ticks.
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    _write_plain_numbers(axis)


def use_count_scale(axes: Any, which: str, most: float) -> None:
    """Makes the "x" or "y" axis linear from 0 to 1 and logarithmic above, for counts.

    Args:
      axes: the axes to change.
      which: "x" or "y".
      most: the largest count; the axis is longer, so that numbers fit beside the bars.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    most = max(most, 1)
    getattr(axes, f"set_{which}scale")("symlog", linthresh=1)
    getattr(axes, f"set_{which}lim")(0, 20 * most)
    axis = getattr(axes, f"{which}axis")
    powers = math.floor(math.log10(most)) + 1
    # Up to six numbers fit beside each other.
    every = math.ceil(powers / 5)
    shown = [10**power for power in range(0, powers + 1, every)]
    axis.set_major_locator(FixedLocator([0, *shown]))
    axis.set_minor_locator(NullLocator())
    _write_plain_numbers(axis)


def use_whole_numbers(axes: Any, which: str) -> None:
    """Sets the ticks of the "x" or "y" axis to whole numbers: trials, epochs, boxes, images."""
    from matplotlib.ticker import MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    _write_plain_numbers(axis)


def _write_plain_numbers(axis: Any) -> None:
    """Writes tick labels as plain text; matplotlib itself writes TeX on some axes."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(float(value))))


def plain_number(value: float) -> str:
    """Writes a number for an axis with up to six digits: 0.002, 150, 20,000, 3·10⁻⁵, 10⁶."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.6g}"
    mantissa, _, power = f"{value:.5e}".partition("e")
    mantissa = f"{float(mantissa):g}"
    ten = f"10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return {"1": ten, "-1": f"-{ten}"}.get(mantissa, f"{mantissa}·{ten}")


def shortened(label: str) -> str:
    """Returns the label, cut if it is too long for a legend."""
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _show_underscored(axes: Any) -> None:
    """Keeps labels such as "_misc" in the legend; matplotlib hides labels that begin with "_"."""
    for artist in (*axes.get_children(), *axes.containers):
        label = str(artist.get_label())
        # matplotlib's own names for artists without a label: "_child3", "_container0".
        if label.startswith("_") and not re.fullmatch(r"_(child|container)\d+|_nolegend_", label):
            artist.set_label(f"\N{ZERO WIDTH SPACE}{label}")


def _put_legend_below(figure: Any, axes: Any) -> None:
    """Puts the legend below the axes and makes the figure higher, so that it hides no line."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    width, height = figure.get_size_inches()
    columns = max(1, int(72 * width / (46 + 5.6 * max(map(len, labels)))))
    figure.set_size_inches(width, height + 0.1 + 0.21 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _for_page(svg: str) -> str:
    """Returns the SVG in the colours and the font of the page, without metadata and styles."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # matplotlib numbers groups anew in each drawing. Nothing refers to these ids.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
