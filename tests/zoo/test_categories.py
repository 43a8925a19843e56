import subprocess
import sys

import pytest

from zoo.cards import list_models
from zoo.categories import CATEGORIES, Category, Crop, find_category, register_category
from zoo.world import Faces, Objects, Persons, Pets


def test_the_largest_fitting_box_with_its_margin_is_taken():
    found = [("cat", (10.0, 20.0, 40.0, 20.0)), ("cat", (0.0, 0.0, 5.0, 5.0)), ("sofa", (0.0, 0.0, 100.0, 90.0))]
    assert Crop(("cat",), margin=0.1).box(found, 100, 90) == (6.0, 18.0, 48.0, 24.0)
    assert Crop().box(found, 100, 90) == (0.0, 0.0, 100.0, 90.0), "any label: the sofa is the largest"


def test_a_margin_ends_at_the_border():
    assert Crop(("dog",), margin=0.5).box([("dog", (0.0, 50.0, 40.0, 40.0))], 100, 95) == (0.0, 30.0, 60.0, 65.0)


@pytest.mark.parametrize("found", [[], [("sofa", (0.0, 0.0, 10.0, 10.0))]])
def test_without_a_fitting_box_the_whole_image_is_taken(found):
    assert Crop(("cat",)).box(found, 64, 48) == (0.0, 0.0, 64.0, 48.0)


def test_a_fifth_category_is_one_entry(restored_categories):
    vehicle = Category("vehicle", "vehicle_resnet50.mine", Crop(("car", "truck")))
    register_category("vehicle", vehicle)
    assert find_category("vehicle") is vehicle and vehicle.world is None
    with pytest.raises(ValueError, match="there already"):
        register_category("vehicle", Category("lorry", ""))


def test_categories_name_their_experts_and_worlds():
    assert {category.expert for category in CATEGORIES.values()} <= set(list_models())
    worlds = {name: category.world() for name, category in CATEGORIES.items()}
    assert worlds == {"person": Persons(), "face": Faces(), "pet": Pets(), "object": Objects()}


def test_categories_are_light():
    code = "import sys, zoo.categories; print(*sorted({'numpy', 'torch', 'zoo.world'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'person'.*Known: person, face, pet, object"):
        find_category("persn")
