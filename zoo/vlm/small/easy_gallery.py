"""EasyGalleryTask: galleries that are queried several times, so that comparing images can be learned at all."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.conversations.manifest import ImageRef
from zoo.data.images import UnreadableImage
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.match import MatchTask
from zoo.vlm.tasks.prompts import gallery_question, option
from zoo.vlm.tasks.task import Skipped


class EasyGallery(NamedTuple):
    """A gallery with several queries.

    Args:
        answers: the place of the right image of each query, from 1.
        paths: files of the gallery's images, then of the queries.
    """

    answers: tuple[int, ...]
    paths: tuple[str, ...]


class EasyGalleryTask(MatchTask):
    """Galleries of a world for training, easier than those that are scored.

    Each query is another image of an instance of the gallery, which may be asked for more than once; the queries are
    turns of one conversation. All is drawn by (seed, epoch, row). Evaluation is that of `MatchTask`.

    Args:
        queries: of each training gallery.
        same: share of the training queries that are the right image itself.
        strange: share of the training galleries whose images are of any category.
        seed: of galleries and draws.
        **options: those of `MatchTask`.

    Raises:
        ValueError: no query.
    """

    def __init__(
        self, queries: int = 1, same: float = 0.0, strange: float = 0.0, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(seed=seed, **options)
        if queries < 1:
            raise ValueError(f"data.queries is {queries}. Give 1 or more for each gallery.")
        self.queries, self.same, self.strange, self.seed = queries, same, strange, seed

    @cached_property
    def queries_of(self) -> dict[tuple[Path, str], list[Path]]:
        """Root and identity -> files that training conversations ask about."""
        found: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        rows = self.rows("train")
        for collection, part in enumerate(self.conversations):
            own = rows[rows[:, 0] == collection, 1]
            known = {*zip(part.column("query_identity")[own], part.column("query_path")[own], strict=True)}
            for identity, path in sorted(known):
                found[part.root, str(identity)].append(part.root / str(path))
        return dict(found)

    def example(self, split: str, key: Key, images: ImageReader) -> Example | Skipped:
        if split != "train":
            return super().example(split, key, images)
        gallery, queries, answers, category = self.draw(key)
        paths = (*gallery, *queries)
        it = f"(easy gallery {key.row} of {category})"  # in errors: several may lack the same image
        try:
            opened, keys = images.open(paths)
        except UnreadableImage as error:
            return Skipped(f"{error} {it}")
        shown, first, *further = opened[: len(gallery)], *opened[len(gallery) :]
        messages = gallery_question(shown, first, category)
        for image, answer in zip(further, answers, strict=False):
            messages.append({"role": "assistant", "content": option(category, answer)})
            content = [{"type": "text", "text": "Query"}, {"type": "image", "image": image}]
            messages.append({"role": "user", "content": content})
        item = EasyGallery(answers, tuple(map(str, paths)))
        names = tuple(f"{path} {it}" for path in paths)
        return Example(messages, option(category, answers[-1]), item, keys, image_names=names, name=names[-1])

    def draw(self, key: Key) -> tuple[list[Path], list[Path], tuple[int, ...], str]:
        """Files of a gallery, files of its queries, the place of the right image of each, and the category."""
        rng = np.random.default_rng((self.seed, *key))
        root, conversation = self.at("train", key.row)
        gallery = [(root, ref) for ref in conversation.gallery]
        if rng.random() < self.strange:
            gallery = self._strangers(len(gallery), rng)
        places = rng.integers(len(gallery), size=self.queries)
        queries = [self._another(gallery[place], rng) for place in places]
        return (
            [where / ref.path for where, ref in gallery],
            queries,
            tuple((places + 1).tolist()),
            conversation.category,
        )

    def _strangers(self, k: int, rng: np.random.Generator) -> list[tuple[Path, ImageRef]]:
        """Images of k instances of any category; fewer where there are not as many."""
        found: dict[tuple[Path, str], tuple[Path, ImageRef]] = {}
        for row in rng.permutation(self.size("train")):
            root, conversation = self.at("train", row)
            found.setdefault((root, conversation.query.identity), (root, conversation.query))
            if len(found) == k:
                break
        return list(found.values())

    def _another(self, image: tuple[Path, ImageRef], rng: np.random.Generator) -> Path:
        """Another image of the same instance; the same image, where that is drawn or there is no other."""
        root, ref = image
        same = root / ref.path
        others = [path for path in self.queries_of.get((root, ref.identity), ()) if path != same]
        return others[rng.integers(len(others))] if others and rng.random() >= self.same else same

    def texts(self) -> Iterator[str]:
        for category in self.world:
            most = max(size for rule in self.rules for size in rule.sizes)
            blank = Image.new("RGB", (1, 1))
            question = gallery_question([blank] * most, blank, category, no_match=True)
            yield from (part["text"] for part in question[0]["content"] if part["type"] == "text")

    def describe(self) -> str:
        return f"galleries: {super().describe()}"
