"""Side-by-side timings: `python -m recipes.speed expert`, `python -m recipes.speed retrieval`."""

import argparse
from importlib import import_module

TOPICS = {
    "expert": "training and retrieval against the bare way",
    "retrieval": "retrieval scores against other libraries, on the same features",
}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed",
        description="\n".join([__doc__, "", *(f"  {name:10} {what}" for name, what in TOPICS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("topic", choices=TOPICS, help="what to measure; its own --help lists its flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the topic")
    options = parser.parse_args(args)
    import_module(f"recipes.speed.{options.topic}").main(options.flags)


if __name__ == "__main__":
    main()
