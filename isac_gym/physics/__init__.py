"""The physics of the ISAC downlink: differentiable torch functions with leading batch dimensions.

Nothing here knows of Gymnasium, agents or training. Complex tensors throughout; every function
runs in the dtype and on the device of its inputs.
"""
