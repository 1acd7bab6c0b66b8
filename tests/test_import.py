"""Importing the package registers the environment and loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "torch",
    "stable_baselines3",
    "matplotlib",
    "scipy",
    "numba",
    "rich",
    "typer",
    "safetensors",
    "pandas",
)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = (
        "import gymnasium, sys; before = set(sys.modules); import isac_gym; "
        f"print(sorted((set(sys.modules) - before) & set({HEAVY!r})))"
    )
    assert run(code) == "[]"


def test_import_registers_the_environment() -> None:
    code = (
        "import gymnasium as gym; assert 'ISAC-MISO-v0' not in gym.registry; import isac_gym; "
        "spec = gym.registry['ISAC-MISO-v0']; print(spec.entry_point, spec.vector_entry_point)"
    )
    assert run(code) == "isac_gym.envs.single:ISACEnv isac_gym.envs.batched:make_vector_env"


def test_gymnasium_can_import_the_package_by_the_id() -> None:
    assert run("import gymnasium as gym; print(gym.make('isac_gym:ISAC-MISO-v0').spec.id)") == (
        "ISAC-MISO-v0"
    )


def test_a_scenario_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import gymnasium, sys; before = set(sys.modules); import isac_gym; "
        "isac_gym.Scenario(num_users=3); "
        f"print(sorted((set(sys.modules) - before) & set({HEAVY!r})))"
    )
    assert run(code) == "[]"


def test_making_an_environment_needs_no_stable_baselines3_nor_matplotlib() -> None:
    code = (
        "import sys, gymnasium as gym, isac_gym; env = gym.make('ISAC-MISO-v0'); env.reset(seed=0);"
        "env.step(env.action_space.sample()); envs = gym.make_vec('ISAC-MISO-v0', num_envs=2);"
        "print([m for m in ('stable_baselines3', 'matplotlib', 'tensorboard') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_making_an_environment_loads_nothing_that_trains_or_acts() -> None:
    code = (
        "import sys, gymnasium as gym, isac_gym; env = gym.make('ISAC-MISO-v0'); env.reset(seed=0);"
        "env.step(env.action_space.sample()); gym.make_vec('ISAC-MISO-v0', num_envs=2);"
        "rooms = ('agents', 'baselines', 'learning', 'evaluation', 'experiments', 'cli');"
        "print([m for m in sys.modules if m.startswith(tuple(f'isac_gym.{r}' for r in rooms))])"
    )
    assert run(code) == "[]"
