"""Side-by-side timings: `python -m recipes.speed expert`, `python -m recipes.speed retrieval`."""

import argparse

from recipes.speed import expert, retrieval

TOPICS = {
    "expert": (expert.main, "training and retrieval against the bare way"),
    "retrieval": (retrieval.main, "retrieval scores against other libraries, on the same features"),
}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed",
        description="\n".join([__doc__, "", *(f"  {name:10} {what}" for name, (_, what) in TOPICS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("topic", choices=TOPICS, help="what to measure; its own --help lists its flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the topic")
    options = parser.parse_args(args)
    measure, _ = TOPICS[options.topic]
    measure(options.flags)


if __name__ == "__main__":
    main()
