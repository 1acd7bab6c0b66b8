"""How agents are trained: losses, multipliers, the training loop, checkpoints and archives."""
