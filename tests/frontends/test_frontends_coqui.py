"""``warmstart stt``: Coqui STT's flags, what they stand for, and what is left for Coqui."""

from __future__ import annotations

import ast
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import coqui_models
import tone_speech
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.cli.verbs import app
from warmstart.errors import ConfigError, DataError, SourceError, StorageError, WarmstartError
from warmstart.formats.detect import open_checkpoint
from warmstart.frontends import coqui
from warmstart.frontends.coqui.auto_input import sample_size
from warmstart.frontends.coqui.commands import run
from warmstart.frontends.coqui.flags import FLAGS, flags_of, parse
from warmstart.frontends.coqui.recordings import recordings
from warmstart.inference.ctc import BeamOptions, Trial, Tuning
from warmstart.vocabularies.alphabet import Alphabet

pytest.importorskip("torch")
pytest.importorskip("soundfile")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with lists of recordings (letters a to f) and ``source``, a small checkpoint of Coqui's."""
    monkeypatch.chdir(tmp_path)
    for number, (name, count) in enumerate({"train": 16, "dev": 6, "test": 5}.items()):
        tone_speech.write_list(tmp_path, name, tone_speech.words("abcdef", count, number), number)
    coqui_models.trained(tmp_path / "source")
    return tmp_path


def said(command: str, arguments: str) -> tuple[list[str], list[str]]:
    """Output and remarks of a command."""
    out: list[str] = []
    remarks: list[str] = []
    run(command, arguments.split(), out.append, remarks.append)
    return out, remarks


def configured(arguments: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(said("config", arguments)[0][0])
    return loaded


FILES = "--train_files train.csv --dev_files dev.csv --train_batch_size 4"
QUIET = "--show_progressbar false --skip_batch_test true --export_beam_width 4"


# --- flags ---------------------------------------------------------------------------------------------------------


def test_every_flag_of_coqui_has_its_name_and_default() -> None:
    flags = parse("train", "", [])
    assert len(FLAGS) == 96
    assert (flags["epochs"], flags["n_hidden"], flags["random_seed"], flags["es_min_delta"]) == (75, 2048, 4568, 0.05)
    assert flags.given == frozenset()
    assert flags.notes() == []


def test_lists_booleans_and_shortened_names() -> None:
    text = (
        "--train_files a.csv b.csv --early_stop true --alphabet x.txt --scorer s --augment volume[p=0.1] --augment add"
    )
    flags = parse("train", "", [*text.split(), "--lm_alpha_max", "0.92"])
    assert flags["lm_alpha_max"] == 0.92
    assert flags["train_files"] == ["a.csv", "b.csv"]
    assert flags["early_stop"] is True
    assert (flags["alphabet_config_path"], flags["scorer_path"]) == ("x.txt", "s")
    assert flags["augment"] == ["volume[p=0.1]", "add"]


@pytest.mark.parametrize("wrong", ["--early_stop", "--early_stop yes", "--epochs many", "--no_such_flag 1"])
def test_what_coqui_would_not_take_ends_with_2(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("train", "", wrong.split())
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) < 5  # not the names of all flags first


def test_refused_flags_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse("export", "", ["--export_zip", "true", "--export_savedmodel", "true", "--vocab_file", "x"])
    assert [p.what.split()[0] for p in error.value.problems] == [
        "--vocab_file",
        "--export_savedmodel",
        "--export_zip",
    ]


def test_flags_that_change_nothing_say_why() -> None:
    notes = parse("train", "", ["--load_cudnn", "true", "--dropout_rate4", "0.3", "--use_allow_growth", "true"]).notes()
    assert [note.split()[0] for note in notes] == ["--dropout_rate4", "--use_allow_growth", "--load_cudnn"]


def test_flags_that_change_nothing_without_another_say_which() -> None:
    text = "--shuffle_start 3 --es_min_delta 1 --plateau_epochs 3 --lm_alpha 2 --cutoff_top_n 9 --limit_test 4"
    alone = text.split()
    said = [(note.split()[0], note.split(" without ")[1]) for note in parse("train", "", alone).notes()]
    assert said == [
        ("--shuffle_start", "--shuffle_batches"),
        ("--limit_test", "--test_files or --auto_input_dataset"),
        ("--es_min_delta", "--early_stop or --reduce_lr_on_plateau"),
        ("--plateau_epochs", "--reduce_lr_on_plateau"),
        ("--lm_alpha", "--scorer_path"),
        ("--cutoff_top_n", "--cutoff_prob"),
    ]
    others = "--shuffle_batches true --early_stop true --scorer s --cutoff_prob 0.9 --test_files t.csv --reduce true"
    assert parse("train", "", [*alone, *others.split()]).notes() == []


def test_every_flag_is_followed_or_said_not_to_be() -> None:
    """A flag is read somewhere other than where its value is checked, or the table has words for it."""
    read: set[str] = set()
    for path in Path(coqui.__file__).parent.glob("*.py"):
        if path.name != "flags.py":
            tree = ast.parse(path.read_text("utf-8"))
            parts = [n for n in tree.body if not ast.unparse(n).startswith(("def problems", "_LEAST", "_RANGES"))]
            read |= {n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)}
    assert [f.name for f in flags_of("transcribe") if f.name not in read and not f.idle and not f.refused] == []


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("train", "", ["there is nothing to train on", "nothing says where the run goes"]),
        ("lm-optimize", "", ["--scorer_path is missing", "--test_files is missing"]),
        (
            "transcribe",
            "--src train.csv --batch_size 0 --n_trials -1 --export_beam_width 0 --report_count -2",
            [
                "--batch_size must be at least 1",
                "--export_beam_width must be at least 1",
                "--n_trials must be at least 1",
                "--report_count must be at least 0",
            ],
        ),
    ],
)
def test_everything_that_a_command_lacks_is_said_at_once(
    work: Path, command: str, arguments: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        said(command, arguments)
    assert [problem.what for problem in error.value.problems] == expected


# --- what they stand for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_checkpoint_that_is_asked_for_is_somewhere(work: Path, which: str) -> None:
    """A training that should have started from one did not, and took as long."""
    arguments = f"{FILES} --alphabet_config_path source/alphabet.txt --save_checkpoint_dir out"
    with pytest.raises(ConfigError, match=f"--load_train {which} does not say where the checkpoint is"):
        said("config", f"{arguments} --load_train {which}")
    assert "start" not in configured(arguments)


def test_any_rate_below_zero_is_the_first(work: Path) -> None:
    arguments = f"{FILES} --alphabet_config_path source/alphabet.txt --save_checkpoint_dir out --dropout_rate 0.25"
    model = configured(f"{arguments} --dropout_rate2 -0.5 --dropout_rate6 -2 --dropout_rate3 0.125")["model"]
    assert [model[f"dropout_{k}"] for k in (1, 2, 3, 5)] == [0.25, 0.25, 0.125, 0.25]


def test_wrong_values_are_named_all_at_once(work: Path) -> None:
    with pytest.raises(ConfigError) as error:
        said(
            "config",
            "--save_checkpoint_dir out --load_train transfer --drop_source_layers 6 --audio_sample_rate 22050 "
            "--bytes_output_mode true --alphabet_config_path a --epochs 0 --dropout_rate 1",
        )
    text = str(error.value)
    for part in ("--load_train", "start from another alphabet's model", "0 to 5", "22050 Hz", "exclude each other"):
        assert part in text
    for flag in ("--feature_win_len", "--train_files", "--epochs", "--dropout_rate"):
        assert flag in text


@pytest.mark.parametrize(
    "wrong",
    ["--learning_rate nan", "--learning_rate 0", "--beta1 1", "--beta2 -0.1", "--epsilon inf", "--relu_clip 0",
     "--es_min_delta -1", "--plateau_reduction 3", "--n_hidden 0", "--cutoff_prob nan", "--cutoff_top_n 0",
     "--dropout_rate nan", "--dropout_rate2 1", "--lm_alpha_max 0", "--lm_beta nan"],
)  # fmt: skip
def test_numbers_out_of_range_are_said_by_their_flag(wrong: str, work: Path) -> None:
    """Not as keys of a configuration, in a file that is gone."""
    with pytest.raises(ConfigError) as error:
        said("config", f"{FILES} --checkpoint_dir out --alphabet source/alphabet.txt {wrong}")
    assert [problem.what.split()[0] for problem in error.value.problems] == [wrong.split(maxsplit=1)[0]]


def test_training_takes_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="warmstart stt config"):
        said("train", FILES)


