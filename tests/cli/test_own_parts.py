"""The command line: channel models, constraints and learners of one's own, by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import failed, run, succeeded
from small_commands import BASE, LABELS, MRT_ONLY, SET, TEN_LINES, make, settings_of

from isac_gym.agents import PrimalDual
from isac_gym.baselines import MRT
from isac_gym.channels import RicianChannel
from isac_gym.evaluation import compare
from isac_gym.registry import CHANNELS

CHANNEL = """\
import dataclasses

import numpy as np

from isac_gym.channels import ChannelModel
from isac_gym.registry import register_channel


@register_channel("ones", "all paths alike")
@dataclasses.dataclass
class Ones(ChannelModel):
    scale: float = 1.0

    def draw(self, rng, num, deployment):
        return np.full((num, *deployment.shape), self.scale, np.complex64)
"""
CONSTRAINT = """\
from isac_gym.registry import register_constraint
from isac_gym.system.constraints import Constraint


@register_constraint("peak", "largest power of a user")
class Peak(Constraint):
    symbol, unit = "p_max", "W"

    def limit(self, scenario):
        return 0.25

    def quantity(self, outcome, system):
        return outcome.transmission.precoders.abs().square().sum(-2).amax(-1)
"""


def settings_in(path: str) -> Any:
    return json.loads(Path(path).read_text())["settings"]


def test_a_channel_model_by_name_with_arguments(folder: Path) -> None:
    chosen = ("--channel", "rician", "-c", "k_factor_db=7", *SET)
    output = succeeded(run(*MRT_ONLY, *chosen, "-o", "out"))
    env = make(channel_model=RicianChannel(7))
    expected = compare({"mrt": MRT(env)}, env, channels=3)
    assert expected.settings["evaluation_set"] in output
    assert settings_in("out/compare.json")["channel_model"] == CHANNELS.describe(RicianChannel(7))
    assert expected.settings["evaluation_set"] in succeeded(
        run("evaluate", "mrt", "--channels", "3", *chosen)
    )
    for command in (("train", "primal-dual-paper", "--iterations", "1", "-o", "a.zip"), LABELS):
        succeeded(run(*command, *chosen))
    assert PrimalDual.load("a.zip").channel_model == RicianChannel(7)


def test_a_channel_model_from_a_file_and_of_ones_own(folder: Path) -> None:
    (folder / "own_channel.py").write_text(CHANNEL)
    samples = np.random.default_rng(0).normal(size=(9, 1, 1, 2, 7, 2))
    np.save("my.npy", (samples[..., 0] + 1j * samples[..., 1]).astype(np.complex64))
    outputs = [
        succeeded(run(*start, *MRT_ONLY, "--channel", *chosen, *SET, "-o", name))
        for name, start, chosen in (
            ("a", (), ("file:my.npy",)),
            ("b", (), ("own_channel:Ones", "-c", "scale=2")),
            ("c", ("--import", "own_channel"), ("ones", "-c", "scale=2")),
        )
    ]
    digests = [settings_in(f"{name}/compare.json")["evaluation_set"] for name in "abc"]
    assert digests[1] == digests[2] != digests[0]
    assert all(digest in output for digest, output in zip(digests, outputs, strict=True))


def test_a_constraint_of_ones_own(folder: Path) -> None:
    (folder / "own_constraint.py").write_text(CONSTRAINT)
    for start, name in ((("--import", "own_constraint"), "peak"), ((), "own_constraint:Peak")):
        output = succeeded(run(*start, *MRT_ONLY, "--constraint", name, *SET))
        assert "p_max mean" in output
        assert "p_max ≤ 0.25" in output
        with (folder / "results" / "compare" / "compare.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["peak_mean"]) == pytest.approx(0.5)
        assert float(row["peak_feasible"]) == float(row["feasible_share"]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--channel", "nosuch"), ["nosuch", "rician"]),
        (("--channel", "rician", "-c", "nosuch=1"), ["nosuch", "k_factor_db"]),
        (("--channel", "rician", "-c", "k_factor_db"), ["NAME=VALUE", "k_factor_db"]),
        (("-c", "k_factor_db=7"), ["--channel-set needs --channel"]),
        (("--channel", "file:missing.npy"), ["missing.npy"]),
        (("--channel", "json:JSONDecoder"), ["json:JSONDecoder", "ChannelModel"]),
        (("--channel", "gauss-markov", "-c", "doppler=0.1", "-s", "doppler=0.2"), ["doppler"]),
        (("--constraint", "nosuch"), ["nosuch", "sensing"]),
        (("--constraint", "sensing"), ["'sensing' twice"]),
        (("--constraint", "json:JSONDecoder"), ["Constraint"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("command", ["compare", "evaluate", "train", "labels", "bench", "tradeoff"])
def test_bad_channel_models_and_constraints(
    folder: Path, command: str, arguments: tuple[str, ...], expected: list[str]
) -> None:
    given = {"evaluate": ["mrt"], "train": ["primal-dual-paper"], "labels": ["mrt"]}
    failed(run(command, *given.get(command, []), *SET, *arguments), *expected)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("body", ["import nosuch_module_at_all", None])
def test_a_module_that_cannot_be_imported(folder: Path, body: str | None) -> None:
    if body is not None:
        (folder / "cannot_import.py").write_text(body)
    failed(run("--import", "cannot_import", "agents"), "--import", "cannot_import")


LEARNER = (
    TEN_LINES
    + """
    def learn(self, steps=3, checkpoint=None):
        self.size_of_steps = steps
        return self

    def save(self, path):
        path.write_text("mine")

    @classmethod
    def load(cls, path, env):
        assert path.read_text() == "mine"
        return cls(env)
"""
)


def test_a_learner_of_ones_own_is_trained_and_saved_like_the_packages(folder: Path) -> None:
    (folder / "own_learner.py").write_text(
        LEARNER.replace(
            "class MyAgent",
            "from isac_gym.registry import register_agent\n\n\n"
            "@register_agent('own-learner', 'learns nothing', learns=True, is_default=False)\n"
            "class MyAgent",
        )
    )
    succeeded(run("train", "own_learner:MyAgent", "-o", "new/a.mine", *SET))
    succeeded(run("--import", "own_learner", "train", "own-learner", "-o", "b.mine", *SET))
    for name in ("new/a.mine", "b.mine"):
        command = ("evaluate", f"own_learner:MyAgent@{name}", "mrt", "--channels", "3", *SET)
        assert "own_learner:MyAgent@" in succeeded(run(*command))
    failed(run("evaluate", "own_learner:MyAgent", *SET), "not trained", "own_learner:MyAgent")
    failed(run("evaluate", "b.mine", *SET), "b.mine", "not a saved agent")
    failed(run("evaluate", "own_learner:MyAgent@missing.mine", *SET), "missing.mine")
    no_board = run("train", "own_learner:MyAgent", "--tensorboard", "board", *SET)
    failed(no_board, "own_learner:MyAgent", "tensorboard_log")


def test_an_object_in_a_module_is_used_as_it_is(folder: Path) -> None:
    (folder / "own_object.py").write_text(
        LEARNER + "\n    def __init__(self): self.size = 20\n\n\ntrained = MyAgent()\n"
    )
    succeeded(
        run(
            *BASE,
            "--agent",
            "own_object:trained",
            *settings_of(
                num_radar_antennas=1,
                target_angles_deg=[0.0],
                sensing_threshold=9.0,
                control="power",
                num_users=18,
            ),
        )
    )
