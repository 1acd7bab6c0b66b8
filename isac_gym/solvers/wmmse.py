r"""Weighted sum-MSE minimisation (WMMSE): locally optimal precoders and powers for the sum rate.

Shi, Razaviyayn, Luo and He, 2011, for precoders; Sun et al., 2018, for powers along fixed
directions. Both under one sum power budget; see :mod:`isac_gym.solvers.rate_problems` for the form.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from isac_gym.solvers.rate_problems import PowerProblem, PrecoderProblem, RateProblem, Start
from isac_gym.validation import check_choice, check_integer, check_real

__all__ = ["WMMSESolution", "maximise_rate", "scalar_wmmse", "wmmse"]

_QUIET = 3
"""Iterations in a row whose relative increase is within the tolerance before one stops."""
_CHECK_EVERY = 8
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class WMMSESolution:
    """Solutions of a batch of problems with leading dimensions (...).

    Attributes:
        precoders: F, complex128 (..., M_C, K), in √W; None from :func:`scalar_wmmse`.
        powers: ‖F_k‖² or p_k, (..., K), in W.
        rate: Sum rate, (...), in bit/s/Hz.
        start: Index of the start that led to the solution, (...).
        iterations: Iterations of that start, (...).
        increase: Relative increase of the rate in its last iteration, (...).
        converged: Whether it ended by tolerance and not by the cap, (...).
    """

    precoders: Tensor | None
    powers: Tensor
    rate: Tensor
    start: Tensor
    iterations: Tensor
    increase: Tensor
    converged: Tensor


@dataclasses.dataclass(frozen=True)
class _Run:
    iterate: Tensor
    rate: Tensor
    iterations: Tensor
    increase: Tensor
    converged: Tensor


def maximise_rate(
    downlinks: RateProblem,
    iterate: Tensor,
    noise: Tensor,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    momentum: bool = True,
    history: list[Tensor] | None = None,
) -> _Run:
    """Iterate until the rate no longer increases.

    With momentum an iterate is extrapolated from the last two images, as in Nesterov's method, and
    discarded when the rate would fall: the rate never decreases, and the slow end, in which the
    power of some users goes to zero, is several times shorter.

    Args:
        downlinks: The downlinks.
        iterate: Where to start.
        noise: σ² > 0, (n, K), in W.
        tolerance: Relative increase of the rate, three times in a row, at which a problem ends.
        max_iterations: Iterations after which a problem ends in any case.
        momentum: Whether to extrapolate.
        history: If given, the rates (n,) of all iterations are appended; all problems then run on
            to the last iteration.

    Returns:
        The best iterates, with rate, iterations, last relative increase and whether they converged.
    """
    count = len(noise)
    final = _Run(
        iterate.clone(),
        noise.new_zeros(count),
        torch.zeros(count, dtype=torch.int64, device=noise.device),
        torch.full_like(noise[:, 0], math.inf),
        torch.zeros(count, dtype=torch.bool, device=noise.device),
    )
    where = torch.arange(count, device=noise.device)
    shape = (-1,) + (1,) * (iterate.ndim - 1)
    best = iterate
    point = downlinks.iterate(iterate, noise)
    rate, image = point.rate, point.image
    candidate = image
    if history is not None:
        history.append(rate)
    age = torch.ones_like(rate)
    quiet = torch.zeros_like(final.iterations)
    increase = torch.full_like(rate, math.inf)
    for iteration in range(1, max_iterations + 1):
        point = downlinks.iterate(candidate, noise)
        better = point.rate >= rate
        grown = torch.where(better, point.rate - rate, 0.0) / rate.clamp_min(_TINY)
        # A discarded extrapolation says nothing about how far the rate can still grow.
        plain = age <= 1
        increase = torch.where(better | plain, grown, increase)
        small = increase <= tolerance
        quiet = torch.where(small, quiet + 1, 0)
        mask = better.view(shape)
        best = torch.where(mask, candidate, best)
        rate = torch.where(better, point.rate, rate)
        previous, image = image, torch.where(mask, point.image, image)
        if momentum:
            age = torch.where(better, age + 1, 1.0)
            weight = ((age - 1) / (age + 2)).view(shape)
            candidate = image + weight * (image - previous)
        else:
            candidate = image
        if history is not None:
            history.append(rate)
            done = torch.zeros_like(better)
        else:
            done = quiet >= _QUIET
        last = iteration == max_iterations
        if not (last or iteration % _CHECK_EVERY == 0):
            continue
        ended = (done | last).nonzero().squeeze(-1)
        if len(ended) == 0:
            continue
        into = where[ended]
        final.iterate[into], final.rate[into] = best[ended], rate[ended]
        final.iterations[into], final.increase[into] = iteration, increase[ended]
        final.converged[into] = (quiet >= _QUIET)[ended]
        running = (~done).nonzero().squeeze(-1)
        if last or len(running) == 0:
            break
        where, downlinks, noise = where[running], downlinks.select(running), noise[running]
        best, candidate, image = best[running], candidate[running], image[running]
        rate, age, quiet, increase = rate[running], age[running], quiet[running], increase[running]
    return final


def _choose_served(index: int, noise: Tensor, rng: torch.Generator) -> Tensor:
    """Who is served by a start: everybody in the first, random subsets afterwards."""
    if index == 0:
        return torch.ones_like(noise)
    drawn = torch.rand(noise.shape, dtype=noise.dtype, generator=rng).to(noise.device)
    keep = torch.rand(noise[:, :1].shape, dtype=noise.dtype, generator=rng).to(noise.device)
    served = (drawn < keep.clamp_min(0.3)).to(noise.dtype)
    return torch.where(served.sum(-1, keepdim=True) > 0, served, 1.0)


def _try_starts(
    downlinks: RateProblem, noise: Tensor, start: Start, num_starts: int, seed: int, **options: Any
) -> tuple[_Run, Tensor]:
    """The best solution over the starts, and the index of its start."""
    rng = torch.Generator().manual_seed(seed)
    best, chosen = None, torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
    for index in range(num_starts):
        # In turn: the wanted start for a random subset of the users, and a random point.
        kind: Start = "random" if index and index % 2 == 0 else start
        served = _choose_served(index, noise, rng)
        run = maximise_rate(downlinks, downlinks.start(kind, noise, served, rng), noise, **options)
        if best is None:
            best = run
            continue
        better = run.rate > best.rate
        chosen = torch.where(better, index, chosen)
        best = _Run(
            *(
                torch.where(better.view((-1,) + (1,) * (new.ndim - 1)), new, old)
                for new, old in zip(
                    (getattr(run, field.name) for field in dataclasses.fields(_Run)),
                    (getattr(best, field.name) for field in dataclasses.fields(_Run)),
                    strict=True,
                )
            )
        )
    assert best is not None
    return best, chosen


def wmmse(
    channels: Tensor,
    noise_power: Tensor | float,
    power: float,
    *,
    start: Start = "rzf",
    num_starts: int = 1,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    momentum: bool = True,
) -> WMMSESolution:
    """Precoders that maximise the sum rate locally, for a batch of channels.

    Args:
        channels: G with row k = g_kᵀ, complex (..., K, M_C).
        noise_power: σ² > 0, noise plus whatever interference the precoder cannot change, in W; a
            number or a tensor that broadcasts to (..., K).
        power: Budget P on Σ_k ‖F_k‖², in W.
        start: First start: regularised zero forcing, maximum ratio, zero forcing (each with equal
            powers) or a random precoder.
        num_starts: Starts; those after the first serve random subsets of the users or are random
            precoders, in turn. The best solution is returned.
        seed: Seed of the random starts.
        tolerance: A problem ends once its rate has increased by at most this, relative, three
            iterations in a row.
        max_iterations: Iterations after which a problem ends in any case.
        momentum: Whether iterates are extrapolated (see :func:`maximise_rate`); without, this is
            the plain fixed-point iteration.

    Returns:
        The solutions, in double precision. Users that cannot be reached get no power.

    Raises:
        ValueError: If an argument is not allowed or holds entries that are not finite.
    """
    start = check_choice("start", start, Start)
    num_starts = check_integer("num_starts", num_starts, 1)
    if channels.ndim < 2 or not channels.is_complex() or 0 in channels.shape[-2:]:
        raise ValueError(
            f"channels must be complex of shape (..., K, M_C), got {channels.dtype} "
            f"{tuple(channels.shape)}"
        )
    lead = channels.shape[:-2]
    noise = _check_problem(noise_power, power, channels, tolerance, max_iterations, seed)
    flat = channels.reshape(math.prod(lead), *channels.shape[-2:]).to(torch.complex128)
    downlinks = PrecoderProblem(flat, float(power))
    run, chosen = _try_starts(
        downlinks,
        noise,
        start,
        num_starts,
        int(seed),
        tolerance=float(tolerance),
        max_iterations=int(max_iterations),
        momentum=momentum,
    )
    precoders = downlinks.precoders(run.iterate)
    powers = precoders.abs().square().sum(-2)
    return _make_solution(run, chosen, lead, precoders=precoders, powers=powers)


def scalar_wmmse(
    gains: Tensor,
    noise_power: Tensor | float,
    power: float,
    *,
    num_starts: int = 1,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    momentum: bool = True,
) -> WMMSESolution:
    """Powers along fixed directions that maximise the sum rate locally.

    Args:
        gains: abs(g_kᵀd_l)² for user k and the unit direction d_l of user l, (..., K, K).
        noise_power: σ² > 0 in W, a number or a tensor that broadcasts to (..., K).
        power: Budget P on Σ_k p_k, in W; it is used up, since raising all powers raises all SINRs.
        num_starts: Starts: equal power, then random subsets of the users and random powers in turn.
        seed: Seed of the random starts.
        tolerance: Relative increase of the rate, three times in a row, at which a problem ends.
        max_iterations: Iterations after which a problem ends in any case.
        momentum: Whether iterates are extrapolated.

    Returns:
        The solutions, in double precision, without precoders.

    Raises:
        ValueError: If an argument is not allowed or holds entries that are not finite.
    """
    num_starts = check_integer("num_starts", num_starts, 1)
    if gains.ndim < 2 or gains.shape[-1] != gains.shape[-2] or gains.is_complex():
        raise ValueError(
            f"gains must be real of shape (..., K, K), got {gains.dtype} {tuple(gains.shape)}"
        )
    if bool((gains < 0).any()):
        raise ValueError(f"gains must be >= 0, got {float(gains.min())}")
    lead = gains.shape[:-2]
    noise = _check_problem(noise_power, power, gains, tolerance, max_iterations, seed)
    downlinks = PowerProblem(
        gains.reshape(math.prod(lead), *gains.shape[-2:]).to(torch.float64), float(power)
    )
    run, chosen = _try_starts(
        downlinks,
        noise,
        "rzf",
        num_starts,
        int(seed),
        tolerance=float(tolerance),
        max_iterations=int(max_iterations),
        momentum=momentum,
    )
    return _make_solution(run, chosen, lead, precoders=None, powers=downlinks.powers(run.iterate))


def _check_problem(
    noise_power: Tensor | float,
    power: float,
    like: Tensor,
    tolerance: float,
    max_iterations: int,
    seed: int,
) -> Tensor:
    """σ² broadcast to (n, K) in double precision, once all arguments are checked."""
    check_real("power", power, "a finite number > 0", lambda value: value > 0)
    check_real("tolerance", tolerance, "a finite number >= 0", lambda value: value >= 0)
    check_integer("max_iterations", max_iterations, 1)
    check_integer("seed", seed, 0)
    noise = torch.as_tensor(noise_power, dtype=torch.float64, device=like.device)
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError(f"noise_power must be finite and > 0, got {noise_power!r}")
    if not bool(torch.isfinite(like).all()):
        name = "channels" if like.is_complex() else "gains"
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    shape = like.shape[:-1]
    try:
        return noise.expand(shape).reshape(math.prod(shape[:-1]), shape[-1])
    except RuntimeError as error:
        raise ValueError(
            f"noise_power must broadcast to {tuple(shape)}, got shape {tuple(noise.shape)}"
        ) from error


def _make_solution(
    run: _Run, chosen: Tensor, lead: torch.Size, precoders: Tensor | None, powers: Tensor
) -> WMMSESolution:
    return WMMSESolution(
        precoders=None if precoders is None else precoders.view(*lead, *precoders.shape[1:]),
        powers=powers.view(*lead, powers.shape[-1]),
        rate=run.rate.view(lead),
        start=chosen.view(lead),
        iterations=run.iterations.view(lead),
        increase=run.increase.view(lead),
        converged=run.converged.view(lead),
    )
