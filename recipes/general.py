"""Train a general encoder on categories and attributes, not on identities: what experts are compared with."""

from experts.general import GeneralEncoder
from recipes.cli import run
from zoo.data.module import InstanceData


def main(args: list[str] | None = None) -> None:
    run(GeneralEncoder, InstanceData, "general", args)


if __name__ == "__main__":
    main()
