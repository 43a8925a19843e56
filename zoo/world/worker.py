"""A process that renders units of a dataset for `zoo.world.pool`.

It reads the dataset's fields and then numbers of units from its standard input, line by line, and answers
``image`` for every image, ``unit`` for every unit that is complete, or an error's number and text.
It ends with its input, so it does not outlive the process that started it.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from zoo.world.rendered import write_unit


def main(module: str, name: str, root: str) -> None:
    """Renders for the dataset class ``name`` of ``module``, writing to ``root``."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    dataset = getattr(importlib.import_module(module), name)(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        try:
            write_unit(dataset, Path(root), int(line), lambda: print("image", file=answers))
            print("unit", file=answers)
        except BrokenPipeError:
            return  # the process that asked is gone
        except OSError as error:
            print(error.errno or 0, error.strerror or str(error), file=answers)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
