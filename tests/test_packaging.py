"""The packaging metadata agrees with the tree: nothing is left out, nothing is unpinned."""

from __future__ import annotations

import configparser
import os
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import isac_gym

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("agents", "baselines")

needs_source_tree = pytest.mark.skipif(
    not (ROOT / "setup.cfg").is_file(), reason="runs in the source tree only"
)


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def entries(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def packages_below(directory: Path) -> set[str]:
    found = set()
    for path, _, files in os.walk(directory, followlinks=True):
        if "__init__.py" in files:
            relative = Path(path).relative_to(directory.parent)
            found.add(".".join(relative.parts))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned_names() -> set[str]:
    lines = entries((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return {canonical(Requirement(line).name) for line in lines if not line.startswith("#")}


def all_requirements() -> list[Requirement]:
    setup = read_setup()
    texts = entries(setup["options"]["install_requires"])
    for extra in setup["options.extras_require"].values():
        texts += entries(extra)
    requirements = [Requirement(text) for text in texts]
    return [r for r in requirements if canonical(r.name) != "isac-gym"]


@needs_source_tree
def test_every_package_is_listed() -> None:
    listed = entries(read_setup()["options"]["packages"])
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_below(ROOT / "isac_gym")


@needs_source_tree
def test_every_folder_with_modules_is_a_package() -> None:
    directories = {Path(path) for path in map(os.path.dirname, iter_modules(ROOT / "isac_gym"))}
    assert [str(d) for d in sorted(directories) if not (d / "__init__.py").is_file()] == []


def iter_modules(directory: Path) -> list[str]:
    return [
        os.path.join(path, file)
        for path, _, files in os.walk(directory, followlinks=True)
        for file in files
        if file.endswith(".py")
    ]


@needs_source_tree
def test_package_dir_points_at_existing_folders() -> None:
    for entry in entries(read_setup()["options"]["package_dir"]):
        _, folder = (part.strip() for part in entry.split("="))
        assert (ROOT / folder).is_dir(), entry


@pytest.mark.parametrize("name", LINKED)
def test_linked_package_is_reachable(name: str) -> None:
    inside = Path(isac_gym.__file__).parent / name
    if (ROOT / "setup.cfg").is_file():
        link = ROOT / "isac_gym" / name
        assert link.is_symlink(), f"{link} must be a symbolic link"
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == ROOT / name
    assert (inside / "__init__.py").is_file()


def test_bare_names_are_not_installed() -> None:
    try:
        files = distribution("isac-gym").files or []
    except PackageNotFoundError:
        pytest.skip("isac-gym is not installed")
    assert {file.parts[0] for file in files}.isdisjoint(LINKED)


@needs_source_tree
@pytest.mark.parametrize("requirement", all_requirements(), ids=lambda r: r.name)
def test_requirement_has_a_lower_bound_and_a_pin(requirement: Requirement) -> None:
    assert any(spec.operator == ">=" for spec in requirement.specifier)
    assert canonical(requirement.name) in pinned_names()


@needs_source_tree
def test_constraints_are_exact_and_within_the_bounds() -> None:
    bounds = {canonical(r.name): r.specifier for r in all_requirements()}
    for line in entries((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        (spec,) = pin.specifier
        assert spec.operator == "==", line
        assert "+" not in spec.version, line
        assert "*" not in spec.version, line
        bound = bounds.get(canonical(pin.name))
        assert bound is None or spec.version in bound, line
