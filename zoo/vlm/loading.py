"""Loads the models of transformers that the zoo knows a family of: from the shelf, a folder or the hub."""

from pathlib import Path
from typing import Any

import torch

from zoo.cards.shelf import list_models, locate
from zoo.vlm.families import FAMILIES, family_of

_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_ATTENTION = ("sdpa", "eager", "flash_attention_2")


def load_vlm(where: str | Path, dtype: str = "float32", attention: str = "sdpa") -> tuple[Any, Any]:
    """A Hugging Face model, in eval mode on the CPU, and its processor. Never runs code from a hub or opens a pickle.

    Args:
        where: a name on the shelf, a folder that `save_pretrained` has written, or a hub id.
        dtype: float32, bfloat16 or float16.
        attention: sdpa, eager or flash_attention_2.

    Raises:
        ValueError: not to be found, no weights or processor there, or a family, dtype or attention that is unknown.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if dtype not in _DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(_DTYPES)}.")
    if attention not in _ATTENTION:
        raise ValueError(f"Unknown attention {attention!r}. Known: {', '.join(_ATTENTION)}.")
    where = located(where)
    family_of(load_config(where))
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            str(where),
            dtype=_DTYPES[dtype],
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except OSError as error:
        raise ValueError(f"{where} has no weights that can be loaded: {error}. Give one with safetensors.") from error
    try:
        processor = AutoProcessor.from_pretrained(str(where), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where} has no processor that can be loaded: {error}. Save the model's processor beside its weights."
        ) from error
    return model.eval(), processor


def load_config(where: str | Path) -> Any:
    """The configuration of a name on the shelf, a folder or a hub id.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoConfig

    where = located(where)
    folder = Path(where).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{where} holds no model: config.json is missing. Give a folder that save_pretrained wrote.")
    if not folder.is_dir() and (folder.is_absolute() or len(Path(where).parts) != 2):
        raise ValueError(f"{where} is no folder, nor a hub id such as Qwen/Qwen2.5-VL-3B-Instruct.")
    try:
        return AutoConfig.from_pretrained(str(folder if folder.is_dir() else where), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where} has no configuration that can be read: {error}. Known families: {', '.join(FAMILIES)}."
        ) from error


def located(where: str | Path) -> str | Path:
    """Where transformers finds a model: the folder of a name on the shelf; a folder or a hub id as it is."""
    return locate(where) if where in list_models() else where
