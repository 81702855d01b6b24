from pathlib import Path

import pytest

from models.errors import InvalidInput
from scripts.config import TrainConfig, parse_config

GIVEN = ["data", "--out", "artifacts/birds"]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_defaults_are_class_balanced_focal_loss_with_gamma_2_and_flips() -> None:
    config = parse_config(GIVEN)
    assert (config.gamma, config.alpha, config.alpha_beta, config.flip, config.monitor) == (
        2.0, "class-balanced", 0.999, True, "macro_f1",
    )  # fmt: skip
    assert (config.data, config.out) == (Path("data"), Path("artifacts/birds"))


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "t.yaml", "gamma: 3\nlr: 1e-2\nflip: false\nlabels: [b, a]\n")
    config = parse_config([*GIVEN, "--config", file, "--gamma", "0.5"])
    assert (config.gamma, config.lr, config.flip, config.labels) == (0.5, 0.01, False, ["b", "a"])


def test_what_is_printed_is_read_back_as_the_same_settings(tmp_path: Path) -> None:
    flags = ["--alpha", "balanced", "--image-size", "32x48", "--no-crop", "--patience", "3"]
    config = parse_config([*GIVEN, *flags])
    file = write(tmp_path / "t.yaml", config.as_yaml())
    assert parse_config(["--config", file]).recipe() == config.recipe()


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMMA", "7")
    assert parse_config(GIVEN).gamma == 2.0


def test_an_unknown_setting_in_the_file_is_refused_with_the_one_it_resembles(tmp_path: Path) -> None:
    file = write(tmp_path / "t.yaml", "gama: 3\n")
    with pytest.raises(InvalidInput, match="unknown setting 'gama'; is it gamma\\?"):
        parse_config([*GIVEN, "--config", file])


@pytest.mark.parametrize("text", ["- 1\n", "3\n", "a: [\n", "1: 2\n"])
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"t\.yaml"):
        parse_config([*GIVEN, "--config", write(tmp_path / "t.yaml", text)])


def test_a_file_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"absent\.yaml.*No such file"):
        parse_config([*GIVEN, "--config", "absent.yaml"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bogus", "1"], "unrecognized arguments: --bogus"),
        (["--lr"], "--lr: expected one argument"),
        (["--lr", "0"], "lr: Input should be greater than 0"),
        (["--lr", "inf"], "lr: "),
        (["--gamma", "-1"], "gamma: Input should be greater than or equal to 0"),
        (["--alpha", "1.5"], "alpha: should be none, balanced, class-balanced, or a number from 0 to 1"),
        (["--alpha", "much"], "alpha: should be none, balanced, class-balanced, or a number from 0 to 1"),
        (["--batch-size", "1"], "batch_size: "),
        (["--image-size", "3x4"], "image_size: should be auto, a side such as 224"),
        (["--image-size", "32x32x3"], "image_size: "),
        (["--task", "detect"], "task: "),
        (["--resume", "--restart"], "exclude each other"),
        (["--version", "run"], "'run' is the folder of the training itself"),
        (["--version", "a/b"], "version: "),
        (["--monitor", "loss"], "monitor: "),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line_that_names_it(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_config([*GIVEN, *flags])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_part_of_out_must_be_a_name() -> None:
    with pytest.raises(InvalidInput, match="out: its last part names the model"):
        parse_config(["data", "--out", "artifacts/my birds"])


def test_data_and_out_are_needed_but_not_to_print_the_settings() -> None:
    with pytest.raises(InvalidInput, match="DATA is missing"):
        parse_config(["--out", "a"])
    with pytest.raises(InvalidInput, match="--out is missing"):
        parse_config(["data"])
    assert parse_config(["data", "--dry-run"]).out is None
    assert parse_config(["--print-config"]).data is None


@pytest.mark.parametrize(("text", "size"), [("auto", None), ("64", (64, 64)), ("32x48", (32, 48))])
def test_an_image_size_is_a_side_or_height_by_width(text: str, size: tuple[int, int] | None) -> None:
    assert parse_config([*GIVEN, "--image-size", text]).size == size


def test_every_setting_is_described_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, field in TrainConfig.model_fields.items():
        assert field.description
        assert name == "data" or f"--{name.replace('_', '-')}" in shown
