"""Tables of names and colours as other tools write them."""

import pytest

from diffseg_jax.annotations.class_tables import labelmap, read_colour_table, voc_colours
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

NAMES, COLOURS = ("sky", "road 2"), ((70, 130, 180), (128, 64, 128))


@pytest.mark.parametrize(
    "text",
    [
        "70,130,180,sky\n128,64,128,road 2\n",
        "name,r,g,b\nsky,70,130,180\nroad 2,128,64,128\n",
        "# label:color_rgb:parts:actions\nsky:70,130,180::\nroad 2:128,64,128::\n",
        "70 130 180\tsky\n128 64 128\troad 2\n\n",
        '"sky"; 70; 130; 180\r\n"road 2"; 128; 64; 128\r\n',
        "\ufeffsky: 70, 130, 180\nroad 2: 128, 64, 128",
    ],
)
def test_a_table_is_read_in_every_usual_form(tmp_path, text):
    file = tmp_path / "labelmap.txt"
    file.write_text(text, encoding="utf-8")
    table = read_colour_table(file)
    assert (table.names, table.palette) == (NAMES, COLOURS)


def test_a_written_labelmap_is_read_again(tmp_path):
    file = tmp_path / "labelmap.txt"
    file.write_text(labelmap(NAMES, COLOURS))
    assert read_colour_table(file).names == NAMES


def test_a_classes_json_is_a_table_if_it_has_a_palette(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text('{"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]}')
    assert read_colour_table(file).palette == ((1, 2, 3), (4, 5, 6))
    file.write_text('{"names": ["a", "b"]}')
    with pytest.raises(UserError, match='has no "palette"'):
        read_colour_table(file)


@pytest.mark.parametrize(
    "text, part",
    [
        ("1,2,3,a\n4,5,a\n", "line 2: '4,5,a' is no class"),
        ("1,2,300,a\n", "line 1"),
        ("1,2,3,a\n1,2,3,b\n", "the colour .* is repeated"),
        ("1,2,3,a\n4,5,6,a\n", "the name 'a' is repeated"),
        ("\n# nothing\n", "names no class"),
    ],
)
def test_a_line_that_is_no_class_is_named(tmp_path, text, part):
    (tmp_path / "colors.txt").write_text(text)
    with pytest.raises(UserError, match=part):
        read_colour_table(tmp_path / "colors.txt")


def test_the_palette_of_voc_is_the_published_one():
    """Background black, aeroplane, ..., person, ..., tvmonitor, and 255, the border."""
    colours = voc_colours(256)
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (colours[15], colours[20]) == ((192, 128, 128), (0, 64, 128))
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256


@pytest.mark.parametrize("name", ["#road", '"road"', "a:1,2,3"])
def test_a_name_that_a_line_cannot_hold_is_refused(name):
    """It would be a comment, or another name or colour, when it is read."""
    with pytest.raises(UserError, match="cannot be a line of labelmap.txt"):
        labelmap([name], [(4, 5, 6)])