def test_missing_directories_say_which() -> None:
    with pytest.raises(ConfigError, match="--save_checkpoint_dir"):
        said("config", "--train_files a.csv --dev_files b.csv")
    with pytest.raises(ConfigError, match="--load_checkpoint_dir"):
        said("evaluate", "--test_files a.csv")


def test_a_training_from_nothing_makes_its_alphabet(work: Path) -> None:
    found = configured(f"{FILES} --test_files test.csv --checkpoint_dir out --n_hidden 32 --audio_sample_rate 8000")
    assert "start" not in found
    assert found["vocabularies"] == {"text": {"type": "alphabet", "characters": "abcdef"}}
    assert (found["model"]["n_hidden"], found["model"]["sample_rate"]) == (32, 8000)
    assert found["training"]["steps"] == 75 * 4
    assert found["training"]["optimizer"]["epsilon_rule"] == "tensorflow"


def test_alphabets_are_found_in_coquis_order(work: Path) -> None:
    three = f"{FILES} --test_files test.csv --checkpoint_dir out"
    (work / "alphabet.txt").write_text("a\nb\n")
    assert configured(three)["vocabularies"]["text"] == {"type": "alphabet", "path": "alphabet.txt"}
    (work / "out").mkdir()
    (work / "out" / "alphabet.txt").write_text("c\n")
    assert configured(three)["vocabularies"]["text"]["path"] == "out/alphabet.txt"
    assert configured(f"{three} --alphabet other.txt")["vocabularies"]["text"]["path"] == "other.txt"
    assert configured(f"{three} --bytes_output_mode true")["vocabularies"]["text"] == {"type": "bytes"}
    with pytest.raises(ConfigError, match="nothing says what the alphabet is"):
        configured(f"{FILES} --checkpoint_dir fresh")


def test_an_alphabet_is_made_of_all_three_lists(work: Path) -> None:
    for name, letters in (("dev", "xa"), ("test", "yb")):
        lines = (work / f"{name}.csv").read_text().splitlines()
        (work / f"{name}.csv").write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + f",{letters}"]))
    arguments = f"{FILES} --test_files test.csv --checkpoint_dir out"
    assert configured(arguments)["vocabularies"]["text"]["characters"] == "abcdefxy"
    assert "the alphabet is made of all transcripts: 'abcdefxy'" in said("config", arguments)[1]


