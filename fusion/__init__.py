"""Fusion adapters: how an expert's identity vector enters the image tokens of a vision-language model.

- `AdditiveFusion`: the paper's; the tokens of an image share the identity out among them.
- `ConcatFusion`: each token is projected together with the identity.
- `CrossAttentionFusion`: each token attends to several tokens made of the identity, or to the expert's patches.

Each is built as `factory(token_dim, identity_dim)`, and one flag swaps them. No fusion at all is null. A new adapter is
one file in this folder: every module here is imported, so that its class is known by its short name.
"""

from importlib import import_module
from pkgutil import iter_modules

from fusion.additive import AdditiveFusion
from fusion.concat import ConcatFusion
from fusion.cross_attention import CrossAttentionFusion
from zoo.contracts import FusionAdapter, FusionVariant

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["AdditiveFusion", "ConcatFusion", "CrossAttentionFusion", "adapters", "variants"]


def adapters() -> list[type[FusionAdapter]]:
    """The classes of all adapters that have been imported, those of other packages after those of this one."""
    found: dict[type[FusionAdapter], None] = {}
    waiting = list(FusionAdapter.__subclasses__())
    while waiting:
        adapter = waiting.pop(0)
        found[adapter] = None
        waiting += adapter.__subclasses__()
    return [adapter for adapter in found if not getattr(adapter.update_images, "__isabstractmethod__", False)]


def variants() -> dict[str, tuple[type[FusionAdapter], FusionVariant]]:
    """Name -> adapter and setting of everything that ablations compare."""
    found: dict[str, tuple[type[FusionAdapter], FusionVariant]] = {}
    for adapter in adapters():
        own = adapter.__dict__.get("variants") or {adapter.__name__: FusionVariant()}
        found |= {name: (adapter, variant) for name, variant in own.items()}
    return found
