"""Teach a frozen vision-language model that hears experts to match a query with a gallery (IIR-VLM, stage 1)."""

import fusion  # noqa: F401  (adapters by their short names)
from recipes.cli import run
from recipes.vlm_cli import MatchCLI
from zoo.vlm.data import ConversationData
from zoo.vlm.match import MatchStage


def main(args: list[str] | None = None) -> MatchCLI:
    return run(MatchStage, ConversationData, "vlm_stage1", args, MatchCLI)


if __name__ == "__main__":
    main()
