"""Where the zoo keeps what it draws, mines, computes and pulls."""

import os
from pathlib import Path


def home() -> Path:
    """`$INSTANCE_ZOO_HOME`, else `~/.cache/instance_zoo`; what lies there can be made or pulled again."""
    return Path(os.environ.get("INSTANCE_ZOO_HOME") or "~/.cache/instance_zoo").expanduser()


def worlds() -> Path:
    """Where rendered worlds are kept."""
    return home() / "worlds"
