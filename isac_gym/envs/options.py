"""What a reset may be given: options, channels and seeds, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from isac_gym.channels import ChannelModel, Complex, Deployment
from isac_gym.channels.base import check_magnitude, convert_to_array
from isac_gym.scenario import Scenario
from isac_gym.validation import check_integer

_LARGEST_SEED: Final = 2**128 - 1
"""That of the seeds that NumPy draws by itself, which Gymnasium hands out."""

__all__ = ["check_channels", "check_channels_alone", "check_options", "check_seeds"]


def check_options(options: Mapping[str, Any] | None, *known: str) -> Mapping[str, Any]:
    """Check the options of a reset.

    Args:
        options: The options; None means none.
        *known: Names of those that there are.

    Returns:
        The options.

    Raises:
        TypeError: If they are no dictionary.
        ValueError: If there is another option.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be None or a dictionary, got {options!r}")
    unknown = [name for name in options if name not in known]
    if unknown:
        allowed = " and ".join(map(repr, known))
        raise ValueError(f"options must hold nothing but {allowed}, got {unknown}")
    return options


def check_channels(
    given: npt.ArrayLike, deployment: Deployment, num_envs: int | None = None
) -> Complex:
    """Check the channels that a reset is given.

    Args:
        given: Complex (K, M) or, with several cells, (J, J, K, M).
        deployment: Dimensions.
        num_envs: Environments n of a batch, for which they may also be (n, K, M) or
            (n, J, J, K, M); None means a single environment.

    Returns:
        complex64 array (J, J, K, M), or (n, J, J, K, M) for a batch.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If their shape differs, or they are not finite or too large.
    """
    name = "options['channels']"
    array = convert_to_array(name, given)
    if not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    shape = deployment.shape[2:] if deployment.num_cells == 1 else deployment.shape
    shapes = [shape] if num_envs is None else [shape, (num_envs, *shape)]
    if array.shape not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"{name} must have shape {allowed}, got {array.shape}")
    with np.errstate(over="ignore"):  # what overflows is found below
        converted = array.astype(np.complex64)
    check_magnitude(name, converted)
    if num_envs is None:
        return converted.reshape(deployment.shape)
    single = converted.reshape(-1, *deployment.shape)
    return np.broadcast_to(single, (num_envs, *deployment.shape))


def check_channels_alone(scenario: Scenario, model: ChannelModel) -> None:
    """Check that given channels mean something without the positions of their users.

    Raises:
        ValueError: If they do not.
    """
    reasons = {
        f"csi_error_variance={scenario.csi_error_variance:g}": scenario.csi_error_variance > 0,
        f"{model!r}": model.is_time_correlated,
    }
    found = " and ".join(reason for reason, applies in reasons.items() if applies)
    if scenario.is_geometric and found:
        raise ValueError(
            "options['user_positions'] must be given with options['channels'] with "
            f"layout={scenario.layout!r} and {found}, which need the gains of these users, "
            "got None"
        )


def check_seeds(seed: object, num_envs: int) -> list[int | None] | None:
    """Check the seed of a batch.

    Args:
        seed: An integer, None, or one of these for each environment.
        num_envs: Environments n.

    Returns:
        The seeds of the environments if they have one each, otherwise None.

    Raises:
        ValueError: If there are not n of them, or one is neither None nor an integer >= 0.
    """
    if isinstance(seed, np.ndarray):
        seed = seed.tolist()
    if isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence):
        return None
    if len(seed) != num_envs:
        raise ValueError(
            f"seed must be an integer, None, or a list of {num_envs} of them, one for each "
            f"environment, got {len(seed)}"
        )
    return [
        None if value is None else check_integer(f"seed[{index}]", value, 0, _LARGEST_SEED)
        for index, value in enumerate(seed)
    ]
