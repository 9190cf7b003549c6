import pytest

from stages.pipeline.tables import read_table, write_table


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", "\r", "a\0b", 'a,"b"', "", " a ", "\u2028", "é"])
def test_any_text_of_a_cell_comes_back(tmp_path, text):
    write_table(tmp_path / "t.csv", ("prompt", "seed"), [(text, 1), ("next", 2)])
    rows = [{"prompt": text, "seed": "1"}, {"prompt": "next", "seed": "2"}]
    assert read_table(tmp_path / "t.csv", ("prompt",)) == rows


def test_lines_end_as_they_do_everywhere_and_plain_text_has_no_quotes(tmp_path):
    write_table(tmp_path / "t.csv", ("a", "b"), [("x", 0.5), ("y, z", None)])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\nx,0.5\n"y, z",\n'


def test_a_table_of_another_encoding_is_refused_and_a_byte_order_mark_is_not(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_table(path, ["a"])
    path.write_bytes("a\né\n".encode("utf-8-sig"))
    assert read_table(path, ["a"]) == [{"a": "é"}]
