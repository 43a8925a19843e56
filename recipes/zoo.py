"""Look at the shelf: list, show, verify and export components, and convert foreign weights into one."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.cards import Card, CardError, build, card, fill, list_models, load, save, verify

if TYPE_CHECKING:  # list and show answer at once; what needs torch imports it
    from torch import Tensor

    from zoo.module import ZooModule

# Keys under which training code keeps the weights in a checkpoint; the first that is there counts.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "teacher")


def main(args: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(args)
    try:
        status: int = options.run(options, Console())
    except (CardError, ImportError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m recipes.zoo", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="{list,show,verify,export,convert}")

    command = commands.add_parser("list", help="what is on the shelf")
    command.add_argument("pattern", nargs="?", default="*", help="names to keep, such as 'pet_*'")
    command.set_defaults(run=show_list)

    command = commands.add_parser("show", help="one card")
    command.add_argument("name", help="a name on the shelf, a folder, or hf://user/repo[@revision]")
    command.set_defaults(run=show_card)

    command = commands.add_parser("verify", help="check files, build, fill and run components")
    command.add_argument("names", nargs="*", help="names, folders or hub ids; the whole shelf by default")
    command.set_defaults(run=verify_all)

    command = commands.add_parser("export", help="write an identity encoder as an ONNX file, compared with torch")
    command.add_argument("name", help="a name on the shelf, a folder, or hf://user/repo[@revision]")
    command.add_argument("--out", type=Path, required=True, help="file to write, *.onnx")
    command.add_argument("--opset", type=int, help="version of ONNX's operators; by default what torch recommends")
    command.add_argument("--tolerance", type=float, default=1e-4, help="largest difference from torch allowed")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file there")
    command.set_defaults(run=export)

    command = commands.add_parser("convert", help="turn a foreign .pth, .ckpt or .bin into a component")
    command.add_argument("file", type=Path, help="weights saved by torch.save, or a .safetensors file")
    command.add_argument("--card", type=Path, help="a card.yaml, which may lack `weights`")
    command.add_argument("--class", dest="class_path", help="class to build, as zoo.backbones.TimmEncoder")
    command.add_argument("--init", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the class")
    command.add_argument("--prefix", help="take only weights whose name starts with this, and strip it")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier component there")
    command.set_defaults(run=convert)
    return top


# ---------------------------------------------------------------------- list, show, verify


def show_list(options: argparse.Namespace, console: Console) -> int:
    """A row for each component on the shelf."""
    table = Table()
    for heading in ("name", "category", "size", "licence", "scores"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for name in list_models(options.pattern):
        entry = card(name)
        size = sum(file.size for file in entry.files) / 1e6
        first = list(entry.scores[0].values.items())[:3] if entry.scores else []
        scores = ", ".join(f"{key} {value:.3g}" for key, value in first)
        table.add_row(*map(escape, [name, entry.category, f"{size:.1f} MB", entry.licence, scores]))
    console.print(table if table.rows else f"Nothing on the shelf matches {options.pattern!r}.")
    return 0


def show_card(options: argparse.Namespace, console: Console) -> int:
    """One card, key by key, and its scores."""
    entry = card(options.name)
    table = Table("key", "value", show_header=False)
    for key, value in entry.to_dict().items():
        if key != "scores" and value not in (None, "", [], {}):
            text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False).strip()
            table.add_row(key, escape(text.removesuffix("\n...")))
    console.print(table)
    if entry.scores:
        scores = Table("dataset", "protocol", "date", "scores")
        for score in entry.scores:
            values = ", ".join(f"{k} {v:.4g}" for k, v in score.values.items())
            scores.add_row(*map(escape, [score.dataset, score.protocol, score.date, values]))
        console.print(scores)
    return 0


def verify_all(options: argparse.Namespace, console: Console) -> int:
    """A line for each component; 1 when any is not in order."""
    failures = 0
    for name in options.names or list_models():
        try:
            entry = verify(name)
            line = f"[green]ok[/]      {name}: {len(entry.files)} file(s) intact, {run_once(load(name))}"
        except (CardError, ImportError, RuntimeError) as error:
            failures += 1
            line = f"[red]failed[/]  {name}: {escape(str(error))}"
        console.print(line, highlight=False, soft_wrap=True)
    return int(failures > 0)


def run_once(module: "ZooModule") -> str:
    """Run a component on a fixed input and describe its output.

    Raises:
        CardError: an output that is not finite, or embeddings that are not of unit length.
    """
    import torch
    from torch import Tensor

    from zoo.contracts import IdentityEncoder

    generator = torch.Generator().manual_seed(0)
    if isinstance(module, IdentityEncoder):
        out = module.embed(torch.randn(2, 3, *module.transform.size, generator=generator))
        if not torch.allclose(out.norm(dim=1), torch.ones(2), atol=1e-4):
            raise CardError("its embeddings are not of unit length. Train or convert it again.")
    else:
        match module.example_input_array:
            case None:
                return "loads; not run, as it states no example_input_array"
            case dict() as inputs:
                call = partial(module, **inputs)
            case tuple() as inputs:
                call = partial(module, *inputs)
            case inputs:
                call = partial(module, inputs)
        with torch.no_grad():
            out = call()
    if isinstance(out, Tensor) and not out.isfinite().all():
        raise CardError("its output is not finite. Train or convert it again.")
    return f"gives {tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}"


# ---------------------------------------------------------------------- export


def export(options: argparse.Namespace, console: Console) -> int:
    """A component of the identity encoders -> an ONNX file that other toolkits run."""
    from experts.export import ExportError, export_onnx, facts
    from zoo.contracts import IdentityEncoder

    if options.out.exists() and not options.overwrite:
        raise CardError(f"{options.out} exists. Choose another --out, or pass --overwrite to replace it.")
    encoder = load(options.name)
    if not isinstance(encoder, IdentityEncoder):
        raise CardError(f"{options.name} is a {type(encoder).__name__}, no identity encoder; only those are exported.")
    try:
        path = export_onnx(encoder, options.out, options.opset, options.tolerance, card(options.name))
    except ExportError as error:
        raise CardError(str(error)) from error
    about = facts(path)
    size = sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.is_file())
    lines = [
        f"{about['name']} -> {path}, {size / 1e6:.1f} MB",
        *(f"{key:<14}{about[key]}" for key in ("input", "output", "normalisation", "resizing")),
        f"{'difference':<14}at most {about['max_difference']} from torch, in batches of 1 and 3",
    ]
    console.print(escape("\n".join(lines)), highlight=False, soft_wrap=True)
    return 0


# ---------------------------------------------------------------------- convert


def convert(options: argparse.Namespace, console: Console) -> int:
    """Foreign weights -> a folder with card and safetensors."""
    wanted = described(options)
    module = build(wanted)
    tensors, container = read_state_dict(options.file)
    chosen = renamed(tensors, module.state_dict(), options.prefix)
    try:
        fill(module, chosen, options.file.name)
    except CardError as error:
        raise CardError(f"{error} {_beginnings(tensors)}") from error
    if wanted.threshold is not None:
        module.threshold = wanted.threshold  # type: ignore[assignment]
    written = save(
        module,
        options.out,
        name=wanted.name,
        overwrite=options.overwrite,
        description=wanted.description,
        category=wanted.category,
        training_data=wanted.training_data,
        data_licence=wanted.data_licence,
        licence=wanted.licence,
        source=wanted.source,
        scores=wanted.scores,
        recipe=wanted.recipe or f"python -m recipes.zoo convert {options.file.name}",
    )
    line = f"{written.name}: {len(chosen)} tensors from {container} of {options.file.name} -> {options.out}"
    console.print(escape(line), highlight=False, soft_wrap=True)
    return 0


def described(options: argparse.Namespace) -> Card:
    """The card of what is to be made: the file of `--card`, with `--class` and `--init` going before it."""
    entries: Any = {}
    if options.card is not None:
        if not options.card.is_file():
            raise CardError(f"There is no file {str(options.card)!r}. Check --card.")
        entries = _yaml(options.card.read_text(encoding="utf-8"), f"--card {options.card}")
        if not isinstance(entries, Mapping):
            raise CardError(f"--card {options.card} holds no mapping. Write `key: value` lines.")
    entries = {"name": options.out.name} | dict(entries)
    if options.class_path:
        entries["class"] = options.class_path
    if "class" not in entries:
        raise CardError("No class to build. Give --class, as zoo.backbones.TimmEncoder, or --card.")
    for setting in options.init:
        key, equals, value = setting.partition("=")
        if not equals:
            raise CardError(f"--init {setting!r} is not KEY=VALUE. Write --init backbone=resnet50 size=224.")
        entries["init"] = (entries.get("init") or {}) | {key: _yaml(value, f"--init {setting}")}
    unknown_yet = {"weights": {"file": "model.safetensors", "sha256": "0" * 64, "size": 0}, "extra": []}
    return Card.from_dict(entries | unknown_yet, str(options.card or "--init"))


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CardError(f"{where} is not YAML: {error}. Correct it.") from error


def read_state_dict(path: Path) -> "tuple[Mapping[str, Tensor], str]":
    """The tensors in a file, and where in it they were.

    Raises:
        CardError: no such file, one that holds other things than tensors and plain values, or no tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CardError(f"There is no file {str(path)!r}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), "the top level"
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CardError(
            f"{path} holds Python objects beside tensors, and unpickling those can run code: refused. Where "
            "it was made, save the state dict alone: torch.save(model.state_dict(), 'weights.pth')."
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise CardError(f"{path} is not a weights file: {error}. Fetch it again.") from error
    entries = content if isinstance(content, Mapping) else {}
    for where, candidate in [("the top level", entries), *((f"{k!r}", entries.get(k)) for k in CONTAINERS)]:
        if isinstance(candidate, Mapping) and candidate and all(map(torch.is_tensor, candidate.values())):
            return candidate, where
    held = ", ".join(map(str, entries)) or type(content).__name__
    raise CardError(
        f"{path} holds no state dict, only: {held}. Looked at the top level and under "
        f"{', '.join(CONTAINERS)}. Save the state dict alone: torch.save(state_dict, 'weights.pth')."
    )


def renamed(tensors: "Mapping[str, Tensor]", own: Iterable[str], prefix: str | None = None) -> "dict[str, Tensor]":
    """The tensors under the names of the module, as far as a prefix makes the difference.

    Args:
        tensors: foreign name -> tensor.
        own: names in the module.
        prefix: take only the tensors below it; with or without it, the prefix that all names share
            (`module.`, `backbone.`, none) gives way to the one that all of the module's names share.

    Raises:
        CardError: no name starts with `prefix`.
    """
    if prefix is not None:
        prefix = prefix.rstrip(".") + "."
        below = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if not below:
            raise CardError(f"No weight is named {prefix}*. {_beginnings(tensors)}")
        tensors = below
    shared, due = _common_prefix(tensors), _common_prefix(own)
    candidates = [
        dict(tensors),
        {name.removeprefix(shared): tensor for name, tensor in tensors.items()},
        {due + name: tensor for name, tensor in tensors.items()},
        {due + name.removeprefix(shared): tensor for name, tensor in tensors.items()},
    ]
    return max(candidates, key=lambda names: len(names.keys() & set(own)))


def _common_prefix(names: Iterable[str]) -> str:
    """The dotted prefix that all names share, with its dot."""
    head, dot, _ = os.path.commonprefix(list(names)).rpartition(".")
    return head + dot


def _beginnings(names: Iterable[str]) -> str:
    counts = Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)
    listed = ", ".join(f"{beginning} ({count})" for beginning, count in counts.most_common(6))
    return f"The file's names begin with {listed}; --prefix takes the part that fits."


if __name__ == "__main__":
    raise SystemExit(main())