@pytest.mark.parametrize(("count", "size"), [(3, 1), (12, 3), (100, 33), (1308, 432), (20_000, 5683)])
def test_samples_are_as_large_as_coquis(count: int, size: int) -> None:
    """99 % confidence and 1 % error; found with upstream's own function."""
    assert sample_size(count) == size


def test_one_dataset_is_split_and_stays_so(work: Path) -> None:
    folder = work / "all"
    folder.mkdir()
    tone_speech.write_list(folder, "data", tone_speech.words("abcdef", 12, 0), 0)
    found = configured("--auto_input_dataset all --checkpoint_dir out")
    assert found["data"]["tasks"]["speech"]["splits"]["train"]["files"] == ["all/train.csv"]
    assert found["vocabularies"]["text"] == {"type": "alphabet", "path": "all/alphabet.txt"}
    assert (folder / "alphabet.txt").read_text() == "a\nb\nc\nd\ne\nf\n"
    rows = {name: (folder / f"{name}.csv").read_text().splitlines() for name in ("data", "train", "dev", "test")}
    assert [len(rows[name]) for name in ("train", "dev", "test")] == [7, 4, 4]
    assert sorted(rows["train"][1:] + rows["dev"][1:] + rows["test"][1:]) == sorted(rows["data"][1:])
    assert {rows[name][0] for name in rows} == {rows["data"][0]}
    (folder / "dev.csv").unlink()
    assert configured("--auto_input_dataset all/data.csv --checkpoint_dir out") == found
    assert (folder / "dev.csv").read_text().splitlines() == rows["dev"]
    (folder / "test.csv").unlink()
    with pytest.raises(DataError, match="not what this list is split into"):
        configured("--auto_input_dataset all --checkpoint_dir out --random_seed 1")
    (folder / "other.csv").write_text("")
    with pytest.raises(SourceError, match="without exactly one CSV"):
        configured("--auto_input_dataset all --checkpoint_dir out")
    with pytest.raises(ConfigError, match="exclude each other"):
        configured(f"{FILES} --auto_input_dataset all --checkpoint_dir out")


def test_a_split_dataset_is_trained_and_tested_on(work: Path) -> None:
    (work / "all").mkdir()
    tone_speech.write_list(work / "all", "data", tone_speech.words("abcdef", 12, 0), 0)
    start = "--load_checkpoint_dir source --save_checkpoint_dir out --auto_input_dataset all"
    out, remarks = said("train", f"{start} --epochs 1 --train_batch_size 2 {QUIET}")
    assert "all/data.csv is split: all/train.csv 6, all/dev.csv 3, all/test.csv 3" in remarks
    assert not (work / "all" / "alphabet.txt").exists()  # the checkpoint's counts
    assert out[-1].startswith("Test on all/test.csv - WER: ")
    again = said("evaluate", f"--checkpoint_dir out --auto_input_dataset all {QUIET}")[0]
    assert again[0].startswith("Test on all/test.csv - WER: ")


def test_another_alphabet_than_the_checkpoints_asks_for_a_layer_to_be_dropped(work: Path) -> None:
    arguments = f"{FILES} --load_checkpoint_dir source --save_checkpoint_dir out"
    (work / "other.txt").write_text("".join(f"{label}\n" for label in "abcdefg"))
    for alphabet in ("--alphabet_config_path other.txt", "--bytes_output_mode true"):
        with pytest.raises(ConfigError, match=r"not the checkpoint's(?s:.*)--drop_source_layers 1") as error:
            configured(f"{arguments} {alphabet}")
        assert f"leave out {alphabet.split()[0]}" in str(error.value)
        assert configured(f"{arguments} {alphabet} --drop_source_layers 1")["start"]["drop_last"] == 1
    assert "start" in configured(f"{arguments} --alphabet source/alphabet.txt")


def test_auto_tries_best_then_last_then_begins_afresh(work: Path) -> None:
    arguments = f"{FILES} --load_checkpoint_dir source --save_checkpoint_dir out"
    assert configured(arguments)["start"] == {"source": "source@best", "mode": "continue", "data": "start"}
    (work / "source" / "best_dev_checkpoint").rename(work / "source" / "checkpoint")
    assert configured(arguments)["start"]["source"] == "source@last"
    with pytest.raises(ConfigError, match="best_dev_checkpoint"):
        configured(f"{arguments} --load_train best")
    (work / "source" / "checkpoint").unlink()
    assert "start" not in configured(f"{arguments} --alphabet source/alphabet.txt")
    with pytest.raises(ConfigError, match="no directory"):
        configured(arguments.replace("source", "sorce"))
    assert "start" not in configured(f"{arguments.replace('source', 'out')} --alphabet source/alphabet.txt")
    with pytest.raises(ConfigError, match="there is no such checkpoint"):
        said("evaluate", "--checkpoint_dir source --test_files test.csv")


def test_continuing_counts_on_from_the_checkpoints_step(work: Path) -> None:
    found = configured(f"{FILES} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 2")
    assert found["training"]["steps"] == 12 + 2 * 4
    dropped = configured(
        f"{FILES} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 2 --drop_source_layers 2"
    )
    assert dropped["start"] == {"source": "source@best", "mode": "transfer", "drop_last": 2}
    assert dropped["training"]["steps"] == 2 * 4


