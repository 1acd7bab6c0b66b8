#!/usr/bin/env bash
# Runs the tests of RLlib in an environment of its own, because RLlib pins another version of
# Gymnasium than the one that everything else is tested with.
#
#   PYTHON=python3 scripts/check_rllib.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
case ${python} in
    */*) python=$(cd "$(dirname "${python}")" && pwd)/$(basename "${python}") ;;
esac

work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT

echo "== an environment with RLlib"
"${python}" -m venv "${work}/venv"
grep -v '^gymnasium==' "${root}/constraints.txt" >"${work}/constraints.txt"
# The packages that the tests' helpers need are listed, because the extra `dev` needs Gymnasium's
# present version.
"${work}/venv/bin/python" -m pip install --quiet -c "${work}/constraints.txt" \
    "${root}" 'ray[rllib]' pytest hypothesis
"${work}/venv/bin/python" -m pip list 2>/dev/null | grep -E '^(ray|gymnasium|torch) '

# Without it the tests would be skipped, which is no failure.
"${work}/venv/bin/python" -c 'import ray.rllib'

echo "== its tests"
cd "${root}"
OMP_NUM_THREADS=1 "${work}/venv/bin/python" -m pytest -q -rs tests/envs/test_libraries.py -k rllib
echo "== RLlib works"
