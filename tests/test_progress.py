import io
import sys
import time

from yogo_jax import progress
from yogo_jax.progress import Heartbeat, with_progress, without_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream, **options) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    assert [*with_progress(range(3), what="images", **options)] == [0, 1, 2]
    return stream.getvalue()


def test_a_bar_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert shown(monkeypatch, io.StringIO(), total=3) == ""
    bar = shown(monkeypatch, Terminal(), total=3)
    assert "images" in bar
    assert "3/3" in bar
    assert shown(monkeypatch, Terminal(), total=3, bar=False) == ""


def test_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    lines = shown(monkeypatch, io.StringIO(), total=9, done=6).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{n} of 9 images" for n in (7, 8, 9)]
    assert shown(monkeypatch, io.StringIO()).startswith("1 images, ")


def test_nothing_where_progress_is_not_wanted(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with without_progress():
        assert shown(monkeypatch, io.StringIO()) == ""
        assert shown(monkeypatch, Terminal(), bar=True) == ""
    assert shown(monkeypatch, io.StringIO()) != ""


def wait_for(lines, count):
    end = time.monotonic() + 10
    while len(lines) < count and time.monotonic() < end:
        time.sleep(0.01)


def test_what_takes_long_is_said_again_and_again():
    lines = []
    with Heartbeat(lines.append, seconds=0.05) as heartbeat:
        # Nothing is done yet: nothing is said.
        time.sleep(0.2)
        assert lines == []
        heartbeat.doing("compiling")
        wait_for(lines, 2)
    assert lines[0].startswith("compiling")
    assert lines[1] == "compiling: 0 s"
    said = len(lines)
    time.sleep(0.2)
    assert len(lines) == said


def test_a_line_of_somebody_else_is_a_sign_of_life():
    lines = []
    with Heartbeat(lines.append, seconds=0.4) as heartbeat:
        heartbeat.doing("reading")
        for _ in range(10):
            time.sleep(0.08)
            heartbeat.said()
        assert lines == []
        wait_for(lines, 1)
    assert len(lines) == 1
