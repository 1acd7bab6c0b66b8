"""The wheel holds every module under its installed name and nothing at the top level."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in")
FOLDERS = ("isac_gym", "agents", "baselines")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.cfg").is_file(), reason="runs in the source tree only"
)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    # A copy: building in the tree would leave build/ behind and pick up what an older one left.
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, source)
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_every_module(wheel_names: set[str]) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "isac_gym").rglob("*.py")
        if path.relative_to(ROOT / "isac_gym").parts[0] not in ("agents", "baselines")
    }
    for name in ("agents", "baselines"):
        expected |= {
            "isac_gym/" + path.relative_to(ROOT).as_posix() for path in (ROOT / name).rglob("*.py")
        }
    assert {name for name in wheel_names if name.endswith(".py")} == expected


def test_wheel_is_marked_as_typed(wheel_names: set[str]) -> None:
    assert "isac_gym/py.typed" in wheel_names


def test_wheel_has_one_top_level_package(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"isac_gym"}


def test_wheel_carries_the_licence_and_the_command(wheel_names: set[str]) -> None:
    ends = [name.partition(".dist-info/")[2] for name in wheel_names]
    assert "entry_points.txt" in ends
    assert any(end.endswith("LICENSE") for end in ends)
