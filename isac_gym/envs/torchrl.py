"""The environment of several agents for TorchRL: one through its own wrapper, or many as one.

TorchRL's ``PettingZooWrapper`` takes the ``ParallelEnv`` as it is and steps a single one. What is
here lets it read what the stations are told beside their rewards, and steps many environments side
by side under the same keys. Needs TorchRL and PettingZoo (extras ``torchrl`` and ``marl``).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from isac_gym.envs.batched import ISACVectorEnv
from isac_gym.envs.parallel import DEFAULT_SCENARIO, ISACParallelEnv, RewardKind
from isac_gym.scenario import ScenarioLike, resolve_scenario
from isac_gym.system.stations import Exchange, view_from_stations
from isac_gym.validation import check_choice, check_integer

try:
    from pettingzoo.utils import BaseParallelWrapper  # type: ignore[import-untyped]
    from tensordict import TensorDict, TensorDictBase  # type: ignore[import-untyped]
    from torchrl.data import Bounded, Categorical, Composite, Unbounded  # type: ignore[import-untyped]
    from torchrl.envs import EnvBase  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        "isac_gym.envs.torchrl needs TorchRL and PettingZoo: pip install 'isac-gym[torchrl,marl]'"
    ) from error

__all__ = ["BatchedStations", "InfoFromTheStart"]

_GROUP: Final = "station"
_ENTRIES: Final = ("sum_rate", "constraint_sensing")
_ENDS: Final = ("done", "terminated", "truncated")


class InfoFromTheStart(BaseParallelWrapper):  # type: ignore[misc]
    """A ``ParallelEnv`` whose ``infos`` hold the same entries after a reset, as zeros.

    TorchRL's ``PettingZooWrapper`` reads those entries of ``infos`` that it finds after a reset;
    the environment has none there, since nothing has been transmitted. Kept are the station's
    ``sum_rate`` in bit/s/Hz and ``constraint_sensing``, L_r/ε - 1.

    Args:
        env: The environment.
    """

    def __init__(self, env: ISACParallelEnv) -> None:
        super().__init__(env)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """As of the environment, with zeros in the infos."""
        observations, _ = super().reset(seed, options)
        return observations, {agent: dict.fromkeys(_ENTRIES, 0.0) for agent in observations}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """As of the environment, with these entries alone in the infos."""
        *others, infos = super().step(actions)
        kept = {
            agent: {name: float(told[name]) for name in _ENTRIES} for agent, told in infos.items()
        }
        return (*others, kept)


class BatchedStations(EnvBase):  # type: ignore[misc]
    """n environments of J stations as one environment of TorchRL.

    Keys are those of ``PettingZooWrapper(InfoFromTheStart(isac_gym.parallel_env(…)))``, with a
    leading dimension n: ``("station", "observation")`` (n, J, N), ``("station", "action")``
    (n, J, A), ``("station", "reward")`` (n, J, 1), entries of ``("station", "info")`` (n, J), and
    ``done``, ``terminated`` and ``truncated``, (n, 1) and in the group (n, J, 1). With n = 1 and
    the same seed, so are the numbers; a station knows its channels to all users. Episodes end
    after ``episode_length`` blocks, all at the same time, and TorchRL restarts them.

    Args:
        num_envs: n.
        scenario: As of the ``ParallelEnv``.
        reward: As of the ``ParallelEnv``.
        message_bits: As of the ``ParallelEnv``.
        **parameters: Fields of the scenario to change.

    Raises:
        TypeError: If a keyword is not a field of the scenario.
        ValueError: If a value is not allowed.

    Attributes:
        envs: The batched environment.
        exchange: What moves the messages, and counts their bits.
        scenario: The scenario.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: ScenarioLike = None,
        *,
        reward: RewardKind = "station",
        message_bits: int = 0,
        **parameters: Any,
    ) -> None:
        num_envs = check_integer("num_envs", num_envs, 1)
        super().__init__(batch_size=[num_envs])
        self.reward_kind = check_choice("reward", reward, RewardKind)
        self.scenario = resolve_scenario(scenario, parameters, DEFAULT_SCENARIO)
        self.envs = ISACVectorEnv(num_envs, self.scenario, autoreset_mode="Disabled")
        self.cells = cells = self.scenario.num_cells
        message_bits = check_integer("message_bits", message_bits, 0)
        self.exchange = Exchange(cells, message_bits)
        self._bits = message_bits * (cells - 1)
        self._arrived = torch.zeros(num_envs, cells, self._bits)
        self._waiting_seed: int | None = None
        lead = (num_envs, cells)
        self._own = self.envs.system.codec.station_size
        numbers = self.envs.system.codec.observation_size // cells + self._bits
        entries = Composite({name: Unbounded(lead) for name in _ENTRIES}, shape=lead)
        specs = {
            "observation_spec": {"observation": Unbounded((*lead, numbers)), "info": entries},
            "action_spec": {"action": Bounded(-1.0, 1.0, (*lead, self._own + self._bits))},
            "reward_spec": {"reward": Unbounded((*lead, 1))},
            "done_spec": _make_ends(lead),
        }
        for name, of_group in specs.items():
            group = {_GROUP: Composite(of_group, shape=lead)}
            whole = _make_ends(lead[:1]) if name == "done_spec" else {}
            setattr(self, name, Composite({**group, **whole}, shape=lead[:1]))

    def _set_seed(self, seed: int | None) -> None:
        self._waiting_seed = seed

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        mask = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None:
            mask = tensordict.get("_reset", mask).reshape(self.batch_size)
        options = {"reset_mask": mask.numpy()}
        observation, _found = self.envs.reset(seed=self._waiting_seed, options=options)
        self._waiting_seed = None
        self._arrived = self._arrived.masked_fill(mask[:, None, None], 0.0)
        return self._tell(observation, {"info": self.observation_spec[_GROUP, "info"].zero()})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        numbers, bits = tensordict[_GROUP, "action"].split([self._own, self._bits], -1)
        observation, _, _, truncated, info = self.envs.step(numbers.flatten(1).numpy())
        if self._bits:
            sent = torch.where(bits > 0, 1.0, -1.0).unflatten(-1, (self.cells - 1, -1))
            self._arrived = torch.stack(self.exchange.swap(sent.unbind(1)), 1).flatten(2)
        shape = (*self.batch_size, self.cells)
        is_one = self.cells == 1
        rates = torch.from_numpy(info["sum_rate" if is_one else "sum_rate_by_cell"]).view(shape)
        excess = torch.from_numpy(info["constraint_sensing"]).view(shape)
        earned = rates.clone()
        if self.reward_kind == "network":
            earned = rates.sum(-1, keepdim=True).expand(shape).clone()
        over = torch.from_numpy(truncated).unsqueeze(-1)
        ends = dict(zip(_ENDS, (over, torch.zeros_like(over), over.clone()), strict=True))
        station: dict[str, Any] = {
            name: end.unsqueeze(1).repeat(1, self.cells, 1) for name, end in ends.items()
        }
        station["reward"] = earned.unsqueeze(-1)
        station["info"] = TensorDict(dict(zip(_ENTRIES, (rates, excess), strict=True)), shape)
        return self._tell(observation, station, **ends)

    def _tell(self, observation: Any, station: dict[str, Any], **others: Tensor) -> TensorDictBase:
        """What a reset or a step returns."""
        if self.scenario.observation == "channels":
            # There the batch keeps the order of cells, which is not that of each station.
            views = view_from_stations(torch.from_numpy(self.envs.simulation.estimates))
            seen = torch.from_numpy(self.envs.system.codec.describe_views(views.numpy()))
        else:
            seen = torch.from_numpy(observation).unflatten(-1, (self.cells, -1))
        station["observation"] = torch.cat([seen, self._arrived], -1)
        group = TensorDict(station, (*self.batch_size, self.cells))
        return TensorDict({_GROUP: group, **others}, self.batch_size)


def _make_ends(shape: tuple[int, ...]) -> dict[str, Categorical]:
    """Specs of what says that an episode is over, (…, 1)."""
    return {name: Categorical(2, shape=(*shape, 1), dtype=torch.bool) for name in _ENDS}
