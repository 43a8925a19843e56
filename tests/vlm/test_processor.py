"""The test with the published Qwen2.5-VL reads its processor files from the folder in the environment variable
INSTANCE_ZOO_QWEN25VL, and is skipped without it."""

import os
import pickle
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from tests.vlm.conftest import EXAMPLES, by_hugging_face, talk
from tests.vlm.tiny import picture
from zoo.categories import Box
from zoo.transforms import Transform
from zoo.vlm.batch import Example, ExpertCrops, Instance, VLMBatch, crop_key
from zoo.vlm.families import family_of
from zoo.vlm.processor import Detection, UnfitImage, VLMProcessor

SMALL = Transform((8, 6), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
PET = (Instance("pet"),)


def test_prompts_equal_those_of_hugging_face(made: tuple[Any, VLMProcessor]) -> None:
    model, batcher = made
    batch = batcher(EXAMPLES, for_generation=True)
    wanted = by_hugging_face(batcher, EXAMPLES, "left")
    found = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text, **batch.vision}
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert torch.equal(value, wanted[name]) and value.dtype == wanted[name].dtype, name
    assert (batch.labels == -100).all()
    assert torch.equal(batch.image_tokens, batcher.family.image_tokens(model.config, batch.vision))
    assert int(batch.image_tokens.sum()) == int(
        (batch.input_ids == batcher.family.placeholder(batcher.processor)).sum()
    )
    assert batch.keys == ("three/0.png", "three/1.png", "three/2.png", "one/0.png", "two/0.png", "two/1.png")
    assert batch.items == ("three", "one", "blind", "two")


def test_answers_follow_their_prompts(made: tuple[Any, VLMProcessor]) -> None:
    _, batcher = made
    tokenizer = batcher.processor.tokenizer
    batch, prompts = batcher(EXAMPLES), by_hugging_face(batcher, EXAMPLES, "right")
    for row, example in enumerate(EXAMPLES):
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        whole = torch.cat([prompt, torch.tensor(answer)])
        there = batch.attention_mask[row].bool()
        assert torch.equal(batch.input_ids[row][there], whole) and there[: len(whole)].all()
        assert batch.labels[row].tolist() == [
            -100 if not len(prompt) <= place < len(whole) else int(whole[place]) for place in range(len(there))
        ]
    types = batch.text.get("mm_token_type_ids")
    assert (types is None) == (not batcher.family.token_types)
    if types is not None:
        assert torch.equal(types == 1, batch.input_ids == batcher.family.placeholder(batcher.processor))


@torch.no_grad()
def test_a_batch_gives_the_logits_of_its_examples_one_by_one(made: tuple[Any, VLMProcessor]) -> None:
    """fp32, both paddings."""
    model, batcher = made
    for generates in (False, True):
        several = batcher(EXAMPLES, for_generation=generates)
        logits = logits_of(model, several)
        for row, example in enumerate(EXAMPLES):
            alone = logits_of(model, batcher([example], for_generation=generates))[0]
            torch.testing.assert_close(logits[row][several.attention_mask[row].bool()], alone, rtol=0, atol=1e-4)


def logits_of(model: Any, batch: VLMBatch) -> torch.Tensor:
    fields = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text, **batch.vision}
    return model(**fields).logits


