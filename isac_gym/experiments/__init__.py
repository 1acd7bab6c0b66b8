"""Experiments: one module each, with its settings, its computation and its picture."""