def test_epochs_are_counted_from_the_checkpoints_step(work: Path) -> None:
    """Its step is 12; five updates are an epoch here, and each is followed by an evaluation, also when it goes on."""
    arguments = f"{FILES.removesuffix('4')}3 {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 2"
    evaluated = []
    for _ in range(2):
        said("train", arguments)
        records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text("utf-8").splitlines()]
        evaluated.append([record["step"] for record in records if record["kind"] == "validation"])
    assert evaluated == [[17, 22], [17, 22, 27, 32]]


def test_the_checkpoints_width_and_rate_count(work: Path) -> None:
    arguments = f"{FILES} --load_checkpoint_dir source --save_checkpoint_dir out --n_hidden 2048 --dropout_rate 0.2"
    assert configured(arguments)["model"] == {f"dropout_{k}": 0.2 for k in (1, 2, 3, 5)}
    assert any("--n_hidden 2048 is not the checkpoint's 6" in line for line in said("config", arguments)[1])


def test_stopping_and_plateaus_are_coquis(work: Path) -> None:
    training = configured(
        f"{FILES} --checkpoint_dir out --alphabet a --early_stop true --es_epochs 7 --reduce_lr_on_plateau true "
        "--plateau_epochs 3 --checkpoint_secs 90 --max_to_keep 2 --automatic_mixed_precision true"
    )["training"]
    assert training["early_stopping"] == {"metric": "validation/loss", "patience": 7, "min_change": 0.05}
    assert training["plateau"]["reload_best"] is True
    assert (training["checkpoint_minutes"], training["keep_last"], training["precision"]) == (1.5, 2, "bfloat16")


def test_what_follows_a_training_is_looked_at_before_it(work: Path) -> None:
    with (work / "test.csv").open() as file:
        recording = next(csv.DictReader(file))["wav_filename"]
    out, _ = transfer(work, f"--one_shot_infer {recording}")
    assert out[-1] == api.transcribe("out@best", [recording], beam_size=4)[0]["text"]
    wrong = {
        "--scorer_path none.scorer --one_shot_infer none.wav": "these flags do not go",
        "--scorer_path train.csv": "language model|kenlm",
    }
    arguments = f"{FILES} {QUIET} --checkpoint_dir new --alphabet source/alphabet.txt --test_files test.csv"
    for more, error in wrong.items():
        with pytest.raises(WarmstartError, match=error):
            said("train", f"{arguments} {more}")
        assert not (work / "new").exists()


def test_what_a_checkpoint_keeps_is_said(work: Path) -> None:
    arguments = f"--checkpoint_dir source --test_files test.csv --n_hidden 99 --audio_sample_rate 48000 {QUIET}"
    remarks = said("evaluate", arguments)[1]
    assert [line for line in remarks if "which is taken" in line] == [
        "--n_hidden 99 is not the checkpoint's 6, which is taken",
        "--audio_sample_rate 48000 is not the checkpoint's 8000, which is taken",
    ]
    with pytest.raises(ConfigError, match="bytes_output_mode"):
        said("evaluate", f"{arguments} --bytes_output_mode true")


def test_coqui_would_go_on_at_the_reduced_rate(work: Path) -> None:
    said(
        "train",
        f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 4 --es_min_delta 1000 "
        "--reduce_lr_on_plateau true --plateau_epochs 1 --plateau_reduction 0.5",
    )
    rate = float(open_checkpoint("out@last").optimizer["learning_rate"])
    assert rate == pytest.approx(0.001 * 0.5**3)  # the first epoch is an improvement


def test_metrics_files_do_not_choose_the_best(work: Path) -> None:
    found = configured(f"{FILES} --checkpoint_dir out --alphabet a --metrics_files test.csv")
    assert found["training"]["best_metric"] == "validation/speech/loss"
    assert set(found["data"]["tasks"]["metrics"]["splits"]) == {"validation"}


def test_augmentations_with_ranges_run_over_the_epochs(work: Path) -> None:
    found = configured(f"{FILES} --checkpoint_dir out --alphabet a --epochs 9 --augment volume[p=0.1,dbfs=-10:-40]")
    assert found["data"]["augment"] == ["volume[p=0.1,dbfs=-10:-40]"]
    assert found["data"]["augment_epochs"] == 9.0


# --- what they do --------------------------------------------------------------------------------------------------


def transfer(work: Path, more: str = "") -> tuple[list[str], list[str]]:
    arguments = f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --drop_source_layers 1"
    return said("train", f"{arguments} --epochs 2 --test_files test.csv {more}")


