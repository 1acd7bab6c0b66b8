"""Numbers in few bits: error, order, the word for nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from isac_gym.baselines.scalar_code import ScalarCode


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 16])
def test_a_number_within_the_range_comes_back_to_half_a_step(bits: int) -> None:
    code = ScalarCode(0.03, 7.0, bits)
    ratio = (7.0 / 0.03) ** (1.0 / (2**bits - 2))
    values = np.exp(np.random.default_rng(0).uniform(math.log(0.03), math.log(7.0), 500))
    words = code.encode(torch.from_numpy(values))
    assert words.shape == (500, bits)
    assert set(words.unique().tolist()) <= {-1.0, 1.0}
    error = np.abs(np.log(code.decode(words).numpy() / values))
    assert error.max() <= 0.5 * math.log(ratio) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_larger_numbers_have_no_smaller_words_and_all_words_are_used(bits: int) -> None:
    code = ScalarCode(0.2, 3.0, bits)
    values = torch.logspace(-3, 2, 2001)
    decoded = code.decode(code.encode(values))
    assert (decoded.diff() >= 0).all()
    assert len(decoded.unique()) == 2**bits
    numbers = ((code.encode(values) + 1) / 2) @ (2.0 ** torch.arange(bits - 1, -1, -1))
    assert (numbers.diff() >= 0).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_every_word_is_the_word_of_what_it_stands_for(bits: int) -> None:
    code = ScalarCode(0.2, 3.0, bits)
    words = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)))
    torch.testing.assert_close(code.encode(code.decode(words)), words)
    torch.testing.assert_close(code.decode(words).double(), code.levels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_nothing_and_next_to_nothing_are_nothing_and_too_much_is_the_most(bits: int) -> None:
    code = ScalarCode(0.2, 3.0, bits)
    few = torch.tensor([0.0, 1e-30, 0.2 * math.exp(-0.51 * code.step)])
    assert not code.decode(code.encode(few)).any()
    highest = math.sqrt(0.2 * 3.0) if bits == 1 else 3.0
    much = torch.tensor([3.0, 1e4, math.inf])
    assert code.decode(code.encode(much)).tolist() == pytest.approx([highest] * 3)
    if bits == 1:
        sides = torch.tensor([0.1999, 0.2001])
        assert code.decode(code.encode(sides)).tolist() == pytest.approx([0.0, highest])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="low must be a finite number > 0, got 0"):
        ScalarCode(0.0, 1.0, 2)
    with pytest.raises(ValueError, match="high must be a finite number > low=2, got 1"):
        ScalarCode(2.0, 1.0, 2)
    for bits in (0, 17, 2.5, True):
        with pytest.raises(ValueError, match="bits must be an integer"):
            ScalarCode(1.0, 2.0, bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"words must have shape \(..., 2\), got \(5, 3\)"):
        ScalarCode(1.0, 2.0, 2).decode(torch.ones(5, 3))
