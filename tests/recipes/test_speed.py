"""The comparisons that anyone can repeat, on very little data."""

import re

import pytest
from rich.console import Console

from recipes.speed import retrieval, ways
from recipes.speed.__main__ import main

FEATURES = ways.Features.draw(ways.Size(60, 300, 60, 20, 32))


def by_hand(features):
    """Rank-1 and AP of each query, from a sorted list."""
    ranks1, averages = [], []
    for query, identity in zip(features.query, features.query_ids.tolist(), strict=True):
        order = sorted(range(len(features.gallery)), key=(-(features.gallery @ query)).tolist().__getitem__)
        hits = [int(features.gallery_ids[g]) == identity for g in order]
        places = [place for place, hit in enumerate(hits, 1) if hit]
        ranks1.append(hits[0])
        averages.append(sum(number / place for number, place in enumerate(places, 1)) / len(places))
    return {"rank1": sum(ranks1) / len(ranks1), "mAP": sum(averages) / len(averages)}


@pytest.mark.parametrize("way", [name for name, way in ways.WAYS.items() if way.same_scores])
def test_every_way_gives_the_same_scores(way):
    try:
        work = ways.WAYS[way].prepare(FEATURES)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    assert work() == pytest.approx(by_hand(FEATURES), abs=1e-6)


def test_the_features_are_neither_too_easy_nor_too_hard():
    assert 0.1 < by_hand(FEATURES)["mAP"] < 0.9
    queries = set(FEATURES.query_ids.tolist())
    assert sum(g not in queries for g in FEATURES.gallery_ids.tolist()) == 60


def test_a_way_that_gives_other_scores_is_marked():
    assert retrieval.agreement({"rank1": 0.5, "mAP": 0.4}, {"rank1": 0.50001, "mAP": 0.4}) == "; agrees within 0.0001"
    remark = retrieval.agreement({"rank1": 0.5, "mAP": 0.3}, {"rank1": 0.5, "mAP": 0.4})
    assert "mAP -0.1" in remark and "rank1" not in remark


def rows(printed):
    """First word of a way's title -> its row."""
    return {line.split()[1]: line for line in printed.splitlines() if line.startswith("│") and line.split()[1] != "│"}


def test_the_table_holds_every_way_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setitem(ways.SIZES, "market", ways.Size(60, 300, 60, 20, 32))
    main(["retrieval", "--sizes", "market", "--rounds", "1", "--ways", "zoo", "matmul"])
    printed = rows(capsys.readouterr().out)
    assert re.search(r"\d+\.\d\d │ +1\.00 │", printed["zoo"]) and "query @ gallery.T" in printed["the"]


@pytest.mark.parametrize("limit, reason", [("--time_limit_s=0", "stopped after 0 s"), ("--memory_limit_gb=-1", "GB")])
def test_what_takes_too_much_is_stopped_and_said_to_be(limit, reason, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    main(["retrieval", "--sizes", "market", "--rounds", "1", "--ways", "matmul", limit])
    assert reason in rows(capsys.readouterr().out)["the"]


def test_what_is_not_installed_is_named_with_its_command(monkeypatch, tmp_path):
    class Connection(list):
        send = list.append

    def prepare(features):
        raise ModuleNotFoundError("No module named 'oml'", name="oml")

    FEATURES.save(tmp_path / "features.npz")
    monkeypatch.setitem(ways.WAYS, "oml", ways.Way("OML", prepare, "", "pip install 'instance-zoo[bench]'"))
    sent = Connection()
    retrieval.serve(sent, "oml", tmp_path / "features.npz")
    assert sent == [retrieval.Stopped("not installed (oml): pip install 'instance-zoo[bench]'")]
    console = Console(width=200, record=True)
    console.print(retrieval.table("small", {"oml": sent[0]}))
    assert "instance-zoo[bench]" in console.export_text()


def test_an_unknown_topic_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["retreival"])
    assert "invalid choice: 'retreival'" in capsys.readouterr().err