def test_without_pixels_only_they_are_missing(made: tuple[Any, VLMProcessor]) -> None:
    _, batcher = made
    if batcher.family.deepstack:
        with pytest.raises(ValueError, match="DeepStack features that no cache keeps"):
            batcher(EXAMPLES, with_pixels=False)
        return
    sized = [
        replace(e, messages=[{"role": "user", "content": [_sized(p) for p in e.messages[0]["content"]]}])
        for e in EXAMPLES
    ]
    wanted, found = batcher(EXAMPLES), batcher(sized, with_pixels=False)
    assert "pixel_values" in wanted.vision and "pixel_values" not in found.vision
    for name in ("input_ids", "attention_mask", "labels", "image_tokens"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    for name, value in found.vision.items():
        assert torch.equal(value, wanted.vision[name])
    assert found.keys == wanted.keys


def _sized(part: dict[str, Any]) -> dict[str, Any]:
    """Nothing of an image but its size."""
    return {**part, "image": SimpleNamespace(size=part["image"].size, mode="RGB")} if "image" in part else part


def test_it_can_be_sent_to_a_worker_process(made: tuple[Any, VLMProcessor]) -> None:
    _, batcher = made
    sent = pickle.loads(pickle.dumps(batcher))
    wanted, found = batcher(EXAMPLES), sent(EXAMPLES)
    assert torch.equal(found.input_ids, wanted.input_ids)
    assert all(torch.equal(found.vision[name], value) for name, value in wanted.vision.items())


def test_everything_goes_to_the_device(qwen: tuple[Any, Any, Any]) -> None:
    examples = [replace(EXAMPLES[0], instances=(PET, (), PET))]
    batch = VLMProcessor(*qwen, experts={"pet": SMALL})(examples, skipped=["a.png: no such file"])
    moved = batch.to("meta")
    pet = moved.experts["pet"]
    tensors = [moved.input_ids, moved.attention_mask, moved.labels, moved.image_tokens, pet.pixels, pet.image]
    assert all(tensor.is_meta for tensor in [*tensors, *moved.vision.values(), *moved.text.values()])
    assert moved.skipped == ("a.png: no such file",) and moved.keys == batch.keys
    assert not batch.input_ids.is_meta


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_are_resized_into_the_budget(loaded: dict[str, tuple[Any, Any]], name: str) -> None:
    model, processor = loaded[name]
    batcher = VLMProcessor(processor, family_of(model.config), model.config, min_tokens=6, max_tokens=20)
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(4, 200, (40, 2)).tolist(), [1, 1], [3, 9]]
    examples = [talk("Look", picture(w, h)) for w, h in sizes]
    fitting = [example for example in examples if batcher.unfit(example) is None]
    assert len(fitting) > 30
    batch = batcher(fitting, for_generation=True)
    assert batch.image_tokens.min() >= 6 and batch.image_tokens.max() <= 20
    wanted = by_hugging_face(batcher, fitting, "left")
    assert torch.equal(batch.input_ids, wanted["input_ids"])
    assert torch.equal(batch.vision["pixel_values"], wanted["pixel_values"])
    free = VLMProcessor(processor, family_of(model.config), model.config)(fitting)
    assert not torch.equal(free.image_tokens, batch.image_tokens), "the budget makes no difference"


def test_an_image_that_breaks_the_budget_is_refused(loaded: dict[str, tuple[Any, Any]], qwen: Any) -> None:
    batcher = VLMProcessor(*qwen, max_tokens=20)
    long = talk("Look", picture(20, 20), picture(1000, 8), item="long")
    with pytest.raises(UnfitImage, match=r"long/1.png: 1000 x 8 pixels take \d+ tokens, outside the budget of 1 to 20"):
        batcher([EXAMPLES[1], long])
    assert "long/1.png" in str(batcher.unfit(long)) and batcher.unfit(EXAMPLES[0]) is None
    assert str(batcher.unfit(replace(long, image_names=("a.png", "b.png")))).startswith("b.png: 1000 x 8")
    model, processor = loaded["llava"]
    fixed = VLMProcessor(processor, family_of(model.config), model.config, max_tokens=8)
    with pytest.raises(UnfitImage, match="take 16 tokens, outside the budget of 1 to 8"):
        fixed([EXAMPLES[1]])
    with pytest.raises(ValueError, match="min_tokens 9 and max_tokens 8 leave no room"):
        VLMProcessor(*qwen, min_tokens=9, max_tokens=8)


@pytest.mark.parametrize("size", [(202, 1), (1, 202), (401, 2)])
def test_a_line_is_refused(made: tuple[Any, VLMProcessor], size: tuple[int, int]) -> None:
    with pytest.raises(UnfitImage, match=f"talk/0.png: {size[0]} x {size[1]} pixels are hardly more than a line"):
        made[1]([talk("Look", picture(*size))])


def test_other_modes_become_rgb(qwen: tuple[Any, Any, Any]) -> None:
    grey = picture(30, 30).convert("L")
    pixels = [VLMProcessor(*qwen)([talk("Look", p)]).vision["pixel_values"] for p in (grey, grey.convert("RGB"))]
    assert torch.equal(*pixels)