def test_a_transfer_leaves_what_coqui_could_load(work: Path) -> None:
    before = {path.name: path.read_bytes() for path in (work / "source").iterdir()}
    out, _ = transfer(work, "--export_dir exported --export_tflite false --test_output_file samples.json")
    assert {path.name: path.read_bytes() for path in (work / "source").iterdir()} == before
    assert any(line.startswith("Test on test.csv - WER: ") for line in out)
    assert len(json.loads((work / "samples.json").read_text("utf-8"))) == 5
    assert (work / "exported" / "model.onnx").is_file()
    last = open_checkpoint("out@last")
    assert (last.step, last.path.name) == (8, "train-8")
    assert open_checkpoint("out@best").path.name.startswith("best_dev-")
    assert set(open_checkpoint("source@best").entries) == set(last.entries)
    assert {slot for _, slot in last.slots} == {"m", "v"}
    assert last.optimizer["learning_rate"] == np.float32(0.001)
    assert json.loads((work / "out" / "flags.txt").read_text())["n_hidden"] == 6  # not the default of --n_hidden
    model = open_model("out@last")
    assert model.vocabularies["text"].tokens[:-1] == tuple(coqui_models.LABELS)
    bundle, best = open_model("out"), open_model("out@best")
    assert bundle.reading is not None
    assert best.reading is not None
    for name in bundle.reading.origins:
        np.testing.assert_array_equal(bundle.reading.read(name), best.reading.read(name))


def test_without_dev_files_there_is_no_best_checkpoint(work: Path) -> None:
    arguments = f"--train_files train.csv --train_batch_size 4 {QUIET} --load_checkpoint_dir source --epochs 3"
    more = "--save_checkpoint_dir out --max_to_keep 2 --early_stop true --test_files test.csv"
    out, remarks = said("train", f"{arguments} {more}")
    assert any("no checkpoint is the best" in line for line in remarks)
    assert "--early_stop changes nothing without --dev_files" in remarks
    assert sorted(path.stem for path in (work / "out").glob("*.index")) == ["train-20", "train-24"]
    assert not (work / "out" / "best_dev_checkpoint").exists()
    assert (work / "out" / "checkpoint").read_text().splitlines() == [
        'model_checkpoint_path: "train-24"',
        'all_model_checkpoint_paths: "train-20"',
        'all_model_checkpoint_paths: "train-24"',
    ]
    assert out[0] == f"{Path('out/train-24')}: the last checkpoint, for TensorFlow"
    (again,) = said("evaluate", f"--checkpoint_dir out --test_files test.csv {QUIET}")[0]
    heard = [[line for line in text.splitlines() if " - res: " in line] for text in (out[1], again)]
    assert heard[0] == heard[1]
    assert not [line for line in (work / "out" / "metrics.jsonl").read_text().splitlines() if "validation" in line]


def test_metrics_without_dev_files_choose_nothing(work: Path) -> None:
    arguments = f"--train_files train.csv --train_batch_size 4 {QUIET} --load_checkpoint_dir source --epochs 2"
    said("train", f"{arguments} --metrics_files dev.csv --save_checkpoint_dir out")
    assert not (work / "out" / "best_dev_checkpoint").exists()
    assert "validation/loss" in (work / "out" / "metrics.jsonl").read_text()


def test_the_same_command_goes_on_and_drops_nothing_again(work: Path) -> None:
    transfer(work)
    first = open_model("out@last").reading
    assert first is not None
    before = np.array(first.read("layer_6.weight"))
    _, remarks = transfer(work)
    assert any("nothing is loaded or dropped again" in line for line in remarks)
    assert open_checkpoint("out@last").step == 16
    after = open_model("out@last").reading
    assert after is not None
    change = np.abs(np.array(after.read("layer_6.weight")) - before).max()
    assert 0 < change < 8 * 2e-3  # eight updates of Adam at 0.001, not other random numbers


def test_a_run_that_was_stopped_goes_on_for_the_epochs_that_are_asked_for(work: Path) -> None:
    arguments = f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --epochs"
    said("train", f"{arguments} 2")
    shutil.rmtree(work / "out" / "model")  # as if it had been stopped before
    shutil.rmtree(work / "out" / "checkpoints" / "step-00000020")
    for epochs, steps in ((1, 20), (2, 20), (4, 28)):
        assert configured(f"{arguments} {epochs}")["training"]["steps"] == steps
    fewer, more = (said("config", f"{arguments} {epochs}")[1] for epochs in (1, 4))
    assert "it was stopped at step 16 of 20; --epochs 1 are over, and not followed" in fewer
    assert "it was stopped at step 16 of 20, and goes on to 28, as --epochs 4 says" in more


def test_a_run_that_was_stopped_early_goes_on_when_asked_to(work: Path) -> None:
    arguments = f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out"
    _, remarks = said("train", f"{arguments} --epochs 9 --early_stop true --es_epochs 2 --es_min_delta 1000")
    assert any(line.startswith("stopped early") for line in remarks)
    stopped = open_checkpoint("out@last").step
    assert stopped is not None
    assert stopped < 12 + 9 * 4
    _, remarks = said("train", f"{arguments} --epochs 2")
    assert "it was finished, and goes on for 2 epochs" in remarks
    assert open_checkpoint("out@last").step == stopped + 2 * 4


def test_one_directory_loads_saves_and_stays_readable(work: Path) -> None:
    """``--checkpoint_dir``: what was there stays, the state files name what is new."""
    shutil.copytree(work / "source", work / "both")
    _, remarks = said("train", f"{FILES} {QUIET} --checkpoint_dir both --epochs 1")
    assert remarks[0] == "Loading best validating checkpoint from both@best"
    assert open_checkpoint("both@last").step == 12 + 4
    assert (work / "both" / "best_dev-12.index").is_file()


