from stages.encoding.data_warnings import caption_problems, say_problems, size_problems, too_long


def test_captions_that_are_cut_empty_or_the_same_are_named():
    captions = {"1.png": "a", "2.png": "b", "3.png": " ", "4.png": "a", "5.png": ""}
    assert caption_problems(captions, [3, 78, 2, 3, 2], 77) == [
        "1 caption has more than 77 tokens; the rest is cut off: 2.png (78)",
        "2 captions are empty: 3.png, 5.png",
        "1 caption is of several images, which cannot be told apart by it: 2 times “a”",
    ]
    assert caption_problems({"1.png": "a", "2.png": "b"}, [77, 77], 77) == []


def test_one_and_many_are_told_in_their_own_grammar():
    captions = {"1.png": "a", "2.png": "b", "3.png": " ", "4.png": "a", "5.png": "b"}
    assert caption_problems(captions, [78, 78, 2, 3, 3], 77) == [
        "2 captions have more than 77 tokens; the rest is cut off: 1.png (78), 2.png (78)",
        "1 caption is empty: 3.png",
        "2 captions are of several images, which cannot be told apart by them: 2 times “a”, 2 times “b”",
    ]


def test_a_prompt_is_told_as_a_caption_is():
    assert too_long("prompt", {"a cat": 4, "a dog …": 80}, 77) == [
        "1 prompt has more than 77 tokens; the rest is cut off: a dog … (80)"
    ]
    assert too_long("prompt", {"a": 77}, 77) == []


def test_many_are_counted():
    (problem,) = caption_problems({f"{number}.png": "" for number in range(9)}, [2] * 9, 77)
    assert problem == "9 captions are empty: 0.png, 1.png, 2.png, 3.png, 4.png and 4 more"


def test_enlarged_images_are_named():
    images = {"wide.png": (640, 300), "fits.png": (640, 384), "large.png": (4000, 3000)}
    targets = {"wide.png": (640, 384), "fits.png": (640, 384), "large.png": (576, 448)}
    (problem,) = size_problems(images, targets)
    assert problem == "1 image is smaller than it is trained at, and is enlarged, which blurs it: wide.png (640x300)"
    (problem,) = size_problems(images, dict.fromkeys(images, (4000, 3000)))
    assert problem.startswith("2 images are smaller than they are trained at, and are enlarged, which blurs them: wide.png")


def test_problems_are_warnings(capsys):
    say_problems(["one", "two"])
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"
