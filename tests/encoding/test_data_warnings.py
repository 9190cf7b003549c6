from stages.encoding.data_warnings import caption_problems, say_problems, size_problems


def test_captions_that_are_cut_empty_or_the_same_are_named():
    captions = {"1.png": "a", "2.png": "b", "3.png": " ", "4.png": "a", "5.png": ""}
    assert caption_problems(captions, [3, 78, 2, 3, 2], 77) == [
        "1 captions have more than 77 tokens; the rest is cut off: 2.png (78)",
        "2 captions are empty: 3.png, 5.png",
        "1 captions are of several images, which cannot be told apart by them: 2 times “a”",
    ]
    assert caption_problems({"1.png": "a", "2.png": "b"}, [77, 77], 77) == []


def test_many_are_counted():
    (problem,) = caption_problems({f"{number}.png": "" for number in range(9)}, [2] * 9, 77)
    assert problem == "9 captions are empty: 0.png, 1.png, 2.png, 3.png, 4.png and 4 more"


def test_enlarged_images_are_named():
    images = {"wide.png": (640, 300), "fits.png": (640, 384), "large.png": (4000, 3000)}
    targets = {"wide.png": (640, 384), "fits.png": (640, 384), "large.png": (576, 448)}
    (problem,) = size_problems(images, targets)
    assert problem.endswith("enlarged, which blurs them: wide.png (640x300)")


def test_problems_are_warnings(capsys):
    say_problems(["one", "two"])
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"
