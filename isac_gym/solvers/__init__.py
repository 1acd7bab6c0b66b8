"""Optimisers over the formulas of the physics: they know tensors, and no environment.

Waveforms (:mod:`~isac_gym.solvers.beampattern`, :mod:`~isac_gym.solvers.waveform`), precoders
and powers (:mod:`~isac_gym.solvers.wmmse`), capacity, prices, and convex programs to check them
against.
"""
