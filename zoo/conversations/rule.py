"""The rule that in-context galleries are filled by."""

from dataclasses import dataclass

CONVERSATION_SPLITS = ("train", "val", "test")
"""Splits that conversations are made of; "test" draws its queries and gallery images as the dataset separates them."""


@dataclass(frozen=True)
class GalleryRule:
    """How the gallery of a query is filled. Exactly one of `tau` and `tau_quantile` is given.

    Args:
        k: images in a gallery; or (fewest, most), drawn for each query. One image only where `no_match` is above 0.
        tau: similarity to the query that a distractor has to exceed.
        tau_quantile: tau as the share of the split's pairs of two identities that are at most that similar, since
            raw values do not carry over from one encoder to another; 0.9 leaves the most similar tenth.
        cross_camera: positive and distractors are of another camera than the query, where its camera is known: a
            background shared with the query would give the positive away.
        no_match: share of the galleries that hold distractors only. Where it is above 0, every query has to have
            one look-alike more, so that galleries with and without a match are made of the same queries.
        seed: of all choices.

    Raises:
        ValueError: a value out of range, or not exactly one of tau and tau_quantile.
    """

    k: int | tuple[int, int] = 5
    tau: float | None = 0.5
    tau_quantile: float | None = None
    cross_camera: bool = True
    no_match: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        fewest, most = self.sizes
        if not 1 <= fewest <= most:
            raise ValueError(f"k is {self.k!r}. Give a number from 1 on, or (fewest, most) with fewest <= most.")
        if fewest == 1 and not self.no_match:
            raise ValueError(
                f"k is {self.k!r}: a gallery of one image that is always the right one asks nothing. Give k from 2 on, "
                "or let no_match be above 0."
            )
        if (self.tau is None) == (self.tau_quantile is None):
            raise ValueError(
                f"tau is {self.tau} and tau_quantile {self.tau_quantile}. Give one of them, and None for the other."
            )
        if self.tau is not None and not -1 <= self.tau <= 1:
            raise ValueError(f"tau is {self.tau}, which no cosine similarity is. Give a number from -1 to 1.")
        if self.tau_quantile is not None and not 0 <= self.tau_quantile < 1:
            raise ValueError(f"tau_quantile is {self.tau_quantile}. Give a share from 0 to below 1, such as 0.9.")
        if not 0 <= self.no_match <= 1:
            raise ValueError(f"no_match is {self.no_match}. Give a share from 0 to 1.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}. Give a whole number from 0 to 2**63 - 1.")

    @property
    def sizes(self) -> tuple[int, int]:
        """Fewest and most images in a gallery."""
        return (self.k, self.k) if isinstance(self.k, int) else self.k

    @property
    def spare(self) -> int:
        """Look-alikes that a query needs beyond K - 1: one more where its gallery may lose the positive."""
        return int(self.no_match > 0)

    @property
    def level(self) -> str:
        """Name of the level of difficulty, for reports: "tau=0.5" or "quantile=0.9"."""
        return f"tau={self.tau:g}" if self.tau is not None else f"quantile={self.tau_quantile:g}"
