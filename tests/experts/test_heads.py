import math

import torch
from torch.nn import functional as F

from experts.heads import ArcFaceHead


def test_arcface_is_equation_3_of_the_paper():
    torch.manual_seed(0)
    head = ArcFaceHead(5, 8, scale=20.0, margin=0.4)
    embeddings, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    weights = F.normalize(head.loss.W.T.detach(), dim=1)
    total = 0.0
    for x, y in zip(F.normalize(embeddings, dim=1), labels, strict=True):
        angles = [math.acos(float((x @ w).clamp(-1, 1))) for w in weights]
        logits = [20 * math.cos(angle + (0.4 if j == y else 0)) for j, angle in enumerate(angles)]
        total += -logits[y] + math.log(sum(math.exp(value) for value in logits))
    assert torch.isclose(head(embeddings, labels), torch.tensor(total / 6), rtol=1e-4)


def test_autocast_neither_demotes_the_weights_nor_the_loss():
    head = ArcFaceHead(5, 8)
    embeddings, labels = torch.randn(6, 8), torch.arange(6) % 5
    plain = head(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(embeddings, labels)
    assert head.loss.W.dtype == mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)
    assert head(embeddings.bfloat16(), labels).dtype == torch.float32
