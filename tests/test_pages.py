"""Pages as a reader meets them: in a browser, on a phone, in the dark, by keyboard."""

import re

import numpy as np
import pytest
from PIL import Image

from browser import assert_fits_the_width, open_page
from yogo_jax.evaluation import plots
from yogo_jax.evaluation.pages import (
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_page_in_a_browser(page_file, width, dark):
    with open_page(page_file, width=width, dark=dark) as page:
        assert_fits_the_width(page)
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


def test_a_page_by_keyboard(page_file):
    with open_page(page_file, width=390) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        reached = []
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.tagName"))
        assert reached == ["A", "A", "DIV", "A", "SUMMARY", "BODY"]
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        assert page.get_by_text("<script>alert(1)</script>").is_visible()


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
    ],
)
def test_ticks_of_a_logarithmic_axis(values, ticks):
    def plot(axes):
        axes.plot([0, 1], values)
        plots.use_log_scale(axes, "y")

    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.draw("log", plot))
    assert [text for text in texts if text in ticks] == ticks
    assert {"$", "^"}.isdisjoint("".join(texts))


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
