"""Teach a frozen vision-language model, fused with experts, to match a query with a gallery (IIR-VLM, stage 1)."""

import fusion  # noqa: F401  (adapters by their short names)
from recipes.cli import Recipe, RecipeCLI, run
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.match_pictures import MatchPictures

RECIPE = Recipe(
    "vlm_stage1",
    callbacks={"pictures": MatchPictures},
    use="test -c {run}/config.yaml --ckpt_path {best}",
)


def main(args: list[str] | None = None) -> RecipeCLI:
    return run(MatchStage, MatchData, RECIPE, args)


if __name__ == "__main__":
    main()
