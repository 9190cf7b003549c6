import base64
import io
import re
from xml.etree import ElementTree

from PIL import Image

from stages.report.config import GridStyle
from stages.report.grids import HEADING, MOST_LARGER, Column, Grid, Row, Strip, draw_grid, mosaic_columns, svg_grid


def style(image_size, resampling):
    return GridStyle(image_size=image_size, resampling=resampling, font=None)


def colour_files(folder, colours):
    files = []
    for index, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{index}.png")
        files.append(folder / f"{index}.png")
    return files


def colours_of(image):
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def test_every_picture_is_in_the_grid(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    files = colour_files(tmp_path, colours)
    rows = [Row("one", [files[0:1], files[1:2]]), Row("two", [files[2:3], files[3:4]])]
    columns = [Column("a", "b", "#123456"), Column("c", "d", "#654321")]
    grid = draw_grid(Grid("title", columns, rows, Strip("strip", files[4:])), style(32, "nearest"))
    assert set(colours) | {(0x12, 0x34, 0x56), (0x65, 0x43, 0x21)} <= colours_of(grid)


def test_columns_and_rows_keep_their_places(tmp_path):
    red, green, blue = files = colour_files(tmp_path, [(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    assert len(files) == 3
    rows = [Row("r", [[red], [green]]), Row("s", [[blue], []])]
    grid = draw_grid(Grid("t", [Column("a", "", "#fff")] * 2, rows), style(32, "nearest"))
    centres = {}
    for x in range(grid.width):
        for y in range(grid.height):
            colour = grid.getpixel((x, y))
            if colour in {(250, 0, 0), (0, 250, 0), (0, 0, 250)}:
                centres.setdefault(colour, []).append((x, y))
    red_box, green_box, blue_box = (min(centres[colour]) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
    assert red_box[0] < green_box[0]
    assert red_box[1] < blue_box[1]
    assert abs(red_box[0] - blue_box[0]) <= 1


def test_same_input_same_bytes(tmp_path):
    files = colour_files(tmp_path, [(1, 2, 3)])
    grid = Grid("t", [Column("a", "b", "#000")], [Row("r", [files])])
    grids = [draw_grid(grid, style(20, "lanczos")) for _ in range(2)]
    assert grids[0].tobytes() == grids[1].tobytes()


def test_mosaics_are_square():
    assert [mosaic_columns(count) for count in (1, 2, 4, 5, 9)] == [1, 2, 2, 3, 3]


def written(grid):
    """Columns of pixels in which the grid's picture holds ink."""
    image = grid.convert("L")
    return [x for x in range(image.width) if image.crop((x, 0, x + 1, image.height)).getextrema()[0] < 100]


LONG = "stable-diffusion-v1-5-inpainting-fp16-ema-pruned_the_very_long_one"


def test_long_headings_stay_on_the_page(tmp_path):
    files = colour_files(tmp_path, [(255, 255, 255)])
    grid = draw_grid(Grid("t" * 200, [Column("a", "", "#ffffff")], [Row("r" * 200, [files])]), style(64, "nearest"))
    assert min(written(grid)) >= 38
    assert max(written(grid)) < grid.width - 38


def test_long_names_stay_in_their_columns(tmp_path):
    files = colour_files(tmp_path, [(255, 255, 255)])
    columns = [Column(LONG, LONG.upper(), "#ffffff"), Column("", "", "#ffffff")]
    grid = draw_grid(Grid("", columns, [Row("", [files, files])]), style(64, "nearest"))
    assert max(written(grid)) < grid.width / 2


def test_small_pictures_do_not_cut_the_words_of_headings(tmp_path):
    files = colour_files(tmp_path, [(9, 9, 9)])
    grid = draw_grid(Grid("t", [Column("DreamBooth LoRA", "rank 4", "#000")], [Row("r", [files])]), style(24, "nearest"))
    assert grid.width > 2 * 40 + 110


def test_pictures_keep_their_shape(tmp_path):
    """A wide picture is cropped to its middle, as training takes it, not squeezed."""
    wide = Image.new("RGB", (90, 30), (250, 0, 0))
    wide.paste((0, 0, 250), (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    grid = draw_grid(
        Grid("t", [Column("a", "", "#fff")], [Row("r", [[]])], Strip("s", [tmp_path / "wide.png"])), style(30, "nearest")
    )
    assert (0, 0, 250) in colours_of(grid)
    assert (250, 0, 0) not in colours_of(grid)


def test_letters_beyond_ascii_are_drawn(tmp_path):
    """Pillow's own font draws the same box for all of them."""
    files = colour_files(tmp_path, [(9, 9, 9)])
    drawn = [draw_grid(Grid(title, [Column("a", "", "#000")], [Row("r", [files])]), style(64, "nearest")) for title in "éαЖ"]
    assert len({grid.tobytes() for grid in drawn}) == 3


SVG = "{http://www.w3.org/2000/svg}"


def test_the_same_grid_as_svg_keeps_its_letters_as_text_in_any_script(tmp_path):
    red, green = colour_files(tmp_path, [(250, 0, 0), (0, 250, 0)])
    rows = [Row("猫, شعر أحمر <b>&", [[red], [green, red]])]
    columns = [Column("a", "b", "#123456"), Column("c", "d", "#654321")]
    grid = Grid("title", columns, rows, Strip("strip", [green]))
    drawing = svg_grid(grid, style(32, "nearest"))
    root = ElementTree.fromstring(drawing)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert (texts[:5], texts[-1]) == (["title", "a", "b", "c", "d"], "strip")
    assert " ".join(map(str, texts[5:-1])) == "猫, شعر أحمر <b>&"
    assert len(list(root.iter(f"{SVG}image"))) == 2, "each picture stands in it once"
    assert len(list(root.iter(f"{SVG}use"))) == 4
    (first, _) = root.iter(f"{SVG}image")
    with Image.open(io.BytesIO(base64.b64decode(first.attrib["href"].partition(",")[2]))) as image:
        assert image.convert("RGB").getpixel((16, 16)) == (250, 0, 0)
    width, height = (int(root.attrib[name]) for name in ("width", "height"))
    assert (width, height) == draw_grid(grid, style(32, "nearest")).size
    assert drawing == svg_grid(grid, style(32, "nearest"))
    assert not re.search(r"https?://(?!www\.w3\.org)", drawing)


def test_letters_grow_with_a_wide_grid_so_that_it_can_be_read_as_a_whole(tmp_path):
    (file,) = colour_files(tmp_path, [(1, 2, 3)])
    sizes = {}
    for columns in (2, 6, 40):
        grid = Grid("t", [Column("rank 8", "LoRA", "#000")] * columns, [Row("alpha 0.5", [[file] * 4] * columns)])
        found = ElementTree.fromstring(svg_grid(grid, style(256, "lanczos")))
        sizes[columns] = max(int(text.attrib["font-size"]) for text in found.iter(f"{SVG}text") if text.text == "alpha 0.5")
        shown = sizes[columns] * 1600 / int(found.attrib["width"])
        assert shown >= 10 or columns == 40, "pixels of a letter where the grid is as wide as a screen"
    assert sizes[2] == HEADING
    assert sizes[40] == round(HEADING * MOST_LARGER)
