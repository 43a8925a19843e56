"""Train a small Qwen2.5-VL from scratch, to run the stages of vision-language models without a hub."""

from collections.abc import Sequence
from pathlib import Path

from recipes.cli import CONFIGS, Recipe, RecipeCLI, run
from recipes.flags import flags_of, without_flags
from zoo.vlm.match_pictures import MatchPictures
from zoo.vlm.small.pretrain import PretrainData, PretrainStage

RECIPE = Recipe("vlm_base", callbacks={"pictures": MatchPictures}, second_part=True)
_CONFIG = ("c", "config")


def main(args: list[str] | None = None) -> RecipeCLI:
    """Two parts: the model learns to see by captions; by the YAML of `--then`, it goes on to compare images."""
    first = run(PretrainStage, PretrainData, RECIPE, args)
    then = first.config[first.subcommand].get("then") if first.subcommand == "fit" else None
    if then is None or "component" not in first.kept:
        return first
    config = Path(then) if Path(then).is_file() else CONFIGS / f"{then}.yaml"
    return run(PretrainStage, PretrainData, RECIPE, second_part(first.given, config, first.kept["component"]))


def second_part(given: Sequence[str], config: Path, model: Path) -> list[str]:
    """The command line of the run that goes on from a model, from that of the run before it.

    Args:
        given: the command line as typed.
        config: YAML that wins over the user's YAML files, and that the user's flags win over.
        model: folder of the model.
    """
    start = given.index("fit") + 1
    files = [word for name, words in flags_of(given[start:]) if name in _CONFIG for word in words]
    flags = without_flags(given[start:], (*_CONFIG, "ckpt_path", "then"))
    added = [f"--model.vlm={model}", "--then=null", "--ckpt_path=null"]
    return [*given[:start], *files, f"--config={config}", *flags, *added]


if __name__ == "__main__":
    main()
