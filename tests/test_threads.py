"""Threads and forks: numbers of threads stay as they are, and children compute."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from isac_gym.threads import run_in_threads

HERE = Path(__file__).resolve().parent
SETUP = """
import os, sys, threading
import numpy as np
import torch
torch.set_num_threads(2)
import gymnasium as gym
import isac_gym
from small_agents import make, quick

def in_a_new_thread(question=torch.get_num_threads):
    found = []
    thread = threading.Thread(target=lambda: found.append(question()))
    thread.start()
    thread.join()
    return found[0]

def openmp():
    from threadpoolctl import threadpool_info
    pools = [each for each in threadpool_info() if each["user_api"] == "openmp"]
    return sorted({each["num_threads"] for each in pools})

def compute():
    x = torch.randn(300, 300)
    return float((x @ x).exp().sum())
"""


def run(code: str, timeout: float = 90.0) -> str:
    """What a process with two torch threads prints; a hang is an error."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = "2"
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None and hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # its children as well
            process.wait()
    assert process.returncode == 0, errors
    return output


# The pool


def test_results_come_in_order_and_errors_as_they_are() -> None:
    assert run_in_threads(lambda x, y: x - y, 3, range(20), range(0, 40, 2)) == [
        -number for number in range(20)
    ]

    def fails(number: int) -> int:
        if number == 3:
            raise KeyError("three")
        return number

    with pytest.raises(KeyError, match="three"):
        run_in_threads(fails, 2, range(6))
    assert run_in_threads(fails, 2, range(3)) == [0, 1, 2], "the pool is still of use"
    assert run_in_threads(fails, 2, []) == []


def test_several_at_a_time() -> None:
    """Each waits until all have begun."""
    meeting = threading.Barrier(3, timeout=30.0)
    names = run_in_threads(lambda _: (meeting.wait(), threading.current_thread().name)[1], 3, "abc")
    assert len(set(names)) == 3


def test_each_call_computes_in_one_thread() -> None:
    code = """
from isac_gym.threads import run_in_threads
def question(_):
    compute()
    return torch.get_num_threads(), openmp()
print(sorted(set(map(str, run_in_threads(question, 2, range(16))))))
"""
    assert run(code).strip() == str(["(1, [1])"])


def test_the_numbers_of_threads_of_others_stay() -> None:
    code = """
from isac_gym.threads import run_in_threads
before = torch.get_num_threads(), in_a_new_thread(), openmp(), in_a_new_thread(openmp)
older = threading.Event(), []
def wait():
    compute()
    older[0].wait()
    compute()
    older[1].append(torch.get_num_threads())
thread = threading.Thread(target=wait)
thread.start()
run_in_threads(lambda _: compute(), 2, range(8))
older[0].set()
thread.join()
after = torch.get_num_threads(), in_a_new_thread(), openmp(), in_a_new_thread(openmp)
assert before == after, (before, after)
assert before[:2] == (2, 2), before
assert older[1] == [2], older
torch.set_num_threads(1)
assert (torch.get_num_threads(), in_a_new_thread()) == (1, 1)
torch.set_num_threads(2)
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
"""
    run(code)


# Acting


@pytest.mark.parametrize("architecture", ["unfolded", "direct"])
def test_acting_on_a_batch_leaves_the_numbers_of_threads(architecture: str) -> None:
    code = f"""
env = make()
agent = quick(env, architecture="{architecture}")
batch = np.stack([env.reset(seed=seed)[0] for seed in range(300)])
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
before = openmp(), in_a_new_thread(openmp)
pool = {{thread.name for thread in threading.enumerate()}}
first = agent.predict(batch)[0]
assert len({{thread.name for thread in threading.enumerate()}} - pool) == 2, "it was shared out"
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
assert (openmp(), in_a_new_thread(openmp)) == before
second = in_a_new_thread(lambda: agent.predict(batch)[0])
np.testing.assert_array_equal(first, second)
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
agent.predict(batch[0])
agent.learn(2)
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
print("held")
"""
    assert run(code).strip() == "held"


def test_agents_in_several_threads_of_the_caller() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
env = make()
agent = quick(env, architecture="unfolded")
batch = np.stack([env.reset(seed=seed)[0] for seed in range(300)])
expected = agent.predict(batch)[0]
with ThreadPoolExecutor(4) as pool:
    for found in pool.map(lambda _: agent.predict(batch)[0], range(12)):
        np.testing.assert_array_equal(found, expected)
assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
print("held")
"""
    assert run(code).strip() == "held"


# Forks

NO_FORK = pytest.mark.skipif(
    not hasattr(os, "fork") or "fork" not in multiprocessing.get_all_start_methods(),
    reason="there is no fork on this system",
)
PARENT = """
env = make()
agent = quick(env, architecture="unfolded")
batch = np.stack([env.reset(seed=seed)[0] for seed in range(300)])
expected = agent.predict(batch)[0]
action = np.full(env.action_space.shape, 0.25, np.float32)
env.reset(seed=5)
outcome = env.step(action)
torch.linalg.eigh(torch.randn(60, 60, 60))
compute()
"""


@NO_FORK
def test_a_forked_child_steps_an_environment() -> None:
    code = (
        PARENT
        + """
child = os.fork()
if child == 0:
    ended = 1
    try:
        env.reset(seed=5)
        found = env.step(action)
        np.testing.assert_allclose(found[1], outcome[1], rtol=1e-6)
        own = make()
        own.reset(seed=5)
        assert own.step(action)[1] == found[1]
        compute()
        assert torch.get_num_threads() == 1
        ended = 0
    finally:
        os._exit(ended)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.get_num_threads() == 2
np.testing.assert_array_equal(agent.predict(batch)[0], expected)
print("both")
"""
    )
    assert run(code).strip() == "both"


@NO_FORK
def test_a_forked_child_acts_and_shares_out_anew() -> None:
    code = (
        PARENT
        + """
from isac_gym.threads import run_in_threads
child = os.fork()
if child == 0:
    ended = 1
    try:
        np.testing.assert_allclose(agent.predict(batch)[0], expected, rtol=0, atol=2e-4)
        parts = torch.from_numpy(batch).chunk(2)
        found = torch.cat(run_in_threads(agent._answer, 2, parts)).numpy()
        np.testing.assert_array_equal(found, expected)
        agent.learn(1)
        assert torch.get_num_threads() == 1
        ended = 0
    finally:
        os._exit(ended)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both")
"""
    )
    assert run(code).strip() == "both"


ASYNCHRONOUS = (
    PARENT
    + """
from small_agents import TOY
def main():
    for context in CONTEXTS:
        envs = gym.make_vec(
            "ISAC-MISO-v0", num_envs=3, vectorization_mode="async",
            vector_kwargs={"context": context}, **TOY,
        )
        observations = envs.reset(seed=[5, 6, 7])[0]
        np.testing.assert_array_equal(observations[0], batch[5])
        found = envs.step(np.tile(action, (3, 1)))
        np.testing.assert_allclose(found[1][0], outcome[1], rtol=1e-6)
        for _ in range(12):
            envs.step(envs.action_space.sample())
        envs.close()
    np.testing.assert_array_equal(agent.predict(batch)[0], expected)
    print("stepped")
main()
"""
)


@pytest.mark.parametrize("context", [None, pytest.param("fork", marks=NO_FORK)])
def test_asynchronous_environments_after_the_parent_has_computed(context: str | None) -> None:
    if sys.platform != "linux" and context is None:
        pytest.skip("children that are spawned import a main module that is not there")
    assert run(ASYNCHRONOUS.replace("CONTEXTS", repr([context]))).strip() == "stepped"


def test_asynchronous_environments_by_default() -> None:
    code = """
compute()
warm = gym.make("ISAC-MISO-v0")
warm.reset(seed=0)
warm.step(warm.action_space.sample())
envs = gym.make_vec("ISAC-MISO-v0", num_envs=3, vectorization_mode="async")
envs.reset(seed=0)
rewards = envs.step(envs.action_space.sample())[1]
envs.close()
assert rewards.shape == (3,)
assert (rewards > 0).all()
print("stepped")
"""
    assert run(code).strip() == "stepped"


def test_this_process_has_one_thread() -> None:
    """What the tests' configuration sets is not undone by those above."""
    run_in_threads(lambda x: torch.ones(10).sum() + x, 2, range(4))
    assert torch.get_num_threads() == 1
