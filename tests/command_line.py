"""Running ``isac-gym`` within a test, and what its end must look like."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from isac_gym.cli import app


def run(*arguments: str) -> Result:
    # Exceptions other than SystemExit must show as what they are: tracebacks for the user.
    return CliRunner().invoke(app, list(arguments))


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def failed(result: Result, *expected: str) -> None:
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    text = " ".join(result.output.split())
    assert "Traceback" not in text
    for part in expected:
        assert part in text


def console_script() -> str:
    script = shutil.which("isac-gym", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the console script is not installed")
    return script
