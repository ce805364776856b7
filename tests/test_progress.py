import io
import sys
import time

from yogo_jax.progress import Heartbeat, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(monkeypatch, stream) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("images") as on_start:
        advance = on_start(3)
        for _ in range(3):
            advance()
    return stream.getvalue()


def test_a_bar_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert steps(monkeypatch, io.StringIO()) == ""
    shown = steps(monkeypatch, Terminal())
    assert "images" in shown
    assert "3/3" in shown


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