def test_a_run_goes_on_where_its_directories_were_moved(work: Path) -> None:
    """The one that holds its source, too, and the one that it was loaded from."""
    shutil.copytree(work / "source", work / "both")
    said("train", f"{FILES} {QUIET} --checkpoint_dir both --epochs 1")
    (work / "both").rename(work / "moved")
    _, remarks = said("train", f"{FILES} {QUIET} --checkpoint_dir moved --epochs 1")
    assert "what the run began with, both/source-of-run@best_dev-12, is moved/source-of-run@best_dev-12 now" in remarks
    assert open_checkpoint("moved@last").step == 12 + 2 * 4
    transfer(work)
    (work / "source").rename(work / "elsewhere")
    shutil.copytree(work / "moved", work / "other")
    again = f"{FILES} {QUIET} --save_checkpoint_dir out --epochs 1 --load_checkpoint_dir"
    with pytest.raises(SourceError, match="no such file or directory"):  # other bytes than those it began with
        said("train", f"{again} other")
    _, remarks = said("train", f"{again} elsewhere")
    assert any(line.endswith("is elsewhere@best now") for line in remarks)


def test_a_run_that_goes_on_says_what_it_keeps(work: Path) -> None:
    arguments = f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 1"
    said("train", arguments)
    _, remarks = said("config", f"{arguments} --dropout_rate 0.3 --n_hidden 9 --alphabet source/alphabet.txt")
    assert "--dropout_rate 0.3 is not the run's 0.05, which is taken" in remarks
    assert "--n_hidden 9 is not the checkpoint's 6, which is taken" in remarks
    (work / "other.txt").write_text("x\ny\n")
    for other in ("--alphabet other.txt", "--bytes_output_mode true"):
        with pytest.raises(ConfigError, match="the alphabet is not the checkpoint's"):
            said("train", f"{arguments} {other}")


def test_bytes_are_learnt_and_resumed(work: Path) -> None:
    """Once in the same directory, as the run that it holds, and once from its TensorFlow files alone."""
    new = "--bytes_output_mode true --n_hidden 8 --audio_sample_rate 8000"
    said("train", f"{FILES} {QUIET} --checkpoint_dir bytes {new} --epochs 1")
    said("train", f"{FILES} {QUIET} --checkpoint_dir bytes --epochs 1")
    assert open_checkpoint("bytes@last").step == 8
    said(
        "train", f"{FILES} {QUIET} --load_train last --load_checkpoint_dir bytes --save_checkpoint_dir more --epochs 1"
    )
    model = open_model("more@last")
    assert (model.checkpoint.step, len(model.vocabularies["text"])) == (12, 256)
    assert model.vocabularies["text"].fingerprint == Alphabet.of_bytes().fingerprint


def test_evaluate_reports_each_file(work: Path) -> None:
    out, remarks = said("evaluate", f"--checkpoint_dir source --test_files test.csv dev.csv {QUIET} --report_count 1")
    assert [line.split(" - ")[0] for line in out] == ["Test on test.csv", "Test on dev.csv"]
    assert remarks == ["Loading best validating checkpoint from source@best"]
    out, _ = said("evaluate", f"--checkpoint_dir source --one_shot_infer test/0.wav {QUIET}")
    assert len(out) == 1


def test_an_alphabet_may_be_named_that_a_run_or_bundle_has(work: Path) -> None:
    alphabet = "--alphabet_config_path source/alphabet.txt"
    clip = "test/0.wav"
    out, _ = said(
        "train",
        f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir out --epochs 1 {alphabet} "
        f"--test_files test.csv --one_shot_infer {clip} --report_count 1 --export_dir exported --export_tflite false",
    )
    again = f"{QUIET} --report_count 1 --test_files test.csv --one_shot_infer {clip}"
    assert said("evaluate", f"--checkpoint_dir out/model {again} {alphabet}")[0] == [out[-1], out[2]]
    (work / "other.txt").write_text("x\ny\n")
    with pytest.raises(ConfigError, match="the alphabet is not the checkpoint's"):
        said("evaluate", f"--checkpoint_dir out/model {again} --alphabet other.txt")


