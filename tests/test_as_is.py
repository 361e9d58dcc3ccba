"""Files of every mode at their own size."""

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import as_is


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(path, image, **how):
    image.save(path, **how)
    return as_is.read(path)


def test_grey_and_colour(tmp_path):
    for shape in ((7, 12), (7, 12, 3)):
        pixels, kinds = saved(tmp_path / "a.png", Image.fromarray(noise(*shape)))
        np.testing.assert_array_equal(pixels, noise(*shape).reshape(7, 12, -1))
        assert pixels.dtype == np.uint8 and kinds == []


def test_sixteen_bits_are_scaled(tmp_path):
    wide = noise(7, 12, dtype=np.uint16)
    pixels, kinds = saved(tmp_path / "a.png", Image.fromarray(wide))
    np.testing.assert_array_equal(pixels[..., 0], np.round(wide / 257))
    assert kinds == [as_is.SIXTEEN]


@pytest.mark.parametrize("bands", [2, 4])
def test_transparent_is_white(tmp_path, bands):
    image = noise(7, 12, bands)
    pixels, kinds = saved(tmp_path / "a.png", Image.fromarray(image))
    alpha = image[..., -1:] / 255
    truth = alpha * image[..., :-1] + (1 - alpha) * 255
    assert pixels.shape == (7, 12, bands - 1) and kinds == [as_is.CLEAR]
    assert np.abs(pixels - truth).max() <= 1


def test_a_palette_with_a_clear_colour(tmp_path):
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    pixels, kinds = saved(tmp_path / "a.png", image, transparency=2)
    truth = [[[255, 0, 0], [0, 255, 0]], [[255, 255, 255], [9, 9, 9]]]
    np.testing.assert_array_equal(pixels, truth)
    assert kinds == [as_is.CLEAR]


def test_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _ = saved(tmp_path / "a.png", Image.fromarray(noise(7, 12)), exif=exif)
    np.testing.assert_array_equal(pixels[..., 0], np.rot90(noise(7, 12), -1))


def test_black_and_white(tmp_path):
    pixels, kinds = saved(tmp_path / "a.png", Image.fromarray(noise(7, 12) > 127))
    np.testing.assert_array_equal(pixels[..., 0], 255 * (noise(7, 12) > 127))
    assert kinds == []


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(OSError):
        as_is.read(tmp_path / "a.png")
