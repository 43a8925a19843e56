"""Train an expert that tells particular persons apart, also across cameras and in other clothes."""

from experts.expert import Expert
from recipes.cli import run
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> None:
    run(Expert, InstanceData, "expert_reid", args)


if __name__ == "__main__":
    main()
