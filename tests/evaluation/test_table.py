"""Tables in files and on the screen."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
from direct_model import SMALL

from isac_gym.evaluation import (
    Column,
    Table,
)


def make(**changes: Any) -> gym.Env[Any, Any]:
    return gym.make("ISAC-MISO-v0", **{**SMALL, **changes})


TABLE = Table(
    "Rates",
    (
        {"agent": "mrt", "rate": 3.25, "± rate": 0.5, "loss": math.nan, "curve": [1.0, math.inf]},
        {"agent": "zf", "rate": 0.5, "± rate": math.inf, "loss": None, "curve": [2.0]},
    ),
    {"seed": 3},
)


def test_csv_leaves_out_lists_and_what_is_no_number(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "new" / "table.csv")
    text = (tmp_path / "new" / "table.csv").read_text()
    assert text == "agent,rate,± rate,loss\nmrt,3.25,0.5,\nzf,0.5,,\n"


def test_json_holds_lists_and_null_for_what_is_no_number(tmp_path: Path) -> None:
    TABLE.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    assert (content["title"], content["settings"]) == ("Rates", {"seed": 3})
    assert content["rows"][0]["curve"] == [1.0, None]
    assert content["rows"][0]["loss"] is None
    assert content["rows"][1]["± rate"] is None


def test_a_table_shows_numbers_with_their_spread_and_no_lists() -> None:
    lines = str(TABLE).splitlines()
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == ["agent", "rate", "loss"]
    assert [cell.strip() for cell in lines[4].split("│")[1:-1]] == ["mrt", "3.25 ± 0.50", ""]
    assert [cell.strip() for cell in lines[5].split("│")[1:-1]] == ["zf", "0.5000", ""]
    assert "3.25 ± 0.50" in TABLE._repr_html_()


def test_columns_say_what_is_shown() -> None:
    columns = [
        Column("who", lambda row: row["agent"].upper(), "left"),
        Column("both", "{rate:.1f}/{loss:.1f}"),
    ]
    text = str(dataclasses.replace(TABLE, columns=columns, caption="a caption"))
    assert "MRT" in text
    assert "3.2/ " in text
    assert "a caption" in text
