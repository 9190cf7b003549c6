from PIL import Image, ImageFont

from stages.comparison.grids import Column, Row, Strip, Style, draw_grid, mosaic_columns, wrap


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
    grid = draw_grid("title", columns, rows, Style(32, "nearest"), Strip("strip", files[4:]))
    assert set(colours) | {(0x12, 0x34, 0x56), (0x65, 0x43, 0x21)} <= colours_of(grid)


def test_columns_and_rows_keep_their_places(tmp_path):
    red, green, blue = files = colour_files(tmp_path, [(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    assert len(files) == 3
    grid = draw_grid(
        "t", [Column("a", "", "#fff")] * 2, [Row("r", [[red], [green]]), Row("s", [[blue], []])], Style(32, "nearest")
    )
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
    grids = [draw_grid("t", [Column("a", "b", "#000")], [Row("r", [files])], Style(20, "lanczos")) for _ in range(2)]
    assert grids[0].tobytes() == grids[1].tobytes()


def test_mosaics_are_square():
    assert [mosaic_columns(count) for count in (1, 2, 4, 5, 9)] == [1, 2, 2, 3, 3]


def test_wrap_keeps_every_word():
    font = ImageFont.load_default(16)
    text = "a rather long prompt, with several phrases, green background"
    lines = wrap(text, font, 120)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert all(font.getlength(line) <= 120 for line in lines)
    assert wrap("incomprehensibilities", font, 10) == ["incomprehensibilities"]
