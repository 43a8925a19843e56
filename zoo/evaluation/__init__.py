"""How an encoder, or anything else that embeds images, is tested on identities that it has not seen."""

from zoo.evaluation.evaluation import Evaluation, IdentityData
from zoo.evaluation.protocol import Protocol
from zoo.evaluation.scorer import RetrievalScorer

__all__ = ["Evaluation", "IdentityData", "Protocol", "RetrievalScorer"]
