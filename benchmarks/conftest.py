"""Prints the facts that benchmarks state beside their times."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """List ``benchmark.extra_info`` of every benchmark, which the table of times leaves out."""
    session = getattr(config, "_benchmarksession", None)
    for bench in getattr(session, "benchmarks", []):
        if bench.extra_info:
            facts = ", ".join(f"{name} {value}" for name, value in bench.extra_info.items())
            terminalreporter.write_line(f"{bench.name}: {facts}")
