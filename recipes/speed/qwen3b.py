"""Qwen2.5-VL-3B without its weights: its sizes, a model of them, and the FLOPs of a step of stage 1."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zoo.vlm.small.model import IMAGE, VIDEO, VISION_END, VISION_START, small_processor

VOCABULARY = 151_936
#: what is not given is the default of transformers' configuration
SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": VOCABULARY,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "max_window_layers": 36,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
}
IMAGE_SIZE = 224
#: dense bfloat16 FLOP/s of a device, by a part of its name (NVIDIA's data sheets)
PEAK = {"A100": 312e12, "H100 80GB HBM3": 989e12, "H200": 989e12}


def sized(sizes: Mapping[str, Mapping[str, Any]], tokenizer: Any, device: str) -> tuple[Any, Any]:
    """A Qwen2.5-VL of these sizes with random bfloat16 weights, made on the device, and its processor."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    special = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    special |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config: Any = Qwen2_5_VLConfig(
        text_config={**sizes["text_config"], **ends},
        vision_config=dict(sizes["vision_config"]),
        tie_word_embeddings=sizes["text_config"]["tie_word_embeddings"],
        **ids,
    )
    with torch.device(device):
        network = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return network, small_processor(tokenizer, IMAGE_SIZE, config.vision_config.patch_size)


def flops(config: Any, patches: Sequence[int], lengths: Sequence[int], answers: int) -> float:
    """FLOPs that a step of a frozen Qwen2.5-VL with a trained projector needs, whatever is computed beyond: two for
    each multiplication and addition of a matrix product. Frozen matrices cost as much backward as forward, trained ones
    and attention twice as much; the tower is not gone back through. Logits count for answers only. What is computed
    twice to save memory does not count, nor do padding, norms, activations and rotations. Attention counts whole,
    masked or not.

    Args:
        config: of the model.
        patches: of each image, before they are merged.
        lengths: tokens of each conversation.
        answers: tokens of all answers.
    """
    text, vision = config.text_config, config.vision_config
    merge, wide = vision.spatial_merge_size**2, vision.hidden_size
    side = vision.patch_size
    embed = vision.in_channels * vision.temporal_patch_size * side * side * wide
    window = (vision.window_size // side) ** 2
    whole = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    pairs = sum(whole * n * n + (vision.depth - whole) * n * min(n, window) for n in patches)
    block = 4 * wide**2 + 3 * wide * vision.intermediate_size
    tower = 2 * sum(patches) * (embed + vision.depth * block) + 4 * wide * pairs
    merged = merge * wide
    projector = 3 * 2 * sum(patches) / merge * merged * (merged + vision.out_hidden_size)
    width, heads = text.hidden_size, text.num_attention_heads
    head = width // heads
    layer = 2 * width * head * (heads + text.num_key_value_heads) + 3 * width * text.intermediate_size
    linear = 2 * 2 * (sum(lengths) * text.num_hidden_layers * layer + answers * width * text.vocab_size)
    attention = 3 * 4 * heads * head * text.num_hidden_layers * sum(n * n for n in lengths)
    return tower + projector + linear + attention
