"""Train an expert that tells particular faces apart."""

from experts.expert import Expert
from recipes.cli import run
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> None:
    run(Expert, InstanceData, "expert_face", args)


if __name__ == "__main__":
    main()
