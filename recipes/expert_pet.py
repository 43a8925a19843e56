"""Train an expert that distinguishes particular pets."""

from experts.expert import Expert
from recipes.cli import Recipe, RecipeCLI, run
from zoo.data.module import InstanceData
from zoo.evaluation.embeddings import EmbeddingWriter
from zoo.evaluation.retrieval_pictures import RetrievalPictures

RECIPE = Recipe(
    "expert_pet",
    callbacks={"pictures": RetrievalPictures, "embeddings": EmbeddingWriter},
    use="predict --model.init_from {component} --data.root PHOTOS",
)


def main(args: list[str] | None = None) -> RecipeCLI:
    return run(Expert, InstanceData, RECIPE, args)


if __name__ == "__main__":
    main()
