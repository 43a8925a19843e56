"""Train a general encoder on categories and attributes, not on identities: what experts are compared with."""

from experts.general import GeneralEncoder
from recipes.cli import run
from recipes.experts_cli import ExpertCLI
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> ExpertCLI:
    return run(GeneralEncoder, InstanceData, "general", args, ExpertCLI)


if __name__ == "__main__":
    main()
