"""Sentences: they are true of the boxes and attributes, and there are none about what is not clear."""

import pytest

from zoo.world.render.scenery import BACKGROUNDS
from zoo.world.sentences import (
    Observation,
    before,
    by_looks,
    by_place,
    captions,
    left_of,
    phrase,
    place,
    sentences,
    vocabulary,
    words_of,
)

SIZE = 100


def pet(kind: str = "cat", x: int = 10, distance: float = 7.0, y: int = 40, w: int = 20, **words: str) -> Observation:
    return Observation(kind, {"species": kind, **words}, (x, y, w, 20), distance)


def thing(kind: str = "mug", x: int = 60, distance: float = 7.0, y: int = 40, **words: str) -> Observation:
    return Observation(kind, {"category": kind, **words}, (x, y, 20, 20), distance)


def person(x: int = 40, **words: str) -> Observation:
    return Observation("person", {"species": "person", **words}, (x, 10, 20, 60), 7.0)


GREY = {"coat": "grey", "pattern": "striped"}
GINGER = {"coat": "ginger", "pattern": "striped"}
STEEL = {"material": "metal", "colour": "grey", "pattern": "plain"}
RED = {"material": "ceramic", "colour": "red", "pattern": "dots"}


def texts(scene: list[Observation]) -> list[str]:
    return [sentence.text for sentence in sentences(scene, SIZE)]


# What instances look like.


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (pet(**GREY), "striped grey cat"),
        (pet("dog", coat="black", pattern="pied"), "black and white dog"),
        (pet("fox", coat="ginger", pattern="tricolour", collar="red"), "tricolour fox with a red collar"),
        (pet("rabbit"), "rabbit"),
        (thing(**STEEL), "steel mug"),
        (thing(**STEEL, accent="red"), "red and steel mug"),
        (thing("kettle", **RED), "dotted red ceramic kettle"),
        (thing("coffee_maker", material="plastic", colour="orange", pattern="emblem"),
         "orange plastic coffee maker with an emblem"),
        (thing("bicycle", material="plastic", colour="pink", pattern="plain"), "pink bicycle"),
        (thing("sofa"), "sofa"),
        (person(top="tee", top_colour="orange", bottom="skirt", bottom_colour="navy"),
         "person in an orange T-shirt and a navy skirt"),
        (person(top="jacket", top_pattern="check", bottom="trousers", bottom_colour="blue", hat="cap",
                bag="shoulder_bag"), "person in a checked jacket, blue trousers and a cap with a shoulder bag"),
        (person(), "person"),
    ],
)  # fmt: skip
def test_phrases_are_english_and_hold_all_that_is_seen(seen: Observation, words: str) -> None:
    assert phrase(seen) == words


# Where they are.


def test_left_needs_a_distance_and_boxes_apart() -> None:
    assert left_of(pet(x=10), pet(x=40), SIZE) and not left_of(pet(x=40), pet(x=10), SIZE)
    assert not left_of(pet(x=10), pet(x=19), SIZE)  # hardly apart
    assert not left_of(pet(x=10, w=60), pet(x=40, w=60), SIZE)  # half of one over the other
    assert left_of(pet(x=10), pet(x=25), SIZE)  # a quarter over the other
    assert not left_of(pet(x=10), pet(x=24), SIZE)


def test_in_front_needs_depth_overlap_and_a_lower_edge() -> None:
    near, far = pet(x=40, distance=6.5, y=50), pet(x=45, distance=7.2, y=30)
    assert before(near, far) and not before(far, near)
    assert not before(pet(x=40, distance=6.9, y=50), far)  # hardly nearer
    assert not before(pet(x=5, distance=6.5, y=50), far)  # beside it
    assert not before(pet(x=40, distance=6.5, y=20), far)  # its lower edge is the higher one


def test_places_alone_and_among_others() -> None:
    assert [place(0, [pet(x=x)], SIZE) for x in (10, 32, 40, 45, 60)] == [
        "on the left", "", "in the middle", "", "on the right",
    ]  # fmt: skip
    three = [pet(x=5), pet(x=40), pet(x=75)]
    assert [place(k, three, SIZE) for k in range(3)] == ["on the left", "in the middle", "on the right"]
    both_right = [pet(x=56), pet(x=78)]  # the left one of them is no cat on the left of the picture
    assert [place(k, both_right, SIZE) for k in range(2)] == ["", "on the right"]
    behind = [pet(x=40, distance=6, y=50), pet(x=44, distance=7.5, y=30)]
    assert [place(k, behind, SIZE) for k in range(2)] == ["in front", "at the back"]
    assert [place(k, [pet(x=40), pet(x=45)], SIZE) for k in range(2)] == ["", ""]


# Which words distinguish one from the others.


def test_the_shortest_words_that_fit_one_alone() -> None:
    assert by_looks(0, [pet(**GREY), thing(**RED)]) == ("the cat", ())
    assert by_looks(0, [pet(**GREY), pet(**GINGER)]) == ("the striped grey cat", ("coat",))
    assert by_looks(0, [pet(**GREY), pet(**GREY)]) is None
    assert by_looks(0, [pet(**GREY), pet()]) is None  # whose coat is not seen and may be the same
    assert by_looks(0, [pet(**GREY, collar="red"), pet(**GREY)]) == ("the cat with a red collar", ("collar",))
    assert by_looks(1, [pet(**GREY, collar="red"), pet(**GREY)]) is None


