"""Look-alikes in clusters, and the rule of galleries in plain loops."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from zoo.conversations.draws import random_keys
from zoo.conversations.embedding import ImageEmbeddings
from zoo.conversations.mining import NO_POSITIVE, TOO_FEW, Candidates
from zoo.data.index import IdentityIndex
from zoo.metrics.ranking import unit_norm


def index_of(names, splits=None, cameras=None) -> IdentityIndex:
    paths = [f"{row}.png" for row in range(len(names))]
    return IdentityIndex.build(Path("/images"), paths, names, splits or ["test"] * len(names), cameras=cameras)


def world(images=60, identities=12, width=8, seed=0, cameras=3, splits=("test",)):
    """Look-alikes in clusters; identities with one image, with images of one camera only, exact copies."""
    rng = np.random.default_rng(seed)
    names = [f"id{n:04d}" for n in rng.integers(0, identities, images)]
    split_of = {name: splits[int(name[2:]) % len(splits)] for name in names}
    centres = rng.normal(size=(identities, width)) + 1.5 * rng.normal(size=(1, width))
    vectors = np.stack([centres[int(name[2:])] for name in names]) + 0.7 * rng.normal(size=(images, width))
    vectors[1::7] = vectors[0]  # copies under several names
    index = index_of(names, [split_of[name] for name in names], rng.integers(-1, cameras, images).tolist())
    return index, ImageEmbeddings(np.arange(images), unit_norm(torch.from_numpy(vectors)))


def exact(embedded: ImageEmbeddings) -> np.ndarray:
    vectors = embedded.vectors.double().numpy()
    return (vectors @ vectors.T).astype(np.float32).astype(np.float64)


def by_hand(index, embedded, rule, split, tau, per_query):
    """The rule in loops: (query, repeat, k, positive, distractors) of every query, and the reasons of the others."""
    similar, found, skipped = exact(embedded), [], Counter()
    place = {int(row): at for at, row in enumerate(embedded.rows)}
    queries, images = embedded.query_and_gallery_rows(index, split)
    fewest, most = rule.sizes

    def key(purpose, *numbers):
        return int(random_keys(rule.seed, purpose, *(torch.tensor(int(n)) for n in numbers)))

    for q in queries:
        others, positives = {}, []
        for g in sorted(images):
            same_camera = rule.cross_camera and index.cameras[q] >= 0 and index.cameras[q] == index.cameras[g]
            if index.identities[g] != index.identities[q]:
                if similar[place[q], place[g]] > tau and not same_camera:
                    others.setdefault(int(index.identities[g]), []).append(int(g))
                continue
            if g != q and not same_camera:
                positives.append(int(g))
        k = fewest + key("size", q) % (most - fewest + 1)
        need = k - 1 + (rule.no_match > 0)
        if not positives or len(others) < need:
            skipped[NO_POSITIVE if not positives else TOO_FEW] += 1
            continue
        for repeat in range(per_query):
            drawn = sorted(others, key=lambda other: key("identity", q, repeat, other))[:need]
            rows = [others[o][key("image", q, repeat, o) % len(others[o])] for o in drawn]
            found.append((int(q), repeat, k, positives[(key("positive", q) + repeat) % len(positives)], rows))
    return found, skipped


def listed(candidates: Candidates):
    columns = (column.tolist() for column in candidates[:5])
    return [(q, r, k, p, [row for row in rows if row >= 0]) for q, r, k, p, rows in zip(*columns, strict=True)]
