"""The general recipe on tiny worlds of every kind, joined; and its loss by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import zoo
from experts.general import GeneralEncoder
from recipes.general import main

WORLDS = [
    {"class_path": f"zoo.world.{name}", "init_args": {"families": 4, "members": 2, "views": 4, "size": 32}}
    for name in ("Persons", "Faces", "Pets", "Objects")
]


def test_fit_learns_the_attributes_of_all_worlds_and_saves_an_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--data.world={json.dumps(WORLDS)}", "--model.size=32", "--data.workers=0"]
    flags += ["--data.identities_per_batch=8"]
    main(["fit", *flags, "--trainer.max_epochs=1", "--data.steps_per_epoch=3", "--pictures.every_n_epochs=0"])
    printed = capsys.readouterr().out
    assert "untrained" in printed and "trained" in printed
    encoder = zoo.load("runs/general/version_0/expert")
    assert encoder.embed(torch.zeros(1, 3, 32, 32)).shape == (1, encoder.embed_dim)
    rows = Path("runs/general/version_0/manifest.csv").read_text().splitlines()[1:]
    assert {row.split(",")[1].split("/")[0] for row in rows} == {"persons", "faces", "pets", "objects"}


def test_an_image_counts_for_the_attributes_that_it_has():
    torch.manual_seed(0)
    model = GeneralEncoder(backbone="test_resnet", size=32)
    model.heads = torch.nn.ModuleList([torch.nn.Linear(model.encoder.embed_dim, n) for n in (3, 2, 4)])
    model.columns = [0, 2, 3]
    model._trainer = SimpleNamespace(global_step=0)
    model.log = lambda *_, **__: None
    attributes = torch.tensor([[0, 0, 1, -1], [2, 0, -1, -1], [-1, 0, 0, -1], [1, 0, -1, -1]])
    zero = torch.zeros(4, dtype=torch.int64)
    batch = zoo.IdentityBatch(torch.randn(4, 3, 32, 32), zero, zero, zero, attributes)
    loss = model.training_step(batch, 0)
    embeddings = model.encoder(batch.images)
    first = F.cross_entropy(model.heads[0](embeddings[[0, 1, 3]]), torch.tensor([0, 2, 1]))
    second = F.cross_entropy(model.heads[1](embeddings[[0, 2]]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(float(first + second) / 3, rel=1e-5), "no image has the third: it adds nothing"
    loss.backward()
    assert all(p.grad is not None for p in model.heads.parameters()), "which ranks of a distributed run rely on"
