"""The image that `draw` is given, and the file that it writes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tokenprune as tp
from tokenprune.measure.pictures import check_aspect

from .support.drawing import check_panels, picture, stats_of
from .support.tiny_llava import IMAGE, make_batch
from .support.wrapping import wrapped_llava


@pytest.fixture(scope="module")
def shared():
    return wrapped_llava(tp.ATPConfig(layers=(1, 3), target_tokens=18.0, start_spatial=1.0))


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (400, 330), (1, 99)])
def test_the_wrong_aspect_is_refused(shared, tmp_path, size):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    message = rf"picture of {size[0]} x {size[1]} pixels .* on a grid of 6 x 6.*Crop or pad it"
    with pytest.raises(ValueError, match=message):
        tp.draw(picture(*size), stats, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
def test_sides_that_a_processor_rounds_to_whole_tokens_are_right(rows, cols, data):
    """To the nearest, or both down, or both up, as Qwen2-VL's does to meet its bounds."""
    low, high = data.draw(st.sampled_from([(-14, 13), (0, 27), (-27, 0)]))
    side = st.integers(low, high)
    height, width = (max(1, 28 * n + data.draw(side)) for n in (rows, cols))
    check_aspect(Image.new("L", (width, height)), rows, cols)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")]
)
def test_the_ending_of_the_path_says_the_format(shared, tmp_path, name, kind):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    with Image.open(tp.draw(picture(24, 24), stats, tmp_path / name)) as written:
        assert written.format == kind


@pytest.mark.parametrize("name", ["a", "a.gif", "a.txt", ".png"])
def test_another_ending_is_refused(shared, tmp_path, name):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    with pytest.raises(ValueError, match=r"^path=.*ends in one of \.png, \.jpg, \.jpeg\.$"):
        tp.draw(picture(24, 24), stats, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_an_image(shared, tmp_path, kind):
    """Turned upright as its EXIF data say."""
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    image = picture(24, 24)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by 90° clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "image.png", exif=turned)
    tp.draw(kind(tmp_path / "image.png"), stats, tmp_path / "kept.png")
    check_panels(tmp_path / "kept.png", image, stats)


def test_a_path_without_an_image_is_an_oserror(shared, tmp_path):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    with pytest.raises(FileNotFoundError, match="absent"):
        tp.draw(tmp_path / "absent.png", stats, tmp_path / "kept.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(OSError, match="cannot identify"):
        tp.draw(tmp_path / "text.png", stats, tmp_path / "kept.png")
    assert not (tmp_path / "kept.png").exists()
