import numpy as np
import pytest

from zoo.data.attributes import with_attributes
from zoo.data.index import IdentityIndex


def index_of(root, **parts):
    return IdentityIndex.build(root, ["a/1.png", "a/2.png", "b/1.png"], ["a", "a", "b"], ["train"] * 3, **parts)


def test_columns_are_joined_by_path_whatever_the_order_of_the_rows(tmp_path):
    lines = ["path,colour,side", "b/1.png,red,left", "c/9.png,blue,left", "a/2.png,,right", 'a/1.png,"a, b",left']
    (tmp_path / "attributes.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    index = with_attributes(index_of(tmp_path))
    assert {name: column.tolist() for name, column in index.attributes.items()} == {
        "colour": ["a, b", "", "red"],
        "side": ["left", "right", "left"],
    }


def test_what_says_where_is_no_attribute_and_short_rows_are_unknown(tmp_path):
    lines = ["path,identity,family,coat,x,y,w,h", "a/1.png,a,000,red,1,2,3,4", "a/2.png,a", "b/1.png,b,001,,1,2,3,4"]
    (tmp_path / "attributes.csv").write_text("\n".join(lines))
    index = with_attributes(index_of(tmp_path))
    assert list(index.attributes) == ["coat"] and index.attributes["coat"].tolist() == ["red", "", ""]


def test_the_readers_own_columns_stay(tmp_path):
    (tmp_path / "attributes.csv").write_text("path,clothes,hat\na/1.png,1,x\na/2.png,2,y\nb/1.png,3,z\n")
    index = with_attributes(index_of(tmp_path, attributes={"clothes": np.array(["same", "changed", ""])}))
    assert index.attributes["clothes"].tolist() == ["same", "changed", ""]
    assert index.attributes["hat"].tolist() == ["x", "y", "z"]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    index = index_of(tmp_path)
    assert with_attributes(index) is index, "no table, no change"
    (tmp_path / "attributes.csv").write_text("path,colour\na/2.png,red\n")
    with pytest.raises(ValueError, match=r"no row for 2 images, such as a/1.png. Complete it"):
        with_attributes(index)
    (tmp_path / "attributes.csv").write_text("file,colour\na/2.png,red\n")
    with pytest.raises(ValueError, match="no column path"):
        with_attributes(index)
