import pytest

from stages.pipeline.wording import counted


@pytest.mark.parametrize(("count", "said"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1120, "1,120 images")])
def test_one_is_told_apart_from_many(count, said):
    assert counted(count, "image") == said
