"""Train a general encoder on categories and attributes, not on identities: what experts are compared with."""

from experts.general import GeneralEncoder
from recipes.cli import Recipe, RecipeCLI, run
from zoo.data.module import InstanceData
from zoo.evaluation.embeddings import EmbeddingWriter
from zoo.evaluation.retrieval_pictures import RetrievalPictures

RECIPE = Recipe(
    "general",
    callbacks={"pictures": RetrievalPictures, "embeddings": EmbeddingWriter},
    use="predict --model.init_from {component} --data.root PHOTOS",
)


def main(args: list[str] | None = None) -> RecipeCLI:
    return run(GeneralEncoder, InstanceData, RECIPE, args)


if __name__ == "__main__":
    main()
