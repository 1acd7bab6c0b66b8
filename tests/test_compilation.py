"""Names of compiled loops: machine code on the disk is found again by them alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isac_gym import compilation
from isac_gym.compilation import digest_source, name_loop

SOURCE = """
CONSTANT = {constant}

def make():
    def loop():
        pass
    return loop
"""


def maker(path: Path, constant: int) -> Callable[..., Callable[..., None]]:
    path.write_text(SOURCE.format(constant=constant))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    made: Callable[..., Callable[..., None]] = module.make
    return made


def test_an_edition_is_that_of_the_whole_file(tmp_path: Path) -> None:
    first, second, again = (
        maker(tmp_path / f"loops_{place}.py", constant) for place, constant in enumerate((1, 2, 1))
    )
    assert digest_source(first) != digest_source(second)
    assert digest_source(first) == digest_source(again)


def test_names_differ_by_constants_and_by_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*parts: str | int) -> str:
        def loop() -> None:
            pass

        return name_loop(loop, *parts).__name__

    before = name("loop", 3)
    assert before == name("loop", 3)
    assert before != name("loop", 4)
    monkeypatch.setattr(compilation, "list_compiler_options", lambda: {"fastmath": {"nnan"}})
    assert name("loop", 3) != before
