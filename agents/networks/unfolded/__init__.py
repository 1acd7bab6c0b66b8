"""The unfolded network, with its stage in tensor operations and as a compiled loop."""
