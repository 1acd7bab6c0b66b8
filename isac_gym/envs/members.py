"""One environment of a batch under the names of the single one, for ``call`` and ``get_attr``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from isac_gym.channels import ChannelModel, Complex
from isac_gym.envs.single import ISACEnv, decode_action
from isac_gym.scenario import Scenario
from isac_gym.system.downlink import ISACSystem

if TYPE_CHECKING:
    from isac_gym.envs.batched import ISACVectorEnv

__all__ = ["MEMBER_NAMES", "Member"]


class Member:
    """What :class:`~isac_gym.envs.single.ISACEnv` shows, of one environment of a batch.

    What all environments have in common (scenario, system, spaces and so on) is the batch's own
    object; channels, actions, pictures and generators are those of this environment.

    Args:
        batch: The batch.
        index: Which environment.
    """

    def __init__(self, batch: ISACVectorEnv, index: int) -> None:
        self._batch = batch
        self._index = index

    @property
    def scenario(self) -> Scenario:
        """The scenario."""
        return self._batch.scenario

    @property
    def system(self) -> ISACSystem:
        """The system."""
        return self._batch.system

    @property
    def channel_model(self) -> ChannelModel:
        """How channels are drawn."""
        return self._batch.channel_model

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self._batch.single_observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""
        return self._batch.single_action_space

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the single environment; a copy."""
        return dict(ISACEnv.metadata)

    @property
    def render_mode(self) -> str | None:
        """The render mode."""
        return self._batch.render_mode

    @property
    def spec(self) -> Any:
        """The specification that the batch was made from."""
        return self._batch.spec

    @property
    def np_random(self) -> np.random.Generator:
        """The generator that this environment draws from; without a list of seeds, the common."""
        shared = self._batch.np_random
        own: np.random.Generator = shared[self._index] if isinstance(shared, tuple) else shared
        return own

    @property
    def np_random_seed(self) -> int | None:
        """Its seed."""
        shared = self._batch.np_random_seed
        own: int | None = shared[self._index] if isinstance(shared, tuple) else shared
        return own

    @property
    def channels(self) -> Complex:
        """A copy of the true channels H of the current block, (K, M) or (J, J, K, M)."""
        current: Complex = self._batch.simulation.channels[self._index].copy()
        return current[0, 0] if self.scenario.num_cells == 1 else current

    def decode_action(self, action: npt.ArrayLike) -> tuple[Complex, Complex]:
        """What an action means in the current block of this environment.

        See :meth:`isac_gym.envs.single.ISACEnv.decode_action`.
        """
        estimates = self._batch.simulation.estimates[self._index]
        return decode_action(self.system, estimates, action)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the last block of this environment."""
        return self._batch.draw_environment(self._index)


MEMBER_NAMES: Final = tuple(name for name in vars(Member) if not name.startswith("_"))
"""Names of what :class:`Member` has."""
