"""Train an expert that tells particular persons apart, also across cameras and in other clothes."""

from experts.expert import Expert
from recipes.cli import run
from recipes.experts_cli import ExpertCLI
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> ExpertCLI:
    return run(Expert, InstanceData, "expert_reid", args, ExpertCLI)


if __name__ == "__main__":
    main()
