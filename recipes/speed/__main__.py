"""Side-by-side timings: `python -m recipes.speed expert`, `retrieval` or `stage1`."""

import argparse


def expert(flags: list[str]) -> None:
    """training and retrieval against the bare way"""
    from recipes.speed.expert import main

    main(flags)


def retrieval(flags: list[str]) -> None:
    """retrieval scores against other libraries, on the same features"""
    from recipes.speed.retrieval import main  # alone: these libraries pin versions that training cannot do with

    main(flags)


def stage1(flags: list[str]) -> None:
    """stage 1's training step against a bare loop on transformers' model"""
    from recipes.speed.stage1 import main

    main(flags)


TOPICS = {topic.__name__: topic for topic in (expert, retrieval, stage1)}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed",
        description="\n".join([__doc__, "", *(f"  {name:10} {topic.__doc__}" for name, topic in TOPICS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("topic", choices=TOPICS, help="what to measure; its own --help lists its flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the topic")
    options = parser.parse_args(args)
    TOPICS[options.topic](options.flags)


if __name__ == "__main__":
    main()
