"""`aigc inspect`: faults that were put into a data set are found, and nothing else."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from aigc_jax import cli, inspecting
from aigc_jax.writers import save_png


def photo(seed, size=48, channels=3):
    """(H, W, C) uint8: blobs with fine grain."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size, channels)), (4, 4, 0))
    image = 120 + 50 * smooth / smooth.std() + 12 * rng.normal(size=(size, size, channels))
    return np.uint8(np.clip(image, 0, 255))


@pytest.fixture
def folder(tmp_path):
    """20 sound images in two classes, and what each test adds."""
    for i in range(20):
        save_png(photo(i), tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "data"


def look(folder, tmp_path, **options):
    """The findings by their lines, and the report."""
    lines = inspecting.inspect(f"folder:{folder}", out=tmp_path / "out", image_size=32, **options)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["line"] for each in report["findings"]] == lines
    with Image.open(tmp_path / "out" / "page.png") as page:
        assert page.width > 500
    return {each["line"]: each["images"] for each in report["findings"]}, report


def test_a_sound_folder_has_no_faults(folder, tmp_path):
    found, report = look(folder, tmp_path)
    assert list(found)[:2] == [f"20 images, colour, in folder:{folder}", "sizes: 48x48"]
    told = "\n".join(found)
    assert "2 classes of 10 images each" in told
    for fault in ("constant", "nearly blank", "blurred", "exact duplicates", "near-duplicates"):
        assert f"{fault}: none" in told
    assert not any(found.values())
    every = np.stack([photo(i) for i in range(20)])
    means = every.mean((0, 1, 2))
    np.testing.assert_allclose(report["statistics"]["mean"], means, atol=0.5)


def test_faults_are_found_and_named(folder, tmp_path):
    save_png(np.full((48, 48, 3), 7, np.uint8), folder / "a" / "flat.png")
    faint = np.uint8(100 + np.arange(48)[:, None, None] % 24 // 12 * np.full((48, 48, 3), 8))
    save_png(faint, folder / "a" / "faint.png")
    blurred = ndimage.gaussian_filter(photo(77).astype(float), (4, 4, 0))
    stretched = (blurred - blurred.mean()) * 40 / blurred.std() + 120
    save_png(np.uint8(np.clip(stretched, 0, 255)), folder / "b" / "blurred.png")
    save_png(photo(3), folder / "a" / "again.png")
    Image.fromarray(photo(4)).save(folder / "a" / "recompressed.jpg", quality=85)
    (folder / "a" / "torn.png").write_bytes((folder / "a" / "0.png").read_bytes()[:60])
    save_png(photo(90, size=64), folder / "a" / "large.png")
    grey = np.repeat(photo(91, channels=1), 3, -1)
    save_png(grey, folder / "a" / "grey.png")
    found, _ = look(folder, tmp_path)
    by_name = {line.split(":")[0]: images for line, images in found.items()}
    assert by_name["constant"] == [["a/flat.png"]]
    assert by_name["nearly blank"] == [["a/faint.png"]]
    assert by_name["blurred"] == [["b/blurred.png"]]
    assert [sorted(pair) for pair in by_name["exact duplicates"]] == [["a/again.png", "b/3.png"]]
    near = [sorted(pair) for pair in by_name["near-duplicates"]]
    assert near == [["a/4.png", "a/recompressed.jpg"]]
    told = "\n".join(found)
    assert "torn.png" in told and "1 files can't be read" in told
    assert "2 sizes, most often 48x48 (26)" in told
    [lonely] = [images for line, images in found.items() if "grey though" in line]
    assert ["a/grey.png"] in lonely


def test_rare_classes(folder, tmp_path):
    for i in range(4):
        save_png(photo(200 + i), folder / "c" / f"{i}.png")
    found, _ = look(folder, tmp_path)
    assert "rare classes, under half of the median: c" in found


def test_what_two_sets_share(folder, tmp_path):
    other = tmp_path / "test"
    for i in range(5):
        save_png(photo(300 + i), other / f"{i}.png")
    save_png(photo(6), other / "same.png")
    Image.fromarray(photo(8)).save(other / "close.jpg", quality=85)
    found, _ = look(folder, tmp_path, against=f"folder:{other}")
    line = f"shared with folder:{other}: 1 exactly, 2 of its 7 images nearly"
    pairs = {tuple(pair) for pair in found[line]}
    assert pairs == {("a/6.png", "same.png"), ("a/8.png", "close.jpg")}


def test_near_pairs_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(inspecting, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    left = rng.normal(0, 40, (20, 256)).astype(np.float32)
    right = np.concatenate([left[::3] + rng.normal(0, 3, (7, 256)), left[:2] + 8]).astype("f4")
    apart = np.sqrt(((left[:, None] - right[None]) ** 2).mean(-1))
    assert set(inspecting._near(left, right)) == set(map(tuple, np.argwhere(apart <= 4).tolist()))


def test_sources_without_files(tmp_path):
    lines = inspecting.inspect("digits", "shapes", tmp_path / "out", num=100)
    assert lines[0].startswith("100 images (of ") and "grey, in digits" in lines[0]
    assert any(
        "shared with shapes" in line and "none exactly, 0 of its 100" in line for line in lines
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data=folder:EMPTY"], "--data EMPTY"),
        (["--data=nonsense:x"], "nonsense"),
        (["--data=digits", "--num=0"], "--num"),
        (["--data=digits", "--out=TAKEN"], "TAKEN"),
    ],
)
def test_mistakes_take_a_line(argv, told, tmp_path, capsys):
    places = {"EMPTY": tmp_path / "empty", "TAKEN": tmp_path / "taken"}
    places["EMPTY"].mkdir()
    save_png(photo(0), places["TAKEN"] / "x.png")
    for word, path in places.items():
        argv = [arg.replace(word, str(path)) for arg in argv]
        told = told.replace(word, str(path))
    argv += [] if any("--out" in arg for arg in argv) else [f"--out={tmp_path / 'out'}"]
    assert cli.main(["inspect", *argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error and not (tmp_path / "out").exists()
