"""Train an expert that tells particular pets apart."""

from experts.expert import Expert
from recipes.cli import run
from recipes.experts_cli import ExpertCLI
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> ExpertCLI:
    return run(Expert, InstanceData, "expert_pet", args, ExpertCLI)


if __name__ == "__main__":
    main()
