"""Whole images from a folder with a subfolder per class."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sae_outliers.data.images import ImageFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write 12 images in three classes; the width identifies the image."""
    for i in range(12):
        place = tmp_path / f"class{i % 3}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        mode = ("RGB", "L", "RGBA", "P")[i % 4]
        Image.new(mode, (10 + i, 7)).save(place / f"{i}.{'PNG' if i % 4 > 1 else 'jpeg'}")
    return tmp_path


def test_every_image_comes_once_and_whole_in_the_order_of_the_seed(folder: Path) -> None:
    source = ImageFolder(str(folder))
    widths = [image.width for image in source(0)]
    assert sorted(widths) == list(range(10, 22))
    assert widths == [image.width for image in source(0)] != [image.width for image in source(1)]
    assert {(image.mode, image.height) for image in source(0)} == {("RGB", 7)}


def test_an_image_that_cannot_be_read_is_named_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (folder / "class0" / "images" / "0.jpeg").read_bytes()
    (folder / "class1" / "cut.jpg").write_bytes(whole[:-80])
    (folder / "class1" / "text.png").write_text("no image")
    (folder / "class1" / "notes.txt").write_text("no image")
    with caplog.at_level(logging.WARNING):
        images = list(ImageFolder(str(folder))(0))
    assert len(images) == 12
    assert sorted(message.partition(" is skipped because it cannot be read: ")[0] for message in caplog.messages) == [
        str(folder / "class1" / "cut.jpg"), str(folder / "class1" / "text.png"),
    ]  # fmt: skip


def test_a_folder_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image file"):
        ImageFolder(str(tmp_path))(0)
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"no image below .* can be read"):
        ImageFolder(str(tmp_path))(0)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_sixteen_bit_images_keep_their_greys(bits: int, tmp_path: Path) -> None:
    grey = np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16).reshape(8, 8)
    for suffix in ("png", "tif"):
        Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    for image in ImageFolder(str(tmp_path))(0):
        assert np.abs(np.asarray(image)[..., 0] - grey / (2**bits - 1) * 255).max() <= 0.5 + 1e-9


def test_the_first_frame_of_a_gif_and_a_bitmap_are_read(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (9, 7), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    red.save(tmp_path / "a.BMP")
    assert [image.getpixel((0, 0)) for image in ImageFolder(str(tmp_path))(0)] == [(255, 0, 0)] * 2
