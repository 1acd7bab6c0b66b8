"""From an action to what it achieves: codec, constraints, and the downlink that they meet in."""
