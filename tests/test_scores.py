"""Score records, and the table that compares runs and keeps protocols apart."""

import json

import pytest

from aigc_jax import cli, scores
from aigc_jax.errors import UserError

TF1 = {
    "extractor": "inception-2015-12-05", "protocol": "tf1", "sha256": "6726825d0af5", "n_real": 500,
    "n_fake": 500, "real": "tfds:cifar10/test", "precision": "highest",
}  # fmt: skip


def kid(value):
    return {"value": value, "std": 0.1, "interval": [value - 0.01, value + 0.01]}


def write(workdir, *fids, provenance=TF1, start=1):
    workdir.mkdir(exist_ok=True)
    for step, fid in enumerate(fids, start):
        found = {"fid": {"value": fid}, "kid": kid(fid / 100), "is": {"value": fid / 10}}
        scores.append(workdir, step * 1000, step * 64_000, found, provenance | {"seed": step})


def test_a_record_holds_what_it_took(tmp_path):
    write(tmp_path / "a", 9.0)
    (record,) = scores.read(tmp_path / "a")
    assert (record["step"], record["images_seen"]) == (1000, 64_000)
    assert record["scores"]["fid"] == {"value": 9.0}
    assert record["provenance"] == TF1 | {"seed": 1}
    assert record["time"].endswith("+00:00")


def test_a_torn_line_is_left_out(tmp_path):
    write(tmp_path / "a", 9.0, 8.0)
    with (tmp_path / "a" / scores.SCORES).open("a") as file:
        file.write('{"step": 3000, "sco')
    assert [record["step"] for record in scores.read(tmp_path / "a")] == [1000, 2000]


def cells(table):
    heads, _, *rows = [[x.strip() for x in line.strip("|").split("|")] for line in table]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_last_and_best(tmp_path):
    """A run that collapsed after its best, by metrics of either direction."""
    write(tmp_path / "a", 20.0, 5.0, 40.0)
    write(tmp_path / "b", 7.0)
    lines = scores.compare([tmp_path / "a", tmp_path / "b"]).splitlines()
    assert lines[0].startswith("Measured by inception-2015-12-05 tf1")
    a, b = cells(lines[2:])
    assert a["last step"] == "3000" and a["images seen"] == "192,000"
    assert a["fid last"] == "40" and a["fid best (step)"] == "5 (2000)"
    assert a["is best (step)"] == "4 (3000)"  # higher is better
    assert a["kid last"] == "0.4 [0.39, 0.41]"
    assert b["fid last"] == "7" and b["fid best (step)"] == "7 (1000)"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "clean"),
        ("sha256", "0000"),
        ("precision", "default"),
        ("n_fake", 499),
        ("real", "tfds:cifar10/train"),
        ("extractor", "classifier runs/x"),
    ],
)
def test_what_was_measured_otherwise_has_a_table_of_its_own(tmp_path, field, value):
    write(tmp_path / "a", 7.0)
    write(tmp_path / "b", 9.0, provenance=TF1 | {field: value})
    text = scores.compare([tmp_path / "a", tmp_path / "b"])
    assert text.count("Measured by") == 2 and "can't be compared" in text
    for table in text.split("Measured by")[1:]:
        assert ("/a " in table) != ("/b " in table)


def test_one_run_under_two_protocols(tmp_path):
    write(tmp_path / "a", 7.0)
    write(tmp_path / "a", 3.0, provenance=TF1 | {"protocol": "clean"})
    text = scores.compare([tmp_path / "a"])
    assert text.count("/a ") == 2 and "7 (1000)" in text and "3 (1000)" in text


def test_seeds_and_file_names_do_not_part_numbers(tmp_path):
    write(tmp_path / "a", 7.0, provenance=TF1 | {"weights": "x.pth"})
    write(tmp_path / "b", 9.0, provenance=TF1 | {"weights": "y.npz"})
    assert scores.compare([tmp_path / "a", tmp_path / "b"]).count("Measured by") == 1