# ---------------------------------------------------------------------- what does not fit together


def test_parts_that_do_not_fit_are_refused(made: tuple[Any, VLMProcessor]) -> None:
    _, batcher = made
    token = batcher.processor.image_token
    with pytest.raises(ValueError, match="no example"):
        batcher([])
    with pytest.raises(ValueError, match="'talk' has 2 placeholders .* for 1 images"):
        batcher([talk(f"What is {token}?", picture(20, 20))])
    with pytest.raises(ValueError, match="answer of 'talk' holds"):
        batcher([talk("Look", picture(20, 20), answer=f"It is {token}")])
    with pytest.raises(ValueError, match="'talk' has 1 images and 2 keys"):
        batcher([talk("Look", picture(20, 20), keys=("a", "b"))])
    with pytest.raises(ValueError, match="'talk' has 1 images and 2 instances"):
        batcher([talk("Look", picture(20, 20), instances=((), ()))])
    with pytest.raises(ValueError, match="'talk' has 1 images and 2 image_names"):
        batcher([talk("Look", picture(20, 20), image_names=("a", "b"))])


def test_a_tokenizer_that_does_not_know_the_placeholder_is_noticed(qwen: tuple[Any, Any, Any]) -> None:
    processor = pickle.loads(pickle.dumps(qwen[0]))
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids("Pet")
    batcher = VLMProcessor(processor, *qwen[1:])
    with pytest.raises(ValueError, match="'talk' has 1 placeholder tokens for 12 image features"):
        batcher([talk("[Pet 1]", picture(50, 20))])


def test_plain_text_content_is_one_part(made: tuple[Any, VLMProcessor]) -> None:
    plain = Example([{"role": "user", "content": "Write something."}], "Something.", "blind", ())
    assert torch.equal(made[1]([plain]).input_ids, made[1]([EXAMPLES[2]]).input_ids)


# ---------------------------------------------------------------------- experts


def shows(pixels: torch.Tensor, crop: Image.Image) -> bool:
    """Whether an expert is given this crop."""
    return torch.equal(pixels, SMALL.compose()(crop))


def test_experts_are_given_their_categories(qwen: tuple[Any, Any, Any]) -> None:
    whole = [picture(40, 30), picture(30, 50), picture(20, 20), picture(25, 20)]
    examples = [
        talk("a", whole[0], "b", whole[1], instances=(PET, (Instance("face"),)), item="first"),
        talk("c", whole[2], item="nothing"),
        talk("d", whole[3], instances=(PET,), item="last"),
    ]
    experts = {"pet": SMALL, "person": replace(SMALL, size=(4, 4))}
    batcher = VLMProcessor(*qwen, experts=experts)
    batch = batcher(examples)
    assert list(batch.experts) == ["pet", "person"], "no expert serves faces"
    pet, person = batch.experts["pet"], batch.experts["person"]
    assert pet.image.tolist() == [0, 3] and pet.pixels.dtype == torch.uint8
    assert shows(pet.pixels[0], whole[0]) and shows(pet.pixels[1], whole[3])
    assert person.pixels.shape == (0, 3, 4, 4) and person.image.shape == (0,)
    cached = batcher(examples, with_pixels=False).experts["pet"]
    assert cached.pixels.shape == (0, 3, 8, 6) and cached.image.tolist() == [0, 3]
    assert cached.keys == pet.keys == ("first/0.png", "last/0.png")
    assert torch.equal(batch.vision["pixel_values"], VLMProcessor(*qwen)(examples).vision["pixel_values"])


DETECTIONS = [
    Detection("dog", (10.0, 20.0, 20.0, 20.0), 0.9),
    Detection("cat", (40.0, 20.0, 40.0, 20.0), 0.8),
    Detection("cat", (0.0, 0.0, 90.0, 70.0), 0.4),
    Detection("sofa", (0.0, 0.0, 100.0, 80.0), 0.9),
]


