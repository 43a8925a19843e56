"""The comparison of stage 1's step with a bare loop, on very little data."""

import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from recipes.speed import measure, qwen3b, stage1
from recipes.speed.__main__ import main
from recipes.speed.measure import Apart, Rise
from recipes.speed.stage1_ways import Job, Log, Ours, Plain, Start, Turn, Watch
from tests.vlm.rig import base, galleries, rows
from zoo.data.samplers import Key
from zoo.vlm.loading import load_vlm
from zoo.vlm.match import MatchData
from zoo.vlm.tasks.images import ImageReader
from zoo.vlm.tasks.match import GallerySource
from zoo.world import Objects, Pets

TINY = {
    "text_config": {
        **qwen3b.SIZES["text_config"],
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        "hidden_size": 64,
        "out_hidden_size": 64,
        "depth": 2,
        "num_heads": 2,
        "intermediate_size": 80,
        "fullatt_block_indexes": [1],
    },
}


class Here:
    """As `Apart`, in this process: starting others takes long."""

    def __init__(self, prepare, *arguments):
        self.turn = prepare(*arguments)

    def close(self):
        pass


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    paths = []
    for number, category in enumerate(("pet", "object")):
        made = galleries(tmp_path_factory.mktemp(category), category, rows("train", 6), seed=number)
        paths.append(made.root / "manifest.parquet")
        made.save(paths[-1])
    return Job(base(), tuple(map(str, paths)), batch=4, steps=2)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage1, "Apart", Here)
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # it takes half a second among all that tests have loaded


def test_training_conversations_come_with_what_is_held_out_so_that_nothing_is_named_missing(
    monkeypatch, tmp_path, caplog
):
    worlds = {"pet": Pets(families=12, members=3, views=3, size=48), "object": Objects(families=12, views=3, size=48)}
    monkeypatch.setattr(stage1, "WORLD", worlds)
    monkeypatch.setattr(stage1, "MINED", {"tau": [-1.0], "k": 3, "eval_conversations": 4})
    data = MatchData(galleries=[GallerySource(path) for path in stage1.conversations(tmp_path, 25)])
    data.setup("fit")
    assert [data.tasks[0].size(split) for split in ("train", "val", "test")] == [25, 2, 2] and not caplog.messages


def a_turn(*losses: float, seconds: float = 1.0, megabytes: float = 1.0, towers: float = 0.0) -> Turn:
    return Turn(seconds, megabytes, losses, towers, math.nan, math.nan)


# ---------------------------------------------------------------------- the ways


def test_all_ways_do_the_same_work(job, tmp_path):
    plain, ours, cached = Plain(job)(), Ours(job)(), Ours(job, cache=tmp_path)()
    experts, both = Ours(job, experts=True)(), Ours(job, experts=True, cache=tmp_path)()
    assert len(plain.losses) == 2 and len(experts.losses) == 1
    assert abs(plain.losses[1] - plain.losses[0]) > 1e-3  # an update took place
    for other in (ours, cached, experts, both):
        assert other.losses == pytest.approx(plain.losses[: len(other.losses)], abs=1e-5)
    assert 0.02 < ours.towers < 0.98 and 0.02 < experts.towers < 0.98
    assert max(cached.towers, both.towers) < 0.1 and plain.towers == 0


def test_every_turn_starts_from_the_same_weights(job):
    ours = Ours(job)
    assert ours().losses == pytest.approx(ours().losses, abs=1e-6)


def test_only_the_projector_trains_in_both_ways(job):
    numbers = [sum(parameter.numel() for parameter in way(job).trained.parameters) for way in (Plain, Ours)]
    network, _ = load_vlm(job.vlm)
    assert numbers[0] == numbers[1] == sum(parameter.numel() for parameter in network.model.visual.merger.parameters())


def test_a_wider_vocabulary_is_the_same_in_both_ways(job):
    wide = replace(job, vocabulary=5000)
    plain, ours = Plain(wide), Ours(wide)
    assert plain.network.get_output_embeddings().weight.shape[0] == 5000
    assert ours().losses == pytest.approx(plain().losses, abs=1e-5)