def test_not_a_number_is_not_the_best(tmp_path):
    write(tmp_path / "a", 7.0, float("nan"))
    (row,) = cells(scores.compare([tmp_path / "a"]).splitlines()[2:])
    assert row["fid best (step)"] == "7 (1000)" and row["fid last"] == "nan"


def test_a_run_without_scores(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="has no scores yet: aigc evaluate"):
        scores.compare([tmp_path / "a"])
    assert cli.main(["compare", str(tmp_path / "a")]) == 2
    assert "has no scores yet" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    write(tmp_path / "a", 7.0)
    assert cli.main(["compare", str(tmp_path / "a")]) == 0
    assert "| fid last |" in capsys.readouterr().out


def test_flat_names():
    found = {"fid": {"value": 2, "n_real": 5}, "prdc": {"precision": 0.5, "recall": 0.25, "k": 5}}
    assert scores.flat(found) == {"fid": 2.0, "prdc_precision": 0.5, "prdc_recall": 0.25}
    json.dumps(scores.flat(found))


def test_numbers_of_other_sample_counts_and_units_have_columns_of_their_own(tmp_path):
    """An nll of more importance samples is a lower one of the same model."""
    (tmp_path / "a").mkdir()
    for step, k, value in ((1, 100, 90.0), (2, 100, 88.0), (3, 5000, 87.0)):
        found = {"nll": {"value": value, "k": k, "unit": "nats"}, "ssim": {"value": 0.1 * step}}
        found["sharpness"] = {"value": 0.6 * step}
        scores.append(tmp_path / "a", step, 64, found, {"real": "tfds:mnist/test"})
    (row,) = cells(scores.compare([tmp_path / "a"]).splitlines()[2:])
    assert row["nll (k = 100, nats) best (step)"] == "88 (2)"
    assert row["nll (k = 100, nats) last"] == ""
    assert row["nll (k = 5000, nats) last"] == "87"
    assert row["ssim best (step)"] == "0.3 (3)"
    assert row["sharpness best (step)"] == "1.2 (2)"  # the nearest to 1


def test_baselines_are_read_like_what_they_stand_beside(tmp_path):
    (tmp_path / "a").mkdir()
    for step, value in ((1, 0.2), (2, 0.4), (3, 0.3)):
        names = ("label_accuracy", "within_5", "psnr", "l1", "fid")
        found = {f"{first}{name}": {"value": value} for first in ("copied_", "") for name in names}
        found["copied_prdc"] = {"precision": value, "recall": value, "k": 5}
        scores.append(tmp_path / "a", step, 64, found, {"real": "tfds:mnist/test"})
    (row,) = cells(scores.compare([tmp_path / "a"]).splitlines()[2:])
    for first in ("copied_", ""):
        for name in ("label_accuracy", "within_5", "psnr"):
            assert row[f"{first}{name} best (step)"] == "0.4 (2)"
        for name in ("l1", "fid"):
            assert row[f"{first}{name} best (step)"] == "0.2 (1)"
    assert row["copied_prdc_recall best (step)"] == "0.4 (2)"
    assert "copied_prdc_precision 0.3" in scores.table(found)


def test_baselines_stand_first():
    """Each before its own; names that stand alone stay, and those not asked for don't."""
    names = ["fid", "constant_l1", "l1", "cycle_l1", "constant_fid", "copied_fid", "constant_x"]
    found = {name: {"value": i} for i, name in enumerate(names)}
    wanted = ["copied_fid", "constant_fid", "fid", "constant_l1", "l1", "cycle_l1", "constant_x"]
    assert list(scores.beside_baselines(found)) == wanted
    assert scores.beside_baselines(found)["l1"] == {"value": 2}
    asked = scores.beside_baselines(found, ["l1", "fid"])
    assert list(asked) == ["constant_l1", "l1", "copied_fid", "constant_fid", "fid"]


def test_a_table_tells_units_and_sample_counts():
    found = {
        "elbo": {"value": -90.5, "unit": "nats"},
        "nll": {"value": 88, "unit": "nats", "k": 50},
    }
    lines = [line.split() for line in scores.table(found).splitlines()]
    assert lines == [["elbo", "-90.5", "nats"], ["nll", "88", "nats", "(k", "=", "50)"]]
