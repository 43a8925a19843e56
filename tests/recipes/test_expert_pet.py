"""The pet recipe as its user runs it, on a tiny world."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoo
from recipes.expert_pet import main
from zoo.data.images import read_image
from zoo.data.index import IdentityIndex
from zoo.evaluation.embeddings import read_embeddings

WORLD = [
    "--data.world.families=10", "--data.world.members=3", "--data.world.views=4", "--data.world.size=48",
    "--data.identities_per_batch=8", "--data.steps_per_epoch=3",
    "--data.workers=0",
]  # fmt: skip
SCRATCH = ["--model.size=48", "--model.init_from=null"]
TINY = [*WORLD, *SCRATCH, "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--compare_with=[]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    home = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, open(home / "out", "w") as out:
        patch.chdir(home)
        patch.setattr(sys, "stdout", out)
        main(["fit", *TINY])
    return home / "runs/pet/version_0", (home / "out").read_text()


def scalars(run: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_fit_leaves_what_a_user_looks_for(run):
    folder, printed = run
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "manifest.csv", "expert/card.yaml"):
        assert (folder / name).is_file(), name
    assert len(scalars(folder, "val/mAP")) == 4, "before training and after each of 3 epochs"
    assert len(scalars(folder, "train/loss")) == len(scalars(folder, "lr-AdamW/x1, decay")) == 9
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert {"val/retrieval", "val/mistakes", "val/similarity", "test/retrieval"} <= set(events.Tags()["images"])
    assert {"val_retrieval_000000.png", "val_similarity_000009.png"} <= {p.name for p in folder.glob("pictures/*")}
    assert list(folder.rglob("projector_config.pbtxt"))
    assert "untrained" in printed and "trained" in printed and "what trains" in printed
    assert "runs/pet/version_0/expert" in printed.replace("\n", "")


def test_the_saved_expert_embeds_like_the_best_checkpoint(run):
    folder, _ = run
    expert = zoo.load(folder / "expert")
    state = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in expert.state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"]), name
    assert not expert.training


def test_test_reproduces_the_card(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.chdir(tmp_path)
    main(["test", *WORLD, f"--model.init_from={folder}/expert"])
    score = zoo.card(folder / "expert").scores[0].values["mAP"]
    assert f"{100 * score:.1f}" in capsys.readouterr().out


def test_weights_can_be_averaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *TINY, "--pictures.every_n_epochs=0", "--trainer.callbacks+=EMAWeightAveraging"])
    state = torch.load("runs/pet/version_0/checkpoints/last.ckpt", weights_only=True)
    name = "encoder.trunk.conv_stem.weight"
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_predict_writes_each_image_once_with_its_embedding(run, photos, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    expert = f"--model.init_from={run[0]}/expert"
    main(["predict", expert, f"--data.root={photos}", "--data.workers=0", f"--embeddings.format={kind}",
          f"--embeddings.folder={tmp_path}/out"])  # fmt: skip
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"embeddings-00000-of-00001.{kind}"]
    if kind == "parquet":
        table = read_embeddings(tmp_path / "out").to_pydict()
        paths, embeddings = table["path"], np.array(table["embedding"], dtype=np.float32)
    else:
        arrays = np.load(tmp_path / "out/embeddings-00000-of-00001.npz")
        paths, embeddings = arrays["path"].tolist(), arrays["embedding"]
    assert len(paths) == len(set(paths)) == 80
    encoder = zoo.load(run[0] / "expert")
    for row in (0, 17, 79):
        alone = encoder.embed(encoder.transform(read_image(photos / paths[row]))[None])[0]
        assert np.allclose(embeddings[row], alone.numpy(), atol=1e-5)


def test_a_manifest_fixes_the_split_of_another_run(run, tmp_path, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(tmp_path)
    main(["fit", *TINY, f"--data.manifest={folder}/manifest.csv", "--trainer.max_epochs=1", "--name=again"])
    assert (tmp_path / "runs/again/version_0/manifest.csv").read_bytes() == (folder / "manifest.csv").read_bytes()
    root = IdentityIndex.load(folder / "manifest.csv", Path("."))
    assert set(root.splits) == {"train", "closed", "val", "test"}


def assert_same_end(resumed: Path, uninterrupted: Path) -> None:
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (resumed, uninterrupted)]
    assert states[0]["global_step"] == states[1]["global_step"] == 9
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name
    best = [scalars(run, "val/mAP")[-1] for run in (resumed, uninterrupted)]
    assert best[0] == best[1]


def test_killed_and_resumed_equals_uninterrupted(run, tmp_path):
    """kill -9, then the command that fit printed; on one machine the weights agree to the last bit."""
    command = [sys.executable, "-m", "recipes.expert_pet", "fit", *TINY]
    environment = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1]), "COLUMNS": "1000"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    folder = tmp_path / "runs/pet/version_0"
    last = folder / "checkpoints/last.ckpt"
    deadline = time.time() + 180
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    printed = process.communicate()[0]
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 9, "the run was to be killed on its way"
    words = shlex.split(next(line for line in printed.splitlines() if "--ckpt_path" in line))
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert_same_end(folder, run[0])
    assert not (tmp_path / "runs/pet/version_1").exists(), "a resumed run goes on in its own folder"


def test_resumed_within_an_epoch_equals_uninterrupted(tmp_path, monkeypatch):
    """With a worker that reads ahead, which must not read ahead of the wrong place."""
    monkeypatch.chdir(tmp_path)
    often = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.init_args.every_n_train_steps=1",
        "--trainer.callbacks.init_args.save_top_k=-1",
        "--trainer.callbacks.init_args.filename={step}",
    ]
    main(["fit", *TINY, "--data.workers=1", *often])
    shutil.copytree("runs/pet/version_0", "uninterrupted")
    main(["fit", *TINY, "--data.workers=1", "--ckpt_path=runs/pet/version_0/checkpoints/step=5.ckpt"])
    assert_same_end(Path("runs/pet/version_0"), Path("uninterrupted"))


REFUSED = {
    "misspelt flag": (["--model.bakbone=resnet18"], 2, "Did you mean --model.backbone"),
    "misspelt value": (["--data.workers=two"], 2, "data.workers"),
    "unknown backbone": (["--model.backbone=mobilenetv3_smal_050"], 1, "Did you mean mobilenetv3_small_050"),
    "missing root": (["--data.root=/no/such/photos"], 1, "No folder /no/such/photos"),
    "unknown reader": (["--data.reader=foldr"], 1, "Did you mean 'folder'"),
    "unknown card": (["--model.init_from=pet_mobilenet"], 1, "pet_mobilenet"),
    "no such checkpoint": (["--ckpt_path=gone.ckpt"], 1, "No checkpoint gone.ckpt"),
    "card to compare with": (["--compare_with=[general_mobilnet]"], 1, "general_mobilenetv3s050.world"),
    "two starts": (
        ["--model.init_from=general_mobilenetv3s050.world", "--model.pool=max"],
        1,
        "pool max would be ignored",
    ),
    "unknown category": (["--model.category=pett"], 1, "Did you mean 'pet'"),
    "false acceptance rate": (["--model.protocol.far=5"], 1, "protocol.far cannot be 5"),
    "folder beside sources": (
        ["--data.root=photos", "--data.sources=[{root: more}]"],
        1,
        "Name the folder as one of the sources",
    ),
    "not a checkpoint": (["--ckpt_path=pyproject.toml"], 1, "cannot be read"),
    "frozen nothing": (["--model.freeze=[encoder.trnk]"], 1, "names no parameter"),
    "all frozen": (["--model.freeze=['*']"], 1, "nothing is left to train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_ends_with_one_readable_message(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text("no checkpoint")
    flags, status, message = REFUSED[case]
    with pytest.raises(SystemExit) as end:
        main(["fit", *TINY, *flags])
    printed = capsys.readouterr().err
    assert end.value.code == status and message in printed and "Traceback" not in printed


def test_another_architectures_checkpoint_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["test", *WORLD, *SCRATCH, f"--ckpt_path={run[0]}/checkpoints/best.ckpt", "--model.backbone=test_resnet"])
    assert "The checkpoint is not of this Expert" in capsys.readouterr().err


def test_a_misspelt_key_in_a_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model:\n  optm:\n    lr: 1\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", "mine.yaml"])
    assert "Did you mean --model.optim" in capsys.readouterr().err


def test_flags_reach_interpolated_values_and_files_stack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("name: from_a\ndata:\n  workers: 7\n  seed: 1\nmodel:\n  optim:\n    lr: 0.5\n")
    Path("b.yaml").write_text("model:\n  optim:\n    lr: 0.25\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", "a.yaml", "-c", "b.yaml", "--name=dog", "--print_config"])
    printed = capsys.readouterr().out
    assert "default_root_dir: runs/dog" in printed and "lr: 0.25" in printed and "workers: 7" in printed