def test_a_start_is_restored():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    before, start = layer.weight.detach().clone(), Start(layer)
    layer(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        layer.weight += 1
    start.restore()
    assert len(start.parameters) == 1 and torch.equal(layer.weight, before) and layer.weight.grad is None


def test_a_log_takes_the_median_step_and_the_share_of_the_towers():
    log = Log(torch.device("cpu"))
    log.starts = [(0.0, 0.0), (4.0, 1.0), (5.0, 1.5), (7.0, 2.5)]  # steps of 4, 1, 2 s: a quarter, half, half
    log.losses = [torch.tensor(3.0), torch.tensor(2.0), torch.tensor(1.0)]
    log.begin()
    turn = log.turn()
    assert (turn.seconds, turn.towers, turn.losses) == (2.0, 0.5, (3.0, 2.0))


def test_what_is_watched_adds_up():
    watch = Watch(torch.device("cpu"))
    torch_sum = watch(torch.sum)
    assert torch_sum(torch.ones(3), dim=0) == 3 and watch.seconds > 0
    once = watch.seconds
    with pytest.raises(TypeError):
        torch_sum()
    assert watch.seconds > once


# ---------------------------------------------------------------------- the command


def test_the_table_holds_each_target_beside_what_was_measured(in_this_process, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    few = {"families": 6, "members": 2, "views": 2, "size": 32}
    monkeypatch.setattr(stage1, "WORLD", {"pet": Pets(**few), "object": Objects(**few)})
    monkeypatch.setattr(stage1, "VOCABULARY", 2000)
    monkeypatch.setattr(stage1, "MINED", {"tau_quantile": [0.1], "eval_conversations": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["stage1", "--vlm", base(), "--rounds", "1", "--steps", "2", "--batch", "2", "--real"])
    printed = capsys.readouterr().out
    lines = [line.replace(" ", "") for line in printed.splitlines() if line.startswith("│")]
    targets = [line.split("│")[5] for line in lines]
    assert targets == [">=1", "<=0.9", "", "", "", ">=0.85", "", ">=0.85", "", "<=0.7"]
    assert all(line.split("│")[6] in ("met", "notmet") for line, target in zip(lines, targets, strict=True) if target)
    assert "batch2" in lines[0] and "vocabulary2,000" in lines[-1] and "there is no CUDA device" in printed


def test_the_worlds_and_levels_are_the_recipes():
    config = yaml.safe_load(Path("recipes/configs/vlm_stage1.yaml").read_text())
    data = config["data"]
    assert data["world"] == stage1.WORLD
    assert {name: data[name] for name in stage1.MINED} == stage1.MINED


def test_ratios_are_medians_of_rounds():
    turns = {
        "ours": [a_turn(1.0, seconds=s) for s in (1.0, 2.0, 4.0)],
        "plain": [a_turn(1.0, seconds=s) for s in (2.0, 3.0, 4.0)],
    }
    row = stage1.speed_row(turns, "ours", "plain", Job("", (), 8, 2), "step", 1.0)
    assert row.ratio == 1.5 and row.ours == "4.0/s" and row.cells()[-1] == "met"


@pytest.mark.parametrize(
    "ratio, less, verdict", [(1.0, False, "met"), (0.99, False, "not met"), (1.0, True, "met"), (1.01, True, "not met")]
)
def test_a_target_is_met_or_not(ratio, less, verdict):
    assert stage1.Row("", "", "", ratio, 1.0, less).cells()[-1] == verdict


def test_what_could_not_be_measured_meets_no_target():
    assert stage1.Row("", "", "", math.nan, 1.0).cells()[-2:] == ["", ""]


@pytest.mark.parametrize("losses", [(2.0, 1.002), (2.002, 1.0), (math.nan, 1.0)])
def test_other_work_is_not_compared(losses):
    turns = {"plain": [a_turn(2.0, 1.0)], "ours": [a_turn(*losses)]}
    with pytest.raises(RuntimeError, match="for ours and .* for plain: they do not do the same"):
        stage1.check_same_work(turns, 1e-3)


def test_a_way_with_one_loss_is_compared_by_it():
    stage1.check_same_work({"plain": [a_turn(2.0, 1.0)], "ours with experts": [a_turn(2.0009)]}, 1e-3)


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["stage1", "--steps", "1"])
    assert "--steps is 1" in capsys.readouterr().err


# ---------------------------------------------------------------------- Qwen2.5-VL-3B's sizes


def test_a_model_of_given_sizes_is_compared(job, in_this_process):
    table = stage1.real_rows(replace(job, sizes=TINY), rounds=1)
    assert [row.what.partition(": ")[2].split()[0] for row in table] == ["tokens", "memory", "model"]
    assert "peak of cpu unknown" in table[2].what and float(table[2].ours.split()[0]) >= 0
    assert table[2].ratio == table[0].ratio > 0


def test_the_sizes_are_qwens():
    network, _ = qwen3b.sized(qwen3b.SIZES, load_vlm(base())[1].tokenizer, "meta")
    vision, text = network.config.vision_config, network.config.text_config
    # Of its model card: 3.09 billion parameters, 2.77 of them outside the embedding.
    whole = sum(p.numel() for p in network.model.language_model.parameters())
    assert round(whole / 1e9, 2) == 3.09
    assert round((whole - text.vocab_size * text.hidden_size) / 1e9, 2) == 2.77
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert (vision.depth, vision.num_heads, vision.intermediate_size, vision.patch_size) == (32, 16, 3420, 14)
    assert (vision.window_size, list(vision.fullatt_block_indexes)) == (112, [7, 15, 23, 31])
    assert next(network.parameters()).dtype == torch.bfloat16


def test_flops_are_those_that_torch_counts(job):
    sizes = {**TINY, "vision_config": {**TINY["vision_config"], "window_size": 56}}
    ours = Ours(replace(job, sizes=sizes))
    fused, batcher = ours.stage.fused, ours.stage.batcher
    fused.vlm.gradient_checkpointing_disable()
    fused.vlm.set_attn_implementation("eager")  # its products are matrix products, which are counted
    batch = batcher([job.task().example("train", Key(0, 0), ImageReader())])
    with FlopCounterMode(display=False) as counter:
        logits, labels = fused.answer_logits(batch, fused.run_towers(batch))
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    lengths, answers = batch.attention_mask.sum(1).tolist(), len(labels)
    counted = qwen3b.flops(fused.vlm.config, fused.patches(batch).tolist(), lengths, answers)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


# ---------------------------------------------------------------------- processes and memory


def test_work_is_done_in_a_process_of_its_own():
    worker = Apart(partial, os.getpid)
    first, second = worker.turn(), worker.turn()
    worker.close()
    assert first == second == worker.process.pid != os.getpid()


def test_what_fails_there_is_raised_here():
    worker = Apart(partial, math.sqrt, -1.0)
    with pytest.raises(RuntimeError, match="math domain error"):
        worker.turn()
    worker.close()


def test_a_process_that_ends_is_noticed():
    worker = Apart(partial, os._exit, 3)
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        worker.turn()
    worker.close()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports it")
def test_a_rise_is_what_was_held_meanwhile():
    rise = Rise(torch.device("cpu"))
    torch.ones(20_000_000)  # 80 MB, gone at once
    assert 70 < rise.megabytes() < 150
