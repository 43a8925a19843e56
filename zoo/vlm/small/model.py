"""A small Qwen2.5-VL of a few million parameters, with a tokenizer of its own: what stage 1 runs on without a hub."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

# Qwen2.5-VL's own names, so that whatever knows that family's prompts knows this model's.
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"

# Its roles and vision marks without the system's turn: every token counts in a small model.
CHAT_TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + VISION_START + IMAGE + VISION_END + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)


def small_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it writes anything, and what `texts` use often in one token.

    Args:
        texts: what it is going to read and write.
        vocabulary: most tokens, the 256 bytes and seven special tokens included.
    """
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )


def small_processor(tokenizer: PreTrainedTokenizerFast, size: int, patch: int) -> Qwen2_5_VLProcessor:
    """The processor of a model with this patch size; images are brought to about `size` x `size` pixels."""
    # A pixel of room on both sides: rounding must not take a row of patches from an image, as 192 x 192 lost three of 4
    # tokens for size 112 and patch 28.
    area = {"shortest_edge": (size - 1) ** 2, "longest_edge": (size + 1) ** 2}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=patch, size=area),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=patch, size=area),
        chat_template=CHAT_TEMPLATE,
    )


def small_vlm(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 128,
    layers: int = 4,
    vision_width: int = 128,
    vision_layers: int = 4,
    patch: int = 28,
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights; heads are 32 wide.

    Args:
        tokenizer: of `small_tokenizer`.
        width: of the language model.
        layers: of the language model.
        vision_width: of the vision tower.
        vision_layers: of the vision tower.
        patch: side of a patch in pixels; 2 x 2 patches become one token.

    Raises:
        ValueError: a width that is no multiple of 32.
    """
    for name, value in (("width", width), ("vision_width", vision_width)):
        if value < 32 or value % 32:
            raise ValueError(f"{name} is {value}, but heads are 32 wide. Give a multiple of 32.")
    special = (PAD, END, IMAGE, VIDEO, VISION_START, VISION_END)
    token: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True,
        "initializer_range": width**-0.5,  # the usual 0.02 is for widths of thousands: here signals would fade
        "bos_token_id": None,
        "eos_token_id": token[END],
        "pad_token_id": token[PAD],
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_width,
        "intermediate_size": 2 * vision_width,
        "num_heads": vision_width // 32,
        "out_hidden_size": width,
        "patch_size": patch,
        "initializer_range": vision_width**-0.5,
        "fullatt_block_indexes": list(range(vision_layers)),  # images are smaller than a window
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token[IMAGE],
        video_token_id=token[VIDEO],
        vision_start_token_id=token[VISION_START],
        vision_end_token_id=token[VISION_END],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.pad_token_id = token[PAD]
    model.generation_config.eos_token_id = token[END]
    return model
