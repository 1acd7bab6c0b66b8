#!/usr/bin/env bash
# Installs the wheel in a clean environment beside openai-agents, which owns the top-level name
# `agents`, and checks from outside the repository that both work and that neither changed the other.
#
#   PYTHON=python3 scripts/check_wheel_install.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
case ${python} in
    */*) python=$(cd "$(dirname "${python}")" && pwd)/$(basename "${python}") ;;
esac

work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT

echo "== clean environment"
"${python}" -m venv "${work}/venv"
clean=${work}/venv/bin/python

echo "== wheel"
mkdir "${work}/source"
(cd "${root}" && tar -cf - --exclude=__pycache__ --exclude='*.egg-info' \
    setup.cfg pyproject.toml MANIFEST.in LICENSE README.md isac_gym agents baselines) |
    tar -xf - -C "${work}/source"
"${clean}" -m pip wheel --quiet --no-deps --wheel-dir "${work}/dist" "${work}/source"
ls "${work}/dist"

echo "== openai-agents, then the wheel"
"${clean}" -m pip install --quiet openai-agents
"${clean}" -m pip install --quiet -c "${root}/constraints.txt" "${work}"/dist/*.whl
"${clean}" -m pip check

mkdir "${work}/elsewhere"
cd "${work}/elsewhere"
echo "== in $(basename "${PWD}")/, outside the repository"
"${clean}" - "${root}" <<'PYTHON'
import base64
import hashlib
import importlib.metadata as metadata
import pathlib
import sys

repository = pathlib.Path(sys.argv[1])


def damaged(name):
    bad = []
    for file in metadata.distribution(name).files or []:
        if file.hash is None:
            continue
        path = file.locate()
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.exists() else b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            bad.append(str(file))
    return bad


for name in ("openai-agents", "isac-gym"):
    bad = damaged(name)
    assert not bad, f"{name}: changed after its installation: {bad[:5]}"
    print(f"{name} {metadata.version(name)}: every file as installed")

import agents

assert hasattr(agents, "Agent"), agents
assert hasattr(agents, "Runner"), agents
print("agents is still that of openai-agents")

import gymnasium as gym

import isac_gym
import isac_gym.agents
import isac_gym.baselines

for module in (isac_gym, isac_gym.agents, isac_gym.baselines):
    origin = pathlib.Path(module.__file__)
    assert repository not in origin.parents, f"{module.__name__} comes from the repository: {origin}"
assert isac_gym.agents is not agents
assert (pathlib.Path(isac_gym.__file__).parent / "py.typed").is_file()

env = gym.make("ISAC-MISO-v0")
env.reset(seed=0)
_, reward, *_ = env.step(env.action_space.sample())
assert reward == reward
print(f"ISAC-MISO-v0: one step, reward {reward:.3f} bit/s/Hz")
PYTHON

"${work}/venv/bin/isac-gym" --help > /dev/null
echo "== the wheel works and breaks nothing"
