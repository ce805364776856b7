"""Pages as a reader meets them: in a browser, on a phone, in the dark, by keyboard."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from browser import assert_figures_can_be_read, assert_fits_the_width, open_page
from yogo_jax.reports import plots
from yogo_jax.reports.pages import (
    Code,
    Figure,
    Gallery,
    Link,
    Picture,
    Section,
    Table,
    Text,
    format_cell,
    render_page,
)


def draw_lines(name: str) -> Figure:
    def plot(axes):
        for index in range(7):
            axes.plot([0, 1], [0, index], label=f"<{index}>", **plots.series_style(index))
        axes.legend()

    return Figure(plots.draw(name, plot), "Seven lines & more")


def draw_wide(name: str) -> Figure:
    drawing = plots.draw(name, lambda axes: axes.plot([0, 1], label="line"), wide=True)
    return Figure(drawing, "A wide figure", wide=True)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    sections = [
        Section(
            "summary",
            "Summary",
            [
                Text("<b>not bold</b>"),
                draw_lines("first"),
                draw_lines("second"),
                Picture(Image.fromarray(noise), "Noise"),
                Picture(Image.fromarray(noise), "Less noise", lossy=True),
                Table(["name", *"abcdefghijkl"], [["row", *[1234.5] * 12]], "A wide table"),
            ],
        ),
        Section(
            "more",
            "More",
            [
                Link("Another page", "runs of today/page#1.html"),
                Code("config", '{"a": "<script>alert(1)</script>"}'),
            ],
        ),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page("A <title>", "of a test", sections))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1200])
def test_a_page_in_a_browser(page_file, width, dark):
    with open_page(page_file, width=width, dark=dark) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        assert page.title() == "A <title>"
        assert page.locator("svg").count() == 2
        assert page.get_by_text("<b>not bold</b>").count() == 1
        shown = page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert shown == [60, 60]
        # A hash in the name of a folder is no place on a page.
        address = page.get_by_role("link", name="Another page").get_attribute("href")
        assert address == "runs%20of%20today/page%231.html"
        # The ground and a line of a plot follow the scheme.
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


@pytest.mark.slow
def test_a_page_by_keyboard(page_file):
    with open_page(page_file, width=390) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        reached = []
        for _ in range(10):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.tagName"))
        assert reached == ["A", "A", *["BUTTON"] * 4, "DIV", "A", "SUMMARY", "BODY"]
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        assert page.get_by_text("<script>alert(1)</script>").is_visible()


def edges_of(box):
    """Pixels of a place at its left and at its right edge, in the middle of its height."""
    pixels = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("RGB"), int)
    row = pixels[pixels.shape[0] // 2 - 4 : pixels.shape[0] // 2 + 4]
    return row[:, 0], row[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_what_is_wider_than_the_window_shows_that_it_scrolls(tmp_path, dark):
    wide = Table([f"a column {index}" for index in range(9)], [[""] * 9] * 6)
    narrow = Table(["a", "b"], [["", ""]] * 6)
    code = Code("config", "a long line " * 40)
    blocks = [wide, narrow, code, draw_wide("wide"), draw_lines("narrow")]
    path = tmp_path / "page.html"
    path.write_text(render_page("Scrolls", "", [Section("all", "All", blocks)]))
    with open_page(path, width=360, dark=dark) as page:
        assert_fits_the_width(page)
        assert_figures_can_be_read(page)
        page.locator("summary").click()
        # Hairlines of a table must not be what differs.
        page.add_style_tag(content="th, td { border: 0 !important } svg, pre * { opacity: 0 }")
        boxes = page.locator(".scroll, .view, pre")
        assert boxes.count() == 5
        for index in range(5):
            box = boxes.nth(index)
            scrolls = box.evaluate("box => box.scrollWidth > box.clientWidth")
            assert scrolls == (index in (0, 2, 3))
            ground = box.evaluate("box => getComputedStyle(box).getPropertyValue('--under')")
            ground = np.array(ImageColor.getrgb(ground))
            for along, left, right in ((0, False, True), (40, True, True), (9999, True, False)):
                box.evaluate("(box, along) => { box.scrollLeft = along }", along)
                edges = edges_of(box)
                shaded = [bool((np.abs(edge - ground).max(1) > 25).all()) for edge in edges]
                plain = [bool((np.abs(edge - ground).max(1) < 8).all()) for edge in edges]
                assert shaded == [scrolls and left, scrolls and right], (index, along)
                assert plain == [not each for each in shaded], (index, along)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(360, 640), (1200, 900)])
def test_figures_and_pictures_are_enlarged(page_file, width, height):
    with open_page(page_file, width=width, height=height) as page:
        for kind in ("svg", "img"):
            shown = page.locator(f"{kind}").last
            shown.scroll_into_view_if_needed()
            scrolled = page.evaluate("[scrollY, document.documentElement.scrollHeight]")
            before = shown.bounding_box()
            close = page.locator(f"figure:has({kind}) .close").last
            assert not close.is_visible()
            for leave in (shown.click, close.click, lambda: page.keyboard.press("Escape")):
                shown.click()
                after = shown.bounding_box()
                if width == 360:
                    assert after["width"] >= 640
                    # All of it can be scrolled to.
                    large = page.locator(":popover-open")
                    room = large.evaluate("box => [box.scrollWidth, box.scrollHeight]")
                    assert room[0] >= after["x"] + after["width"]
                    assert room[1] >= after["y"] + after["height"]
                else:
                    assert after["width"] > 2 * before["width"]
                    assert after["y"] + after["height"] <= height
                # Nothing else is to be seen, and nothing moves beneath.
                assert page.locator(":popover-open").bounding_box() == {
                    "x": 0,
                    "y": 0,
                    "width": width,
                    "height": height,
                }
                leave()
                assert page.locator(":popover-open").count() == 0
                assert shown.bounding_box() == before
                assert scrolled == page.evaluate("[scrollY, document.documentElement.scrollHeight]")


@pytest.mark.slow
def test_galleries_photos_and_texts_in_tables(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)
    photo = Picture(Image.fromarray(noise), "A photo with <a caption>", lossy=True)
    texts = Table(["where", "what"], [["a/long/path/" * 6, "many words " * 20]], wrap=True)
    path = tmp_path / "page.html"
    path.write_text(
        render_page("Gallery", "", [Section("all", "All", [Gallery([photo] * 5), texts])])
    )
    with open_page(path, width=390) as page:
        assert_fits_the_width(page)
        images = page.locator(".gallery img")
        assert images.evaluate_all("all => all.map(each => each.naturalWidth)") == [60] * 5
        assert images.first.get_attribute("src").startswith("data:image/jpeg;")
        assert images.first.get_attribute("alt") == "A photo with <a caption>"
        # Two stand side by side on a phone.
        tops = images.evaluate_all("all => all.map(each => each.getBoundingClientRect().top)")
        assert tops[0] == tops[1] < tops[2]
        # Nothing of the table has to be scrolled to.
        assert page.evaluate(
            "(() => { const box = document.querySelector('.scroll');"
            " return box.scrollWidth <= box.clientWidth; })()"
        )


def test_ids_of_plots_are_unique_and_drawings_are_the_same_each_time(page_file):
    html = page_file.read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert draw_lines("first") == draw_lines("first")


def test_plots_hold_no_colour_of_their_own(page_file):
    drawings = re.findall(r"<svg.*?</svg>", page_file.read_text(), flags=re.DOTALL)
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}", drawing)
        assert "var(--series-7)" in drawing


def test_no_two_series_look_the_same():
    styles = [plots.series_style(index) for index in range(49)]
    assert len({tuple(style.values()) for style in styles}) == 49


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        pytest.param([3, 40], ["5", "10", "20"], id="little more than one power of ten"),
        pytest.param([0.003, 40], ["0.01", "0.1", "1", "10"], id="many powers of ten"),
        pytest.param([2.2, 4.4], ["2.5", "3", "3.5", "4", "4.5"], id="between two and five"),
        pytest.param([61000, 64000], ["61,000", "62,000", "63,000", "64,000"], id="a little"),
        pytest.param([2e-5, 3e-4], ["2·10⁻⁵", "5·10⁻⁵", "10⁻⁴", "2·10⁻⁴"], id="small"),
    ],
)
def test_ticks_of_a_logarithmic_axis(values, ticks):
    def plot(axes):
        axes.plot([0, 1], values)
        plots.use_log_scale(axes, "y")
        axes.set_xticks([])

    assert texts_of(plot) == ticks


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, ["0", "1", "10"]),
        (1, ["0", "1", "10"]),
        (3, ["0", "1", "10"]),
        (123456, ["0", "1", "100", "10,000", "10⁶"]),
    ],
)
def test_ticks_of_counts_that_may_be_nothing(most, ticks):
    def plot(axes):
        axes.barh([0], [most])
        plots.use_count_scale(axes, "x", most)
        axes.set_yticks([])

    assert texts_of(plot) == ticks


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0], ["0"]),
        ([0, 1], ["0", "1"]),
        ([0, 2], ["0", "1", "2"]),
        ([0.1, 1], ["1"]),
        ([0, 12], ["0", "5", "10"]),
        ([0, 63], ["0", "20", "40", "60"]),
        ([0, 64_000], ["0", "20,000", "40,000", "60,000"]),
    ],
)
def test_ticks_of_what_is_counted_are_whole_numbers(values, ticks):
    def plot(axes):
        axes.plot(values, [0] * len(values), "o")
        plots.use_whole_numbers(axes, "x")
        axes.set_yticks([])

    assert texts_of(plot) == ticks


def texts_of(plot) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", plots.draw("ticks", plot))


def test_only_one_place_makes_axes_logarithmic():
    """matplotlib's own numbers on such axes are TeX."""
    sources = Path(plots.__file__).parents[1].rglob("*.py")
    elsewhere = re.compile(r"set_[xy]scale|[xy]scale=|semilog|loglog")
    assert [each.name for each in sources if elsewhere.search(each.read_text())] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.1 + 0.2, "0.3"),
        (0.001, "0.001"),
        (0.00012, "1.2·10⁻⁴"),
        (1500, "1500"),
        (99999.0, "99,999"),
        (1e6, "10⁶"),
        (2.5e12, "2.5·10¹²"),
        (-1e-5, "-10⁻⁵"),
        (-3, "-3"),
    ],
)
def test_numbers_on_axes_are_plain(value, text):
    assert plots.plain_number(value) == text


@pytest.mark.parametrize("labels", [1, 7, 20])
def test_a_legend_has_room_of_its_own(labels):
    def height(names):
        def plot(axes):
            for name in names:
                axes.plot([0, 1], [0, 1], label=name)

        drawing = plots.draw("legend", plot)
        assert all(name in drawing for name in names)
        return float(re.search(r'height="([0-9.]+)pt"', drawing)[1])

    names = [plots.shortened(f"class number {index} of very many") for index in range(labels)]
    assert height(names) > height([]) + 10 * labels / 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.5, "0.5000"),
        (1234.56, "1,234.6"),
        (12345, "12,345"),
        (True, "True"),
        ("a", "a"),
    ],
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_names_are_text_and_no_formulas():
    names = ["a_$x^$", "_misc", "price $5 to $6", "_child"]

    def plot(axes):
        for index, name in enumerate(names):
            axes.plot([0, 1], [0, index], label=name, **plots.series_style(index))
        axes.plot([0, 1], [1, 1])
        axes.set_xticks([0, 1], names[:2])

    drawing = plots.draw("names", plot)
    for name in names:
        assert name in drawing
    assert "_child4" not in drawing
