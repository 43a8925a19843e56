"""Protocol: what is measured when an encoder is tested."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How an encoder is tested.

    Args:
        ks: the k of rank-k (CMC); Stanford Online Products takes 1, 10, 100, 1000.
        map_ks: also mAP over the first k of the ranking, with min(k, positives) in the denominator; ILIAS takes 1000.
        group_by: an attribute of the index, or `category`; the queries of each of its values are also scored apart.
            Data without it is scored as a whole, with a warning.
        far: false acceptance rate at which the threshold of "the same identity" is chosen, on validation identities.
        rerank: also score the ranking after k-reciprocal re-ranking.
        expand: also score queries that are averaged with this many of their neighbours; 0 for none.

    Raises:
        ValueError: a value out of its range.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    map_ks: tuple[int, ...] = ()
    group_by: str | None = None
    far: float = 0.01
    rerank: bool = False
    expand: int = 0

    def __post_init__(self) -> None:
        for name, wrong in (
            ("ks", not self.ks or min(self.ks) < 1),
            ("map_ks", min(self.map_ks, default=1) < 1),
            ("far", not 0 <= self.far <= 1),
            ("expand", self.expand < 0),
        ):
            if wrong:
                raise ValueError(
                    f"protocol.{name} cannot be {getattr(self, name)}. Every k is at least 1, far is a share from 0 "
                    "to 1, expand a number of neighbours."
                )
