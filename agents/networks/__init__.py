"""Networks of the learning agents: from observations to actions, one file or folder each."""
