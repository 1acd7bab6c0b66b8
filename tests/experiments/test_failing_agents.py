"""Experiments in which an agent fails: what the other points gave is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_agents import TOY

from isac_gym import Scenario
from isac_gym.evaluation import AgentError
from isac_gym.experiments import Experiment, Point, Workspace, run_experiment
from isac_gym.experiments.compare import Compare
from isac_gym.registry import AGENTS

SMALL = Scenario(**TOY)
MODULE = """\
import numpy as np


class Sound:
    def __init__(self, env):
        self.size = env.action_space.shape[0]

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((*np.shape(observation)[:-1], self.size), 0.1, np.float32), state


class Unsound(Sound):
    def predict(self, observation, **_):
        raise ZeroDivisionError("my mistake")


class Unteachable(Sound):
    def learn(self):
        raise ZeroDivisionError("my mistake")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failing(Experiment):
    """Points at some of which an agent fails."""

    bad: list[int]
    done: list[int] = dataclasses.field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {"scenario": self.scenario.to_dict()}

    def points(self) -> list[Point]:
        return [{"number": number} for number in range(4)]

    def run(self, point: Point, workspace: Workspace) -> Mapping[str, Any]:
        if point["number"] in self.bad:
            raise AgentError(f"agent {point['number']} failed")
        self.done.append(point["number"])
        return {"square": point["number"] ** 2}


def test_a_study_computes_the_other_points_and_goes_on_with_what_failed(tmp_path: Path) -> None:
    first = Failing(bad=[1, 2])
    with pytest.raises(AgentError, match="agent 1 failed; agent 2 failed"):
        run_experiment(first, tmp_path)
    assert first.done == [0, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["Failing.unfinished"]
    then = Failing(bad=[])
    assert [row["square"] for row in run_experiment(then, tmp_path).rows] == [0, 1, 4, 9]
    assert then.done == [1, 2]


@pytest.mark.parametrize("name", ["Unsound", "Unteachable"])
def test_a_comparison_without_the_agent_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "failing_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    agents = (f"failing_here:{name}", "mrt", "failing_here:Sound")
    experiment = Compare(scenario=SMALL, only=True, agents=agents, channels=3)
    with pytest.raises(AgentError, match=f"agent 'failing_here:{name}' failed in") as caught:
        run_experiment(experiment, tmp_path / "out")
    found = caught.value.results
    assert found is not None
    assert [row["name"] for row in found.rows] == ["mrt", "failing_here:Sound"]
    assert (
        f"left out: name failing_here:{name} (agent 'failing_here:{name}' failed in"
        in found.caption
    )
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["mrt", "failing_here:Sound"]
    assert "my mistake" in next(iter(written["settings"]["failed"].values()))
    whole = run_experiment(Compare(scenario=SMALL, only=True, agents=agents[1:], channels=3))
    for one, other in zip(found.rows, whole.rows, strict=True):
        assert one["spectral_efficiency"] == other["spectral_efficiency"]
        assert one["percent_of_reference"] == other["percent_of_reference"]


def test_no_two_agents_share_a_file(tmp_path: Path) -> None:
    def name_file(name: str) -> str:
        path: Path = Workspace(tmp_path).keep_training(name)["checkpoint"]
        assert path.parent == tmp_path
        return path.name.removesuffix(".checkpoint.zip")

    names = ["ppo", "PPO", "a:b", "a.b", "a/b", "a\\b", "../b", "a b", "é", "è", "x" * 300]
    names.append("x" * 301)
    files = [name_file(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    for file in files:
        assert len(file) < 100
    for name in AGENTS.names():
        assert name_file(name) == name


@pytest.mark.parametrize("name", ["$a$b$_{", "_hidden", "[/]", "[bold"])
def test_names_in_pictures_and_tables_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "failing_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import failing_here  # type: ignore[import-not-found]

    monkeypatch.setattr(AGENTS, "_imported", dict(AGENTS._imported))
    monkeypatch.setattr(AGENTS, "_classes", dict(AGENTS._classes))
    AGENTS.add(failing_here.Sound, name, "sound", is_default=False)
    experiment = Compare(scenario=SMALL, only=True, agents=(name,), channels=3)
    table = run_experiment(experiment, tmp_path / "out")
    assert name in str(table)
    figure = experiment.draw(table)
    labels = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert sum(name in label.replace("\\$", "$") for label in labels) == len(figure.axes)