def test_evaluate_names_what_it_leaves_out(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (work / "test.csv").open("a", encoding="utf-8") as file:
        file.write("test/0.wav,0," + "abcdef" * 99 + "\n")
    out, _ = said("evaluate", f"--checkpoint_dir source --test_files test.csv {QUIET} --report_count 1")
    assert out[0].startswith("Test on test.csv - WER: ")
    assert len(caplog.messages) == 1
    assert "test.csv: 1 left out, too short: test/0.wav (" in caplog.text


def test_train_without_training_does_the_other_steps(work: Path) -> None:
    """As upstream's ``train.py --test_files test.csv --checkpoint_dir DIR``."""
    arguments = f"--checkpoint_dir source {QUIET} --report_count 1"
    out, remarks = said("train", f"{arguments} --test_files test.csv --export_dir exported --export_tflite false")
    assert remarks[0] == "there are no --train_files, and nothing is trained"
    assert out[:1] == said("evaluate", f"{arguments} --test_files test.csv")[0]
    assert (work / "exported" / "model.onnx").is_file()
    assert not (work / "source" / "config.yaml").exists()


def test_transcribe_writes_utterances(work: Path) -> None:
    pytest.importorskip("webrtcvad")
    noise = np.random.default_rng(0)
    speech = [tone_speech.speak("abcdef" * 2, k, "abcdef") for k in range(2)]
    quiet = np.asarray(noise.normal(0, 3, 8000), np.int16)
    tone_speech.write_wav(work / "long.wav", np.concatenate([quiet, speech[0], quiet, speech[1], quiet]))
    said("transcribe", f"--checkpoint_dir source --src long.wav {QUIET}")
    rows = json.loads((work / "long.tlog").read_text("utf-8"))
    assert rows
    assert all(set(row) == {"start", "end", "transcript"} and row["start"] < row["end"] for row in rows)
    assert rows[0]["start"] > 500  # after a second of silence, less what is kept before speech
    with pytest.raises(ConfigError, match="--force true"):
        said("transcribe", f"--checkpoint_dir source --src long.wav {QUIET}")
    said("transcribe", f"--checkpoint_dir source --src long.wav --force true {QUIET}")
    (work / "jobs.catalog").write_text('[{"audio": "long.wav", "tlog": "made/long.tlog"}]')
    said("transcribe", f"--checkpoint_dir source --src jobs.catalog {QUIET}")
    assert json.loads((work / "made" / "long.tlog").read_text("utf-8")) == rows
    with pytest.raises(SourceError, match="nothing says what to transcribe"):
        said("transcribe", f"--checkpoint_dir source {QUIET}")
    coqui_models.trained(work / "fast", coqui_models.config(sample_rate=24000))  # which the detector does not hear
    said("transcribe", f"--checkpoint_dir fast --src long.wav --force true {QUIET}")
    with pytest.raises(StorageError, match="cannot be written"):
        said("transcribe", f"--checkpoint_dir source --src long.wav --dst test.csv/a.tlog {QUIET}")
    others = json.loads((work / "long.tlog").read_text("utf-8"))
    assert [row["start"] for row in others] == pytest.approx([row["start"] for row in rows], abs=60)


def test_transcripts_replace_neither_recordings_nor_each_other(work: Path) -> None:
    (work / "clips").mkdir()
    for name in ("a.wav", "a.flac", "b.wav"):
        shutil.copy(work / "test" / "0.wav", work / "clips" / name)
    before = {path: path.read_bytes() for path in (work / "clips").iterdir()}
    (work / "jobs.catalog").write_text(
        '[{"audio": "clips/b.wav", "tlog": "clips/a.wav"}, {"audio": "clips/a.wav", "tlog": "a"}]'
    )
    wrong = {
        "clips/b.wav --dst clips/../clips/b.wav": "a transcript would replace a recording",
        "jobs.catalog": "a transcript would replace a recording",
        "clips": "two recordings have one transcript",
    }
    for source, error in wrong.items():
        with pytest.raises(ConfigError, match=error):
            said("transcribe", f"--checkpoint_dir source --force true --src {source} {QUIET}")
    assert {path: path.read_bytes() for path in (work / "clips").iterdir()} == before


def test_a_damaged_recording_does_not_keep_the_others_from_being_transcribed(work: Path) -> None:
    pytest.importorskip("webrtcvad")
    (work / "clips").mkdir()
    for name in ("a.wav", "c.wav"):
        shutil.copy(work / "test" / "0.wav", work / "clips" / name)
    (work / "clips" / "b.wav").write_bytes(b"RIFF")
    (work / "clips" / "d.wav").mkdir()
    with pytest.raises(DataError, match="1 of 3 recordings cannot be transcribed") as caught:
        said("transcribe", f"--checkpoint_dir source --src clips {QUIET}")
    assert [problem.where for problem in caught.value.problems] == ["clips/b.wav"]
    assert sorted(path.name for path in Path("clips").glob("*.tlog")) == ["a.tlog", "c.tlog"]


def test_outputs_are_looked_at_before_a_training(work: Path) -> None:
    """It may take days, and what it replaces may be what it was made of."""
    (work / "mine").mkdir()
    (work / "mine" / "notes.txt").write_text("mine")
    (work / "old").mkdir()
    (work / "old" / "output_graph.tflite").write_text("an export")
    wrong = {
        "--export_dir mine": "holds something already",
        "--export_dir old": "holds something already",
        "--export_dir mine --remove_export true": "would delete what is no exported model",
        "--export_dir . --remove_export true": "would replace what lies in it",
        "--export_dir source --remove_export true": "would replace what lies in it",
        "--export_dir new": "would replace what lies in it",
        "--export_dir train.csv": "would replace what lies in it",
        "--test_files test.csv --test_output_file ./test.csv": "would replace what is read",
        "--test_files test.csv --test_output_file mine": "is a directory",
    }
    arguments = f"{FILES} {QUIET} --load_checkpoint_dir source --save_checkpoint_dir new"
    for more, error in wrong.items():
        with pytest.raises(ConfigError, match=error):
            said("train", f"{arguments} {more}")
        assert not (work / "new").exists()
    with pytest.raises(ConfigError, match="would replace what is read"):
        said("evaluate", f"--checkpoint_dir source --test_files test.csv --test_output_file test.csv {QUIET}")
    said("export", "--checkpoint_dir source --export_dir old --remove_export true --export_tflite false")
    assert not (work / "old" / "output_graph.tflite").exists()


def test_an_exported_file_names_the_beams_that_were_asked_for(work: Path) -> None:
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    for given, named in (("", 500), ("--export_beam_width 32", 32)):
        out, _ = said("export", f"--checkpoint_dir source --export_dir exported --remove_export true {given}")
        assert out == ["exported to exported/model.tflite"]
        interpreter = interpreters.Interpreter("exported/model.tflite")
        places = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
        assert interpreter.get_tensor(places["beam_width"]).tolist() == [named]
    with pytest.raises(ConfigError, match="--export_beam_width must be at least 1"):
        said("export", "--checkpoint_dir source --export_dir exported --export_beam_width 0")


def test_lists_that_cannot_be_read_are_said_before_the_training(work: Path) -> None:
    files = "--train_files train.csv clips --dev_files none.csv --test_files gone.csv train.csv"
    with pytest.raises(DataError, match="lists of recordings cannot be used") as caught:
        said("train", f"--checkpoint_dir new --n_hidden 8 --alphabet_config_path source/alphabet.txt {files} {QUIET}")
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("this is no list of recordings", "clips"),
        ("cannot read the CSV", "none.csv"),
        ("cannot read the CSV", "gone.csv"),
    ]
    assert not (work / "new").exists()


