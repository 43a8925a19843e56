"""Train a small Qwen2.5-VL from scratch, to run the stages of vision-language models without a hub."""

from recipes.cli import run
from recipes.vlm_cli import PretrainCLI
from zoo.vlm.small.pretrain import PretrainStage
from zoo.vlm.small.pretrain_data import PretrainData


def main(args: list[str] | None = None) -> PretrainCLI:
    return run(PretrainStage, PretrainData, "vlm_base", args, PretrainCLI)


if __name__ == "__main__":
    main()
