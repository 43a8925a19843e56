"""Guided attention: which token should attend to which, and what it costs not to."""

import torch

from tests.vlm.test_fused import fused_of
from tests.vlm.tiny import picture
from zoo.vlm.batch import IGNORED, Example
from zoo.vlm.small.easy_gallery import EasyGallery
from zoo.vlm.small.guidance import attention_loss, guide, naming_loss, number_tokens
from zoo.vlm.tasks.prompts import gallery_question, option


def matching(k: int, *answers: int) -> Example:
    images = [picture(32 + 8 * n, 32, seed=n) for n in range(k + len(answers))]
    messages = gallery_question(images[:k], images[k], "pet")
    for image, answer in zip(images[k + 1 :], answers, strict=False):
        messages.append({"role": "assistant", "content": option("pet", answer)})
        messages.append({"role": "user", "content": [{"type": "image", "image": image}]})
    return Example(messages, option("pet", answers[-1]), EasyGallery(answers, ()), tuple(map(str, range(len(images)))))


def caption() -> Example:
    content = [{"type": "image", "image": picture(48, 32)}, {"type": "text", "text": "Describe the pet."}]
    return Example([{"role": "user", "content": content}], "a cat", "path", ("c",))


def test_each_step_points_where_it_should() -> None:
    fused, batcher = fused_of("qwen2_5_vl", experts={})
    tokenizer = batcher.processor.tokenizer
    batch = batcher([caption(), matching(3, 2), matching(2, 1, 2, 1)])
    placeholder = fused.family.placeholder(batcher.processor)
    wanted, names = guide(batch, placeholder, number_tokens(tokenizer))
    assert not wanted[:, 0].any() and (names[:, 0] == IGNORED).all()  # a caption is left alone
    counts = batch.image_tokens.tolist()
    for row, (first, k, answers) in {1: (1, 3, (2,)), 2: (5, 2, (1, 2, 1))}.items():
        images = (batch.input_ids[row] == placeholder).nonzero()[:, 0].split(counts[first : first + k + len(answers)])
        gallery, queries = images[:k], images[k:]
        for number, image in enumerate(gallery, start=1):
            for token in image.tolist():
                number_token = batch.input_ids[row][wanted[0, row, token]]
                assert tokenizer.decode(number_token).strip() == str(number)
                assert tokenizer.decode([names[0, row, token]]).strip() == str(number)
        assert (names[0, row] != IGNORED).sum() == sum(map(len, gallery))
        assert (names[1, row] != IGNORED).sum() == sum(map(len, queries))
        before = (batch.labels[row] != IGNORED).nonzero()[:, 0] - 1  # what predicts the answers' tokens
        assert wanted[2, row].any(-1).nonzero()[:, 0].tolist() == before.tolist()
        ends = [*(int(query[0]) for query in queries[1:]), batch.input_ids.shape[1]]
        for query, answer, end in zip(queries, answers, ends, strict=True):
            assert {tokenizer.decode([name]).strip() for name in names[1, row, query]} == {str(answer)}
            assert not wanted[0, row, query].any()
            for token in query.tolist():
                assert wanted[1, row, token].nonzero()[:, 0].tolist() == gallery[answer - 1].tolist()
            own = before[(before > query[-1]) & (before < end)]
            assert tokenizer.decode(batch.input_ids[row, own + 1]).startswith(option("pet", answer))
            assert (wanted[2, row, own].nonzero()[:, 1].reshape(len(own), -1) == query).all()
        assert not (
            wanted[:, row] & torch.ones(*wanted.shape[2:]).triu(1).bool()
        ).any()  # nothing attends to the future


def test_the_loss_is_the_share_of_attention_by_hand() -> None:
    attention = torch.zeros(3, 1, 2, 4, 4)  # step, conversation, head, row, column
    attention[0, 0, 0, 2] = torch.tensor([0.5, 0.25, 0.25, 0.0])
    attention[0, 0, 0, 3] = torch.tensor([0.1, 0.1, 0.1, 0.7])
    attention[1, 0, 0, 3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    wanted = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    wanted[0, 0, 2, :2] = True
    wanted[0, 0, 3, 3] = True
    wanted[1, 0, 3, 1] = True
    expected = -(torch.tensor(0.75).log() + torch.tensor(0.7).log()) / 2
    torch.testing.assert_close(attention_loss(tuple(attention), wanted), expected, rtol=1e-4, atol=1e-5)


def test_without_anything_to_guide_it_is_zero() -> None:
    attention = (torch.rand(1, 2, 4, 4, requires_grad=True),) * 3
    assert attention_loss(attention, torch.zeros(3, 1, 4, 4, dtype=torch.bool)) == 0


def test_numbers_are_the_tokens_with_a_digit() -> None:
    _, batcher = fused_of("qwen2_5_vl", experts={})
    tokenizer = batcher.processor.tokenizer
    texts = [tokenizer.decode([token]) for token in number_tokens(tokenizer).tolist()]
    assert len(texts) >= 10 and all(any(map(str.isdigit, text)) for text in texts)


def test_numbers_are_named_right_after_their_step() -> None:
    head = torch.nn.Linear(4, 7, bias=False)
    states = tuple(torch.randn(2, 5, 4) for _ in range(4))
    names = torch.full((2, 2, 5), IGNORED)
    names[0, 0, 1], names[0, 1, 2], names[1, 1, 4] = 6, 3, 0

    def cost(step: int, row: int, place: int) -> torch.Tensor:
        state = states[step][row, place]
        logits = head(state / (state.square().mean() + torch.finfo(torch.float32).eps).sqrt())
        return logits.logsumexp(0) - logits[names[step - 1, row, place]]

    expected = (cost(1, 0, 1) + cost(1, 1, 2)) / 2 + cost(2, 1, 4)
    torch.testing.assert_close(naming_loss(states, names, head), expected)
    assert naming_loss(states, torch.full((2, 2, 5), IGNORED), head) == 0
