import io
import sys

from yogo_jax.output.progress import progress_bar


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
