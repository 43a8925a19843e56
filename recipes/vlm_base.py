"""Train a small Qwen2.5-VL from scratch, to run the stages of vision-language models without a hub."""

from dataclasses import replace

from recipes.cli import Recipe, RecipeCLI, run
from zoo.vlm.match_pictures import MatchPictures
from zoo.vlm.small.pretrain import PretrainData, PretrainStage

RECIPE = Recipe("vlm_base", callbacks={"pictures": MatchPictures})


def main(args: list[str] | None = None) -> RecipeCLI:
    """Two parts: the model learns to see by captions; by the YAML of `--then`, it goes on to compare images."""
    first = run(PretrainStage, PretrainData, RECIPE, args)
    then = first.config[first.subcommand].get("then") if first.subcommand == "fit" else None
    if then is None or "component" not in first.kept:
        return first
    settings = {"model.vlm": str(first.kept["component"]), "then": None, "ckpt_path": None}
    return run(PretrainStage, PretrainData, replace(RECIPE, over=then, settings=settings), args)


if __name__ == "__main__":
    main()