def test_alike_colours_distinguish_nobody() -> None:
    plastic = {"material": "plastic", "colour": "grey", "pattern": "plain"}
    looks = by_looks(0, [thing(**STEEL), thing(**plastic)])
    assert looks is None  # steel is grey, too
    assert by_looks(0, [thing(**RED, accent="blue"), thing(material="ceramic", colour="blue", pattern="dots")]) is None
    coat = person(top="jacket", top_colour="red"), person(top="hoodie", top_colour="red")
    assert by_looks(0, coat) is None
    assert by_looks(0, (coat[0], person(top="jacket"))) is None
    assert by_looks(0, (coat[0], person(top="jacket", top_colour="navy"))) == ("the person in a red jacket", ("top",))


def test_three_of_a_kind_need_words_that_differ_from_both() -> None:
    scene = [
        thing(x=5, material="ceramic", colour="red", pattern="dots"),
        thing(x=40, material="ceramic", colour="red", pattern="checks"),
        thing(x=75, material="ceramic", colour="blue", pattern="dots"),
    ]
    assert by_looks(0, scene) is not None and by_looks(0, scene) == ("the dotted red mug", ("pattern", "colour"))
    assert by_looks(1, scene) == ("the checked mug", ("pattern",))
    assert by_looks(2, scene) == ("the blue mug", ("colour",))
    assert [by_place(k, scene, SIZE) for k in range(3)] == [
        "the mug on the left", "the mug in the middle", "the mug on the right",
    ]  # fmt: skip


# Captions and sentences.


def test_a_pair_side_by_side() -> None:
    scene = [pet(x=10, pose="sitting", facing="camera", **GREY), thing(x=60, **STEEL)]
    assert captions(scene, "lawn", SIZE) == (
        "a cat and a mug on a lawn",
        "a striped grey cat and a steel mug on a lawn",
        "a striped grey cat to the left of a steel mug",
        "a striped grey cat to the left of a steel mug on a lawn",
        "a steel mug to the right of a striped grey cat",
        "a steel mug to the right of a striped grey cat on a lawn",
    )
    assert texts(scene) == [
        "on the left is a striped grey cat",
        "the cat is sitting",
        "the cat is facing the camera",
        "the cat has striped grey fur",
        "on the right is a steel mug",
        "the mug is plain",
        "the mug is made of steel",
        "the cat is to the left of the mug",
        "the mug is to the right of the cat",
    ]
    about = {sentence.text: sentence.about for sentence in sentences(scene, SIZE)}
    assert about["the mug is plain"] == (1,) and about["the mug is to the right of the cat"] == (1, 0)


def test_look_alikes_are_distinguished_by_place_only() -> None:
    scene = [pet(x=10, pose="sitting", **GREY), pet(x=60, pose="lying", **GREY)]
    assert "two cats" in captions(scene, "abstract", SIZE)
    assert "a striped grey cat to the left of another striped grey cat" in captions(scene, "abstract", SIZE)
    assert texts(scene) == [
        "on the left is a striped grey cat",
        "the cat on the left is sitting",
        "the cat on the left has striped grey fur",
        "on the right is a striped grey cat",
        "the cat on the right is lying down",
        "the cat on the right has striped grey fur",
    ]


def test_there_is_no_sentence_about_what_no_words_distinguish() -> None:
    assert texts([pet(x=40, pose="sitting", **GREY), pet(x=45, pose="lying", **GREY)]) == []


def test_depth_is_stated_both_ways() -> None:
    scene = [pet("fox", x=40, distance=6.0, y=50), thing("sofa", x=42, distance=7.5, y=30)]
    assert "the fox is in front of the sofa" in texts(scene) and "the sofa is behind the fox" in texts(scene)
    assert "a sofa behind a fox in the snow" in captions(scene, "snow", SIZE)
    assert not any("left" in text or "right" in text for text in texts(scene))


def test_four_in_a_row() -> None:
    scene = [pet(x=0, w=15), pet("fox", x=25, w=15), pet(x=50, w=15), pet("fox", x=80, w=15)]
    found = captions(scene, "room", SIZE)
    assert found[0] == "two cats and two foxes in a room"
    assert "from left to right a cat, a fox, a cat and a fox" in found
    crowded = [*scene[:3], pet("fox", x=55, w=15)]
    assert not any("from left to right" in text for text in captions(crowded, "room", SIZE))


def test_one_alone_is_described_by_what_it_does() -> None:
    found = captions([pet(pose="lying", facing="left", **GREY)], "carpet", SIZE)
    assert (
        "a striped grey cat lying down on a carpet" in found and "a striped grey cat facing left on a carpet" in found
    )


def test_every_place_has_words_and_every_word_is_known() -> None:
    known = set(vocabulary())
    crowd = [
        pet(x=0, pose="walking", facing="away", collar="green", coat="cream", pattern="masked"),
        thing(x=30, material="leather", colour="teal", accent="purple", pattern="checks"),
        person(x=60, top="hoodie", top_colour="beige", bottom="shorts", bottom_colour="navy", hat="beanie"),
        person(x=62, bag="backpack"),
    ]
    for background in BACKGROUNDS:
        for scene in (crowd, crowd[:1], crowd[1:3]):
            for text in (*captions(scene, background, SIZE), *texts(scene)):
                assert set(words_of(text)) <= known, text
    assert len(known) < 160 and not any(set(word) & set(",.{}") for word in known)
