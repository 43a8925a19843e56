"""Fusion adapters: how an expert's identity feature enters a vision-language model's image tokens.

- `AdditiveFusion`: the paper's; the tokens of an image share the identity out among them.
- `ConcatFusion`: each token is projected together with the identity.
- `CrossAttentionFusion`: each token attends to several tokens made of the identity, or to the expert's patches.

Each is built as `factory(token_dim, identity_dim)`, and one flag swaps them. No fusion at all is null.
"""

from fusion.additive import AdditiveFusion
from fusion.concat import ConcatFusion
from fusion.cross_attention import CrossAttentionFusion

__all__ = ["AdditiveFusion", "ConcatFusion", "CrossAttentionFusion"]