NO_CATALOGS = ("", "[" * 100_000, '"text"', "[1]", '[{"audio": 1, "tlog": 2}]', '[{"audio": "a"}]')


@pytest.mark.parametrize("content", NO_CATALOGS)
def test_what_is_no_catalog_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "jobs.catalog"
    path.write_text(content)
    with pytest.raises(DataError, match="no catalog"):
        recordings(parse("transcribe", "", ["--src", str(path)]))


def test_coquis_own_smoke_test_ends_with_its_sentence(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``run-ci-ldc93s1_new.sh 249 16000`` and the transfer to Russian of ``run-ci-transfer.sh``, by their own flags."""
    monkeypatch.chdir(tmp_path)
    smoke = fixtures / "fixtures" / "stt-smoke"
    english, russian = smoke / "ldc93s1.csv", smoke / "russian_sample_data"
    common = "--skip_batch_test true --train_batch_size 1 --n_hidden 100 --show_progressbar false"
    out, _ = said(
        "train",
        f"{common} --train_files {english} --dev_files {english} --test_files {english} --epochs 249 --max_to_keep 1 "
        f"--checkpoint_dir english --alphabet_config_path {smoke / 'alphabet.txt'} --learning_rate 0.001 "
        "--dropout_rate 0.05 --export_beam_width 500",
    )
    assert ' - res: "she had your dark suit in greasy wash water all year"' in out[2].splitlines()
    files = f"--train_files {russian / 'ru.csv'} --dev_files {russian / 'ru.csv'} --epochs 3"
    alphabet = f"--alphabet_config_path {russian / 'alphabet.ru'} --drop_source_layers 1"
    losses = {}
    for load in ("init", "last", "auto"):
        places = f"--load_train {load} --load_checkpoint_dir english --save_checkpoint_dir {load}"
        said("train", f"{common} {files} {alphabet} {places}")
        report = said("evaluate", f"--checkpoint_dir {load} --test_files {russian / 'ru.csv'} --export_beam_width 1")[0]
        losses[load] = float(report[0].splitlines()[0].rpartition(" ")[2])
    assert losses["auto"] < losses["init"]  # begins from the best, and learns sooner
    assert losses["last"] < losses["init"]


def test_lm_optimize_finds_weights(work: Path) -> None:
    pytest.importorskip("kenlm")
    scorer = Path(__file__).parent.parent / "golden" / "ctc" / "words.arpa"
    coqui_models.save(
        work / "words",
        coqui_models.tensors(coqui_models.config(vocab_size=28)),
        {"audio_sample_rate": 8000},
        " \n" + "".join(f"{chr(97 + k)}\n" for k in range(26)),
    )
    arguments = f"--checkpoint_dir words --test_files test.csv --scorer_path {scorer} --n_trials 8 {QUIET}"
    out, _ = said("lm-optimize", arguments)
    assert out[0].startswith("Best params: lm_alpha=")


def test_lm_optimize_searches_as_evaluate_does(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were chosen without the cut-offs would not be the best with them."""
    asked: dict[str, Any] = {}

    def tune_scorer(*_: Any, **options: Any) -> Tuning:
        asked.update(options)
        best = Trial(1, 2, 0.5, 0.25)
        return Tuning((best,), best)

    monkeypatch.setattr("warmstart.inference.speech.tuning.tune_scorer", tune_scorer)
    arguments = "--checkpoint_dir source --test_files test.csv --scorer_path test.csv --export_beam_width 20"
    _, remarks = said("lm-optimize", f"{arguments} --cutoff_prob 0.5 --cutoff_top_n 7 --n_trials 1")
    assert asked["options"] == BeamOptions(20, 0.5, 7)
    assert "--n_trials 1: a grid of 4 pairs, then up to 16 around the best" in remarks
    assert asked["grid"] == 2
    said("lm-optimize", arguments)
    assert asked["options"] == BeamOptions(20)


def test_the_command_line_has_them() -> None:
    result = CliRunner().invoke(app, ["stt", "train", "--help"])
    assert "--drop_source_layers" in result.stdout
    for name in coqui.ALIASES:
        assert "--one_shot_infer" in CliRunner().invoke(app, ["stt", name, "--help"]).stdout
    wrong = CliRunner().invoke(app, ["stt", "train", "--load_train", "transfer"])
    assert isinstance(wrong.exception, ConfigError)
