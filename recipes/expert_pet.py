"""Train an expert that tells particular pets apart."""

from experts.expert import Expert
from recipes.cli import run
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> None:
    run(Expert, InstanceData, "expert_pet", args)


if __name__ == "__main__":
    main()