def crops_of(
    qwen: tuple[Any, Any, Any], image: Image.Image, detections: list[Detection] | None, *boxes: Box | None
) -> ExpertCrops:
    """Of the pets in an image; without a detector where no detections are given."""
    detector = None if detections is None else lambda _: detections
    batcher = VLMProcessor(*qwen, experts={"pet": SMALL}, detector=detector)
    return batcher([talk("a", image, instances=(tuple(Instance("pet", box) for box in boxes),))]).experts["pet"]


def test_a_box_goes_before_a_detection_and_without_a_detector_the_whole_image_is_taken(
    qwen: tuple[Any, Any, Any],
) -> None:
    """A pet's margin is 0.05 of a side."""
    image, box = picture(100, 80), (50.0, 40.0, 20.0, 40.0)
    assert shows(crops_of(qwen, image, DETECTIONS, box).pixels[0], image.crop((49, 38, 71, 80)))
    assert shows(crops_of(qwen, image, DETECTIONS, None).pixels[0], image.crop((38, 19, 82, 41)))
    assert shows(crops_of(qwen, image, None, None).pixels[0], image)


@pytest.mark.parametrize("detections", [DETECTIONS[2:], DETECTIONS[3:], []], ids=["unsure", "another", "none"])
def test_what_a_detector_does_not_find_has_no_crop(qwen: tuple[Any, Any, Any], detections: list[Detection]) -> None:
    crops = crops_of(qwen, picture(100, 80), detections, None, None)
    assert crops.pixels.shape == (0, 3, 8, 6) and crops.image.tolist() == [] and crops.keys == ()
    assert crops.absent == ("talk/0.png", "talk/0.png#1") == crops.to("meta").absent


def test_several_instances_without_a_box_take_the_detections_from_the_largest(qwen: tuple[Any, Any, Any]) -> None:
    """One with a box takes none of them; one that is left has no crop."""
    image, box = picture(100, 80), (50.0, 40.0, 20.0, 40.0)
    crops = crops_of(qwen, image, DETECTIONS, None, box, None, None)
    assert crops.keys == ("talk/0.png", crop_key("talk/0.png", box), "talk/0.png#1") and crops.image.tolist() == [0] * 3
    for pixels, place in zip(crops.pixels, [(38, 19, 82, 41), (49, 38, 71, 80), (9, 19, 31, 41)], strict=True):
        assert shows(pixels, image.crop(place))
    assert crops.absent == ("talk/0.png#2",)


def test_an_image_may_have_instances_of_several_categories(qwen: tuple[Any, Any, Any]) -> None:
    """In the order given, counted for each category by itself; an image is detected in once."""
    image, calls = picture(100, 80), []

    def detector(given: Image.Image) -> list[Detection]:
        calls.append(given)
        return [*DETECTIONS, Detection("person", (10.0, 10.0, 30.0, 60.0), 0.9)]

    batcher = VLMProcessor(*qwen, experts={"pet": SMALL, "person": SMALL}, detector=detector)
    box = (5.0, 5.0, 20.0, 20.0)
    instances = (Instance("person"), Instance("pet"), Instance("person", box), Instance("pet"))
    examples = [
        talk("a", picture(20, 20), image, instances=((), instances), item="first"),
        talk("b", image, instances=((Instance("pet", box),),), item="last"),
    ]
    batch = batcher(examples)
    assert len(calls) == 1, "only where an instance has no box"
    pet, person = batch.experts["pet"], batch.experts["person"]
    assert pet.keys == ("first/1.png", "first/1.png#1", crop_key("last/0.png", box)) and not pet.absent
    assert person.keys == ("first/1.png", crop_key("first/1.png", box)) and not person.absent
    assert pet.image.tolist() == [1, 1, 2] and person.image.tolist() == [1, 1]
    assert len(pet.pixels) == 3 and len(person.pixels) == 2
    named = [("person", "first/1.png"), ("pet", "first/1.png"), ("person", crop_key("first/1.png", box))]
    assert batcher.crop_keys("first/1.png", instances) == [*named, ("pet", "first/1.png#1")]


