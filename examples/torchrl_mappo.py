"""IPPO and MAPPO of TorchRL: stations that each decide from what they know themselves.

    pip install 'isac-gym[marl,rl,torchrl]'
    python examples/torchrl_mappo.py --critic own  # IPPO
    python examples/torchrl_mappo.py --critic all  # MAPPO
    python examples/torchrl_mappo.py --message-bits 4 --doppler 0.02 --gamma 0.5 --reward network

One set of weights serves all stations, and each has a multiplier for its sensing constraint. What a
station sees are the features of its own channels, the bits that have arrived, and which of the
stations it is; the critic, which only learning needs, sees that (``own``) or what all see
(``all``). ``--simulator parallel`` learns on the ParallelEnv, through TorchRL's own wrapper;
``batched`` on many of them that are stepped as one, with the same keys.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.envs import PettingZooWrapper, Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import isac_gym
from isac_gym.baselines import RZF, EqualPower, JointOracle
from isac_gym.envs.torchrl import BatchedStations, InfoFromTheStart
from isac_gym.rl.multipliers import PlainMultiplier
from isac_gym.system.features import FeatureLayout

KEPT = ("sum_rate", "constraint_sensing")


class Summarise(Transform):
    """What a station sees as the same few numbers of each of its users, (…, J, K, S).

    A user's own features; of the other users of its cell, and of those of other cells, mean and
    largest of their features, of the pair's, and of products of both; then what concerns the whole
    station: bits and its number. So a network can be the same for every user and every station.
    """

    def __init__(self, layout: FeatureLayout, cells: int) -> None:
        super().__init__(in_keys=[("station", "observation")], out_keys=[("station", "users")])
        self.layout, self.cells = layout, cells

    def _apply_transform(self, seen: Tensor) -> Tensor:
        own, (size, rest) = self.layout.own_users, (self.layout.size, seen.shape[-1])
        features, heard = seen.split([size, rest - size], -1)
        users, pairs = self.layout.split(features)
        whose = users.unsqueeze(-3).expand(*pairs.shape[:-1], -1)
        known = torch.cat([whose, pairs, pairs * whose[..., :1], pairs * whose[..., 1:2]], -1)
        near = known[..., :own, :][..., ~torch.eye(own, dtype=torch.bool), :]
        groups = (near.unflatten(-2, (own, own - 1)), known[..., own:, :])
        parts = [part for group in groups for part in (group.mean(-2), group.amax(-2))]
        which = torch.eye(self.cells).expand(*seen.shape[:-1], self.cells)
        whole = torch.cat([heard, which], -1).unsqueeze(-2).expand(*parts[0].shape[:-1], -1)
        return torch.cat([users[..., :own, :], *parts, whole], -1)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> Any:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """With what this adds."""
        shape = self._apply_transform(observation_spec["station", "observation"].zero()).shape
        observation_spec["station", "users"] = Unbounded(shape)
        return observation_spec


class Network(nn.Module):
    """States of users from their numbers (…, J, K, S) and the mean and largest state of the cell.

    An actor, which gives mean and deviation of actions (…, J, A) before the tanh, with ``bits``; a
    critic, which gives values (…, J, 1), without. With ``everyone`` these follow from the mean
    states of all stations, each beginning with itself.
    """

    def __init__(
        self, sample: Tensor, width: int, bits: int | None = None, everyone: bool = False
    ) -> None:
        super().__init__()
        flat = sample.flatten(0, -2)
        # A bit that has hardly been heard yet must not be blown up.
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("scale", flat.std(0).clamp_min(0.03))
        self.register_buffer("deviation", torch.ones(()))
        self.enter, self.mix = nn.Linear(len(self.mean), width), nn.Linear(3 * width, width)
        self.places = sample.shape[-3] if everyone else 1
        self.of_station = nn.Linear(width, bits) if bits else None
        if bits is None:
            self.judge = nn.Sequential(
                nn.Linear(self.places * width, width), nn.SiLU(), nn.Linear(width, 1)
            )
            return
        self.of_user = nn.Linear(width, 3)
        nn.init.normal_(self.of_user.weight, std=1e-3)  # to begin in the middle of the box
        nn.init.zeros_(self.of_user.bias)

    def forward(self, users: Tensor) -> Any:
        """Mean and deviation, or values."""
        states = nn.functional.silu(self.enter((users - self.mean) / self.scale))
        cell = torch.cat([states.mean(-2), states.amax(-2)], -1).unsqueeze(-2)
        told = torch.cat([states, cell.expand(*states.shape[:-1], -1)], -1)
        states = nn.functional.silu(self.mix(told))
        whole = states.mean(-2)
        if not hasattr(self, "of_user"):
            turned = [whole.roll(-place, -2) for place in range(self.places)]
            return self.judge(torch.cat(turned, -1))
        mean = self.of_user(states).mT.flatten(-2)
        if self.of_station is not None:
            mean = torch.cat([mean, self.of_station(whole)], -1)
        return mean, self.deviation.expand_as(mean)


def say(name: str, rates: Tensor, excess: Tensor) -> None:
    """Print means of rates and of L_r/ε - 1, both (…, J)."""
    ratios = " ".join(f"{1.0 + mean:.3f}" for mean in excess.flatten(0, -2).mean(0).tolist())
    print(f"{name}: {float(rates.mean()):.3f} bit/s/Hz a station, L_r/ε = {ratios}", flush=True)


def main(
    critic: Annotated[str, typer.Option(help="What it sees: own (IPPO) or all (MAPPO).")] = "all",
    simulator: Annotated[str, typer.Option(help="batched or parallel.")] = "batched",
    reward: Annotated[
        str, typer.Option(help="Rates of the own station, or the network.")
    ] = "station",
    message_bits: Annotated[int, typer.Option(help="Bits to each neighbour.")] = 0,
    doppler: Annotated[float | None, typer.Option(help="Of channels; none: always new.")] = None,
    gamma: Annotated[float, typer.Option(help="Discount; messages need one.")] = 0.0,
    blocks: Annotated[int, typer.Option(help="Blocks to learn from.")] = 300_000,
    rollout: Annotated[int, typer.Option(help="Blocks between two updates.")] = 1280,
    epochs: Annotated[int, typer.Option(help="Passes over a rollout.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, at first.")] = 3e-3,
    deviation: Annotated[tuple[float, float], typer.Option(help="First and last.")] = (0.5, 0.06),
    multiplier: Annotated[tuple[float, float], typer.Option(help="First, and step.")] = (8.0, 2.5),
    channels: Annotated[int, typer.Option(help="Of the comparison.")] = 2000,
    baselines: Annotated[bool, typer.Option(help="Compare with some; joint takes long.")] = True,
    seed: Annotated[int, typer.Option(help="Of weights, exploration and channels.")] = 0,
) -> None:
    """Train, then compare on channels that training never draws."""
    torch.manual_seed(seed)
    physics: dict[str, Any] = {"scenario": "three-cells", "doppler": doppler}
    spaces = {**physics, "control": "structured", "observation": "features"}
    several = isac_gym.parallel_env(reward=reward, message_bits=message_bits, **spaces)
    length, cells = several.scenario.episode_length, several.scenario.num_cells
    summarise = Summarise(FeatureLayout.of(several.scenario), cells)
    told: Any = {"reward": reward, "message_bits": message_bits}
    if simulator == "parallel":
        env = TransformedEnv(PettingZooWrapper(InfoFromTheStart(several)), summarise)
    else:
        env = TransformedEnv(BatchedStations(rollout // length, **told, **spaces), summarise)
    steps = rollout // max(1, env.batch_size.numel())
    env.set_seed(seed)
    sample = env.rollout(steps, break_when_any_done=False)["station", "users"]
    sample = sample.flatten(0, -4)
    bits, group = message_bits * (cells - 1), "station"
    network = Network(sample, 64, bits)
    actor = ProbabilisticActor(
        TensorDictModule(network, [(group, "users")], [(group, "loc"), (group, "scale")]),
        in_keys=[(group, "loc"), (group, "scale")],
        out_keys=[(group, "action")],
        distribution_class=TanhNormal,
        return_log_prob=True,
        log_prob_key=(group, "log_prob"),
        default_interaction_type=ExplorationType.RANDOM,
    )
    judge = Network(sample, 64, everyone=critic == "all")
    value = TensorDictModule(judge, [(group, "users")], [(group, "value")])
    # Advantages of a station are normalised by themselves.
    loss = ClipPPOLoss(
        actor,
        value,
        clip_epsilon=0.3,
        entropy_coeff=0.0,
        normalize_advantage=True,
        normalize_advantage_exclude_dims=(1,),
    )
    keys = {name: (group, name) for name in ("reward", "done", "terminated", "value")}
    loss.set_keys(**keys, action=(group, "action"), sample_log_prob=(group, "log_prob"))
    estimator = GAE(gamma=gamma, lmbda=0.9, value_network=value)
    estimator.set_keys(**keys)
    optimiser = torch.optim.Adam(loss.parameters(), lr=learning_rate)
    prices = [PlainMultiplier(multiplier[1], multiplier[0]) for _ in range(cells)]
    begin, updates = time.perf_counter(), max(1, blocks // rollout)
    for update in range(updates):
        share = update / updates
        network.deviation.fill_(deviation[0] * (deviation[1] / deviation[0]) ** share)
        optimiser.param_groups[0]["lr"] = learning_rate * (1.0 - 0.95 * share)
        with torch.no_grad():
            data = env.rollout(steps, actor, break_when_any_done=False)
            after = data["next", group]
            rates, excess = (after["info", name] for name in KEPT)
            for price, mean in zip(prices, excess.flatten(0, -2).mean(0).tolist(), strict=True):
                price.ascend(mean)
            weights = torch.tensor([price.value for price in prices])
            after["reward"] -= (weights * excess).unsqueeze(-1)
            estimator(data)
        flat = data.reshape(-1)
        for _ in range(epochs):
            for index in torch.randperm(len(flat)).split(256):
                found = loss(flat[index])
                optimiser.zero_grad()
                (found["loss_objective"] + found["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimiser.step()
        if update % max(1, updates // 10) == 0 or update == updates - 1:
            done, spent = (update + 1) * rollout, time.perf_counter() - begin
            now = " ".join(f"{weight:.2f}" for weight in weights.tolist())
            say(f"{done:9,d} blocks, {spent:5.0f} s, λ = {now}", rates, excess)
    tests = BatchedStations(max(1, channels // length), **told, **spaces)
    # The last K numbers heed the users; at -1 the waveform is the best one, as of equal-power.
    users = several.scenario.num_users
    last = torch.zeros(tests.action_spec[group, "action"].shape[-1], dtype=torch.bool)
    last[2 * users : 3 * users] = True
    least = TensorDictModule(
        lambda action: action.masked_fill(last, -1.0), [(group, "action")], [(group, "action")]
    )
    for name, acting in {
        "stations": actor,
        "stations, best waveform": TensorDictSequential(actor, least),
    }.items():
        tests.set_seed(10_007)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            fresh = TransformedEnv(tests, Summarise(summarise.layout, cells))
            after = fresh.rollout(length, acting)["next", group, "info"]
        say(name, *(after[entry] for entry in KEPT))
    envs = gym.make_vec("ISAC-MISO-v0", tests.batch_size[0], **physics)
    beside = {"equal-power": EqualPower, "rzf": RZF, "joint": JointOracle} if baselines else {}
    for name, kind in beside.items():
        agent, (observation, _) = kind(envs), envs.reset(seed=10_007)
        held = []
        for _ in range(length):
            action, _ = agent.predict(observation, deterministic=True)
            observation, _, _, _, info = envs.step(action)
            held.append((info["sum_rate_by_cell"], info["constraint_sensing"]))
        say(name, *(torch.from_numpy(np.stack(each)) for each in zip(*held, strict=True)))


if __name__ == "__main__":
    typer.run(main)
