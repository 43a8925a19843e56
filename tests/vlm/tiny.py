"""Tiny random vision-language models of every family, with processors, written to a folder and loaded from it.

    model, processor = tiny_vlm("qwen2_5_vl")

Weights are random, so their answers mean nothing; shapes, chat templates and token counts follow the families' own.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl import InternVLProcessor, InternVLVideoProcessor

from zoo.vlm.loading import load_vlm

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava")

_WIDTH = 64
_TEXT: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_INTERN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_LLAVA_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")

_QWEN_CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INTERN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As in LLaVA 1.5, all images come first.
_LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_vlm(family_name: str, seed: int = 0) -> tuple[Any, Any]:
    """A random model of less than a million parameters in eval mode, and its processor; a new model each time."""
    return load_vlm(tiny_folder(family_name, seed), dtype="float32", attention="sdpa")


@cache
def tiny_folder(family_name: str, seed: int = 0) -> str:
    """The folder that `tiny_vlm` loads from, written once a process."""
    folder = _KEPT.name + f"/{family_name}-{seed}"
    tokenizer = _tokenizer(family_name)
    config, processor = _BUILDERS[family_name](tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():  # also those that start at zero, such as InternVL's positions
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A random RGB image."""
    rng = np.random.default_rng((seed, width, height))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


_KEPT = tempfile.TemporaryDirectory(prefix="tiny_vlm_")


def _tokenizer(family_name: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: it can write anything, and usual words are short."""
    match family_name:
        case "internvl":
            special, chat, pad, end = _INTERN_SPECIAL, _INTERN_CHAT, "<|endoftext|>", "<|im_end|>"
            named = {
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            }
        case "llava":
            special, chat, pad, end = _LLAVA_SPECIAL, _LLAVA_CHAT, "<pad>", "</s>"
            named = {"image_token": "<image>"}
        case _:
            special, chat, pad, end = _QWEN_SPECIAL, _QWEN_CHAT, "<|endoftext|>", "<|im_end|>"
            named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    words = [f"[{noun} {k}] [None]" for noun in ("Person", "Face", "Pet", "Product") for k in range(10)]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(
        [*words, "Which one is the query? Answer with one of them. system user assistant helpful"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token=pad, eos_token=end, chat_template=chat, extra_special_tokens=named
    )


def _qwen_text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    return {**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, **ids}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen_images() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 40 * 40})


def _qwen2(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": _WIDTH, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = AutoConfig.for_model(
        "qwen2_vl", text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer)
    )
    return config, Qwen2VLProcessor(
        _qwen_images(), tokenizer, Qwen2VLVideoProcessor(patch_size=4), chat_template=_QWEN_CHAT
    )


def _qwen2_5(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": _WIDTH, "num_heads": 2, "intermediate_size": 48}
    windows = {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}  # a window has 2 x 2 merged tokens
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config=_qwen_text(tokenizer), vision_config={**vision, **windows}, **_qwen_ids(tokenizer)
    )
    return config, Qwen2_5_VLProcessor(
        _qwen_images(), tokenizer, Qwen2VLVideoProcessor(patch_size=4), chat_template=_QWEN_CHAT
    )


def _qwen3(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": _WIDTH,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**_qwen_text(tokenizer), "head_dim": 16}
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_interleaved": True}
    config = AutoConfig.for_model("qwen3_vl", text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    return config, Qwen3VLProcessor(
        _qwen_images(), tokenizer, Qwen3VLVideoProcessor(patch_size=4), chat_template=_QWEN_CHAT
    )


def _internvl(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [32, 32],
        "patch_size": [8, 8],
    }
    text = {"model_type": "qwen2", **_TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        "internvl",
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    return config, InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=_INTERN_CHAT,
    )


def _llava(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = {"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    text |= {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        "llava",
        text_config=text,
        vision_config=vision.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return config, LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_CHAT,
    )


_BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2_5,
    "qwen3_vl": _qwen3,
    "internvl": _internvl,
    "llava": _llava,
}
