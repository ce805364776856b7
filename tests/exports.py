"""The command of the export, in this process."""

import pytest

from bridge import to_openvino


def run_export(*arguments: object) -> None:
    to_openvino.main([str(argument) for argument in arguments])


def refused_export(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of the command when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        run_export(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error
