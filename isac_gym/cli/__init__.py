"""The command line ``isac-gym``."""

from isac_gym.cli.main import app

__all__ = ["app"]
