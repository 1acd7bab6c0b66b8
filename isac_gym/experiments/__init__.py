"""The experiments: one module a figure, each with its settings, its run and its plot."""