def test_without_pixels_every_instance_may_have_a_crop(qwen: tuple[Any, Any, Any]) -> None:
    """Which of them a detector finds is known where their features are kept."""

    def detector(image: Image.Image) -> list[Detection]:
        raise AssertionError("there is nothing to detect in")

    batcher = VLMProcessor(*qwen, experts={"pet": SMALL}, detector=detector)
    crops = batcher([talk("a", picture(20, 20), instances=(PET * 2,))], with_pixels=False).experts["pet"]
    assert crops.keys == ("talk/0.png", "talk/0.png#1") and crops.image.tolist() == [0, 0] and crops.absent == ()


@pytest.mark.parametrize("box", [(100, 0, 5, 5), (0, -30, 9, 20), (5, 5, 0, 5), (5, 5, -3, 5), (float("nan"), 0, 9, 9)])
def test_a_box_outside_of_its_image_is_found_before_the_batch_is_made(qwen: tuple[Any, Any, Any], box: Any) -> None:
    batcher = VLMProcessor(*qwen, experts={"pet": SMALL})
    good, bad = ((Instance("pet", own),) for own in ((3.0, 3.0, 9.0, 9.0), box))
    example = talk("a", picture(100, 80), picture(20, 20), instances=(good, bad))
    assert batcher.unfit(example) is not None
    example = talk("a", picture(20, 20), picture(100, 80), instances=(PET, good + bad))
    reason = batcher.unfit(example)
    assert reason is not None and re.match(r"talk/1.png: the box .* holds nothing of 100 x 80 pixels", reason)
    with pytest.raises(UnfitImage, match="talk/1.png: the box .* holds nothing"):
        batcher([example])
    assert VLMProcessor(*qwen).unfit(example) is None, "no expert takes it"
    inside = (Instance("pet", (90.0, 70.0, 30.0, 30.0)),)
    assert batcher.unfit(replace(example, instances=(PET, inside))) is None, "partly inside"


def test_an_expert_of_an_unknown_category_is_refused(qwen: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="Unknown category 'pett'.*Did you mean 'pet'"):
        VLMProcessor(*qwen, experts={"pett": SMALL})


def test_a_crop_is_known_by_image_and_box(qwen: tuple[Any, Any, Any]) -> None:
    box = (1.0, 2.0, np.float32(3.5), 4)
    example = talk("a", picture(20, 20), picture(20, 20), instances=(PET, (Instance("pet", box),)))
    pet = VLMProcessor(*qwen, experts={"pet": SMALL})([example]).experts["pet"]
    assert pet.keys == ("talk/0.png", crop_key("talk/1.png", box)) == pet.to("meta").keys
    assert len({crop_key(key, b) for key in "ab" for b in (None, box, (1, 2, 3.5, 5))}) == 6
    assert len({crop_key("a", None, place) for place in range(3)}) == 3


# ---------------------------------------------------------------------- the published Qwen2.5-VL

QWEN = os.environ.get("INSTANCE_ZOO_QWEN25VL", "")


@pytest.mark.skipif(not QWEN, reason="INSTANCE_ZOO_QWEN25VL names no folder")
def test_the_published_processor_counts_as_the_family_does() -> None:
    """Qwen2.5-VL's processor, from the folder in INSTANCE_ZOO_QWEN25VL; skipped without it."""
    processor, config = AutoProcessor.from_pretrained(QWEN), AutoConfig.from_pretrained(QWEN)
    batcher = VLMProcessor(processor, family_of(config), config, max_tokens=64)
    sizes = [(224, 224), (640, 480), (37, 301), (1200, 90), (15, 20)]
    examples = [talk(*(picture(w, h) for w, h in sizes), "Which?"), talk("Query", picture(400, 400), "Which?")]
    batch, wanted = batcher(examples, for_generation=True), by_hugging_face(batcher, examples, "left")
    for name, value in {"input_ids": batch.input_ids, **batch.text, **batch.vision}.items():
        assert torch.equal(value, wanted[name]), name
    assert torch.equal(batch.image_tokens, batcher.family.image_tokens(config, batch.vision))
    assert batch.image_tokens.tolist()[0] == 64, "224 x 224 pixels in patches of 14, merged by 2"
    assert torch.equal(batcher(examples, with_pixels=False, for_generation=True).input_ids, batch.input_ids)
    answer = batcher(examples).labels
    assert processor.tokenizer.decode(answer[0][answer[0] >= 0]) == "[Pet 2]<|im_end|>"
