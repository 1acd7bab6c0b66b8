"""The command line where an agent fails: the others' table, then the failure, and no success."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import run
from small_commands import BASE, SET, TEN_LINES

FAILING = (
    TEN_LINES
    + """

class Failing(MyAgent):
    def predict(self, observation, **arguments):
        raise ValueError("my [/] mistake")
"""
)
AGENTS = ("failing_there:Failing", "mrt", "failing_there:MyAgent")


def check(output: str) -> None:
    text = " ".join(output.split())
    message = "error: agent 'failing_there:Failing' failed in predict: "
    assert message in text
    assert "my [/] mistake" in text
    table = text[: text.index(message)]
    assert "mrt" in table
    assert "failing_there:MyAgent" in table


def test_compare_writes_and_prints_the_others(folder: Path) -> None:
    (folder / "failing_there.py").write_text(FAILING)
    chosen = [part for name in AGENTS for part in ("--agent", name)]
    done = run(*BASE, *chosen, "-o", "out", *SET)
    assert done.exit_code == 2
    check(done.output)
    rows = json.loads((folder / "out" / "compare.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["mrt", "failing_there:MyAgent"]
    assert (folder / "out" / "compare.png").exists()
    assert "out/compare.csv" in done.output


def test_evaluate_prints_the_others(folder: Path) -> None:
    (folder / "failing_there.py").write_text(FAILING)
    done = run("evaluate", *AGENTS, "--channels", "3", *SET)
    assert done.exit_code == 2
    check(done.output)


def test_paths_that_look_like_markup(folder: Path) -> None:
    (folder / "failing_there.py").write_text(FAILING)
    done = run(*BASE, "--agent", "failing_there:MyAgent", "-o", "[/]", *SET)
    assert done.exit_code == 0, repr(done.exception)
    assert "[/]/compare.csv" in done.output
