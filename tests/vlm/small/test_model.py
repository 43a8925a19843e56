"""The small base model and its tokenizer: sizes as asked for, and nothing that it cannot write."""

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.categories import CATEGORIES
from zoo.vlm.small.model import (
    END,
    IMAGE,
    PAD,
    START,
    VISION_END,
    VISION_START,
    small_processor,
    small_tokenizer,
    small_vlm,
)
from zoo.vlm.tasks.prompts import options, parse_choice

TEXTS = [f"{bracket} Which one is the query?" for name in CATEGORIES for bracket in options(name, 5, True)]


def test_the_tokenizer_writes_everything():
    """Bytes that it was never shown, spaces as they were, and no end of turn where none was written."""
    tokenizer = small_tokenizer(TEXTS, 400)
    rng = np.random.default_rng(0)
    texts = ["", " ", "  two  spaces\n\n", "[Pet 3]", "\u00e9\u00df\u4e2d\u6587 \U0001f436", "a\tb\x00c", "x" * 500]
    texts += ["".join(chr(c) for c in rng.integers(1, 0x2FFF, 40)) for _ in range(20)]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.all_special_ids)
        assert ids == tokenizer(text)["input_ids"], "nothing is added"


def test_special_tokens_are_one_token_each():
    tokenizer = small_tokenizer(TEXTS, 400)
    marks = (PAD, START, END, VISION_START, VISION_END, IMAGE)
    ids = [tokenizer(mark)["input_ids"] for mark in marks]
    assert all(len(each) == 1 for each in ids) and len({each[0] for each in ids}) == len(marks)
    assert tokenizer.pad_token == PAD and tokenizer.eos_token == END and tokenizer.image_token == IMAGE
    assert tokenizer.decode(tokenizer(f"a{END}b{PAD}")["input_ids"], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("category", CATEGORIES)
def test_options_differ_and_are_read_back(category):
    tokenizer = small_tokenizer(TEXTS, 400)
    texts = options(category, 12, no_match=True)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert len({tuple(each) for each in ids}) == 13
    assert [parse_choice(tokenizer.decode(each), category, 12) for each in ids] == [*range(1, 13), 0]
    known = tokenizer(options(category, 5), add_special_tokens=False)["input_ids"]
    assert len({len(each) for each in known}) == 1, "seen often, each is as long as the others"


def test_a_vocabulary_is_never_larger_than_asked_for_and_always_holds_the_bytes():
    assert len(small_tokenizer(TEXTS, 300)) == 300
    assert len(small_tokenizer([], 300)) == len(small_tokenizer(["ab"], 263)) == 263
    assert small_tokenizer(TEXTS, 350).get_vocab() == small_tokenizer(iter(TEXTS), 350).get_vocab()


def test_sizes_are_those_asked_for():
    tokenizer = small_tokenizer(TEXTS, 300)
    model = small_vlm(tokenizer, width=96, layers=3, vision_width=64, vision_layers=2, patch=14)
    text, vision = model.model.language_model, model.model.visual
    assert len(text.layers) == 3 and len(vision.blocks) == 2
    assert text.embed_tokens.weight.shape == (300, 96) and model.lm_head.weight is text.embed_tokens.weight
    assert vision.patch_embed.proj.weight.shape == (64, 3, 2, 14, 14)
    assert model.config.text_config.num_attention_heads == 3 and vision.blocks[0].attn.num_heads == 2
    million = sum(p.numel() for p in small_vlm(small_tokenizer(TEXTS, 1024)).parameters()) / 1e6
    assert 1 < million < 4


@pytest.mark.parametrize(("name", "value"), [("width", 100), ("width", 0), ("vision_width", 48), ("vision_width", -32)])
def test_widths_that_no_heads_fit_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, .* multiple of 32"):
        small_vlm(small_tokenizer([]), **{name: value})


@pytest.mark.parametrize(("size", "patch", "tokens"), [(56, 14, 4), (112, 28, 4), (112, 14, 16)])
def test_square_images_of_any_size_take_the_same_number_of_tokens(size, patch, tokens):
    """Of an image that is brought to the area of `size` x `size`; rounding must not take a row of them away."""
    processor = small_processor(small_tokenizer(TEXTS, 300), size, patch)
    for side in (8, 19, 38, 48, 75, 96, 112, 144, 192, 230, 300, 512):
        made = processor.image_processor(images=[Image.new("RGB", (side, side))], return_tensors="pt")
        assert int(made["image_grid_thw"].prod()) // 4 == tokens, side


def test_images_of_other_shapes_take_about_as_many_tokens():
    processor = small_processor(small_tokenizer(TEXTS, 300), 112, 14)
    for width, height in ((160, 80), (60, 90), (500, 400), (30, 60)):
        made = processor.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        assert 10 <= rows * columns // 4 <= 24 and (columns > rows) == (width > height)


def test_a_conversation_goes_in_and_an_answer_comes_out():
    """Through the chat template, and no further than the end of turn."""
    tokenizer = small_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    model, processor = small_vlm(tokenizer, 32, 1, 32, 1, 14).eval(), small_processor(tokenizer, 56, 14)
    content = [{"type": "image", "image": Image.new("RGB", (56, 56), "red")}, {"type": "text", "text": "Which pet?"}]
    asked = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        asked, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    prompt = tokenizer.decode(inputs["input_ids"][0])
    pictured = f"{VISION_START}{IMAGE * 4}{VISION_END}"
    assert prompt == f"{START}user\n{pictured}Which pet?{END}\n{START}assistant\n"
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert inputs["input_ids"].shape[1] < ids.shape[1] <= inputs["input_ids"].shape[1] + 5
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(END)
    whole = processor.apply_chat_template([*asked, {"role": "assistant", "content": "[Pet 1]"}], tokenize=False)
    assert whole.endswith(f"{START}assistant\n[Pet 1]{END}\n")
