"""Coqui STT's flags as one table, and their command line.

Names, types and defaults are those of ``coqui_stt_training.util.config`` 1.4.0: booleans are spelt ``true`` or
``false``, lists are separated by spaces, and a flag may be shortened to what only it begins with. What a flag cannot
mean here is said in the table: why it changes nothing, or why it is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from warmstart.errors import ConfigError, Problem
from warmstart.lean import dataclass

Value = str | int | float | bool | list[str] | None


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        idle: why another value than the default changes nothing here; it is said once.
        refused: what to do instead of another value than the default, which is an error.
        needs: flags without one of which it changes nothing.
    """

    name: str
    default: Value
    help: str
    idle: str = ""
    refused: str = ""
    needs: tuple[str, ...] = ()
    kind: type | None = None

    @property
    def type(self) -> type:
        """``list``, ``bool``, ``int``, ``float`` or ``str``."""
        return self.kind or type(self.default)


_THREADS = "torch has one pool of threads: `training.threads` of the native configuration sets it"
_TENSORFLOW = "it concerns TensorFlow's sessions"
_PAGE = "it concerns the page of Markdown that Coqui wrote beside an exported model; no client reads it"
_UNUSED = "Coqui's own graph has no dropout there"
_TESTS = ("test_files", "auto_input_dataset")
_BATCHES = "utterances of like length are batched together"

FLAGS: tuple[Flag, ...] = (
    Flag("train_files", [], "CSV, SDB or tar files to train on, or their URLs"),
    Flag("dev_files", [], "files to validate on after each epoch"),
    Flag("test_files", [], "files to test on, after the training and by evaluate"),
    Flag("metrics_files", [], "files whose loss is measured, too, after each validation"),
    Flag(
        "auto_input_dataset",
        "",
        "one CSV file for everything, or its directory: it is split into train.csv, dev.csv and test.csv beside it",
    ),
    Flag(
        "vocab_file",
        "",
        "words of a scorer for Coqui's evaluate_flashlight",
        refused="the words are read from --scorer_path",
    ),
    Flag("read_buffer", "1MB", "buffer for reading samples", idle="files are mapped or read once"),
    Flag("feature_cache", "", "keep features on disk, here"),
    Flag("cache_for_epochs", 0, "epochs until the feature cache is made again", idle="features of a file never change"),
    Flag("shuffle_batches", False, "shuffle batches in each epoch from --shuffle_start on"),
    Flag("shuffle_start", 1, "first epoch that is shuffled, from zero", needs=("shuffle_batches",)),
    Flag("shuffle_buffer", 1000, "batches to shuffle among", idle="all batches of an epoch are shuffled"),
    Flag("feature_win_len", 32, "length of an audio window in milliseconds"),
    Flag("feature_win_step", 20, "step of the audio window in milliseconds"),
    Flag("audio_sample_rate", 16000, "samples a second that the model expects"),
    Flag(
        "normalize_sample_rate",
        True,
        "resample training files to --audio_sample_rate",
        idle="a file of another rate is always resampled",
    ),
    Flag("augment", None, "augmentations of training samples: 'operation[p=0.1,key=value]' …", kind=list),
    Flag("epochs", 75, "complete passes through the training files"),
    Flag("dropout_rate", 0.05, "dropout after layer 1"),
    Flag("dropout_rate2", -1.0, "dropout after layer 2; below zero: --dropout_rate"),
    Flag("dropout_rate3", -1.0, "dropout after layer 3; below zero: --dropout_rate"),
    Flag("dropout_rate4", 0.0, "nothing", idle=_UNUSED),
    Flag("dropout_rate5", 0.0, "nothing", idle=_UNUSED),
    Flag("dropout_rate6", -1.0, "dropout after layer 5; below zero: --dropout_rate"),
    Flag("relu_clip", 20.0, "largest activation of the layers that are not recurrent"),
    Flag("beta1", 0.9, "Adam's first decay"),
    Flag("beta2", 0.999, "Adam's second decay"),
    Flag("epsilon", 1e-8, "Adam's epsilon"),
    Flag("learning_rate", 0.001, "Adam's learning rate"),
    Flag("train_batch_size", 1, "clips in a training batch"),
    Flag(
        "dev_batch_size",
        1,
        "clips in a validation batch",
        idle="a validation batch has as many clips as one of the training, with the same result",
    ),
    Flag("test_batch_size", 1, "clips in a test batch"),
    Flag(
        "export_batch_size",
        1,
        "clips in a batch of the exported graph",
        idle="an ONNX graph takes any number of clips, a TensorFlow Lite model one after another",
    ),
    Flag("skip_batch_test", False, "leave out the trial of the longest batches before the training"),
    Flag("inter_op_parallelism_threads", 0, "threads between operations", idle=_THREADS),
    Flag("intra_op_parallelism_threads", 0, "threads of an operation", idle=_THREADS),
    Flag("use_allow_growth", False, "let GPU memory grow", idle="torch takes memory as it needs it"),
    Flag(
        "load_cudnn",
        False,
        "the checkpoint was trained with cuDNN",
        idle="which LSTM a checkpoint has is read from its arrays, the optimizer's state with it",
    ),
    Flag(
        "train_cudnn",
        False,
        "train with cuDNN's LSTM",
        idle="torch chooses the kernel; what is written opens with and without cuDNN",
    ),
    Flag("automatic_mixed_precision", False, "compute in bfloat16; weights stay float32"),
    Flag("limit_test", 0, "at most so many test clips; 0 is all", needs=_TESTS),
    Flag("reverse_test", False, "test the longest clips first", idle="the order of the test clips changes no result"),
    Flag("checkpoint_dir", "", "directory of checkpoints, to load from and to save to"),
    Flag("load_checkpoint_dir", "", "directory of the checkpoint to start from"),
    Flag("save_checkpoint_dir", "", "directory that receives the run and its checkpoints"),
    Flag("checkpoint_secs", 600, "seconds between checkpoints"),
    Flag("max_to_keep", 5, "latest checkpoints that are kept"),
    Flag("load_train", "auto", "what a training starts from: auto, best, last or init"),
    Flag("load_evaluate", "auto", "what is evaluated, exported or transcribes: auto, best or last"),
    Flag("drop_source_layers", 0, "how many layers, from the output, are initialised afresh: 1 to 5"),
    Flag("export_dir", "", "directory for the exported model"),
    Flag("remove_export", False, "replace what is in the export directory", needs=("export_dir",)),
    Flag("export_tflite", True, "export for TF Lite; false: ONNX", needs=("export_dir",)),
    Flag("export_quantize", True, "export with 8-bit weights", needs=("export_dir",)),
    Flag(
        "export_savedmodel",
        False,
        "export TensorFlow's SavedModel",
        refused="leave it out: export ONNX (--export_tflite false), or a checkpoint by `warmstart convert --to coqui`",
    ),
    Flag(
        "n_steps",
        16,
        "time steps in one call of the exported graph",
        idle="an ONNX graph takes any number of them, a TensorFlow Lite model 16, with the same result",
    ),
    Flag(
        "export_zip",
        False,
        "package the exported model with its scorer",
        refused="leave it out: a bundle (`warmstart convert --to warmstart`) holds the alphabet and is one directory",
    ),
    Flag(
        "export_file_name",
        "output_graph",
        "name of the exported file",
        idle="the file is model.tflite or model.onnx, by which it is known when it is opened",
    ),
    Flag(
        "export_beam_width",
        500,
        "beams of evaluate, lm-optimize and transcribe, and of the exported file",
    ),
    *(
        Flag(f"export_{name}", default, "description of the exported model", idle=_PAGE)
        for name, default in (
            ("author_id", "author"),
            ("model_name", "model"),
            ("model_version", "0.0.1"),
            ("contact_info", "<public contact information of the author. Can be an email address>"),
            ("license", "<SPDX identifier of the license of the exported model>"),
            ("language", "<language the model was trained on>"),
            ("min_stt_version", "<minimum Coqui STT version (inclusive)>"),
            ("max_stt_version", "<maximum Coqui STT version (inclusive)>"),
            ("description", "<Freeform description of the model being exported>"),
        )
    ),
    Flag("log_level", 1, "0 debug, 1 information, 2 warnings, 3 errors", idle="the command says what it does"),
    Flag("show_progressbar", True, "show progress"),
    Flag("log_placement", False, "say on which device operations run", idle=_TENSORFLOW),
    Flag(
        "report_count",
        5,
        "clips shown of the best, the median and the worst",
        needs=_TESTS,
    ),
    Flag("summary_dir", "", "directory of TensorBoard files", idle="they are in the run, under tensorboard/"),
    Flag(
        "test_output_file",
        "",
        "JSON file for every test clip's transcript and errors",
        needs=_TESTS,
    ),
    Flag("n_hidden", 2048, "width of the layers of a new model; a checkpoint's is read from its arrays"),
    Flag("layer_norm", False, "layer normalisation after the layers that are not recurrent, but the last"),
    Flag("random_seed", 4568, "seed of everything random"),
    Flag("early_stop", False, "stop when the validation's loss stops falling"),
    Flag("es_epochs", 25, "epochs without an improvement until it stops", needs=("early_stop",)),
    Flag("es_min_delta", 0.05, "what counts as an improvement", needs=("early_stop", "reduce_lr_on_plateau")),
    Flag("reduce_lr_on_plateau", False, "lower the learning rate when the loss stops falling"),
    Flag("plateau_epochs", 10, "epochs without an improvement until it is lowered", needs=("reduce_lr_on_plateau",)),
    Flag("plateau_reduction", 0.1, "factor by which it is lowered", needs=("reduce_lr_on_plateau",)),
    Flag("force_initialize_learning_rate", False, "take --learning_rate, not the checkpoint's"),
    Flag("bytes_output_mode", False, "the outputs are the bytes of UTF-8"),
    Flag("alphabet_config_path", "", "the alphabet, a label on each line"),
    Flag("scorer_path", "", "language model: a .scorer package"),
    Flag("beam_width", 1024, "beams while training", idle="validation is decoded greedily"),
    Flag("lm_alpha", 0.931289039105002, "weight of the language model", needs=("scorer_path",)),
    Flag("lm_beta", 1.1834137581510284, "weight of a word", needs=("scorer_path",)),
    Flag("cutoff_prob", 1.0, "probability mass of the characters that are tried; 1.0 is all"),
    Flag("cutoff_top_n", 300, "characters that are tried at each step, at most", needs=("cutoff_prob",)),
    Flag("one_shot_infer", None, "transcribe this file, too", kind=str),
    Flag("lm_alpha_max", 5, "largest --lm_alpha that lm-optimize tries", kind=float),
    Flag("lm_beta_max", 5, "largest --lm_beta that lm-optimize tries", kind=float),
    Flag("n_trials", 2400, "pairs that lm-optimize tries, about: 20 to 97"),
)


@dataclass(frozen=True)
class Flags:
    """Values of every flag by name, and the names of those that were given."""

    values: dict[str, Any]
    given: frozenset[str]
    known: tuple[Flag, ...] = FLAGS

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def notes(self) -> list[str]:
        """What is to be said of flags that change nothing here."""
        changed = [flag for flag in self.known if self.values[flag.name] != flag.default]
        names = {flag.name for flag in changed}
        idle = [f"--{flag.name} changes nothing: {flag.idle}" for flag in changed if flag.idle]
        alone = [flag for flag in changed if flag.needs and names.isdisjoint(flag.needs)]
        return idle + [f"--{f.name} changes nothing without {' or '.join(f'--{n}' for n in f.needs)}" for f in alone]


TRANSCRIBE: tuple[Flag, ...] = (
    Flag("src", "", "an audio file, a directory of them, or a .catalog file of DSAlign"),
    Flag("dst", "", "file for the transcript; by default SRC with the ending .tlog"),
    Flag("recursive", False, "also directories in the directory"),
    Flag("force", False, "replace transcripts that are there"),
    Flag("vad_aggressiveness", 3, "how readily silence is taken for the end of an utterance, 0 to 3"),
    Flag("batch_size", 40, "utterances in a batch"),
    Flag("outlier_duration_ms", 10000, "milliseconds from which an utterance is an outlier", idle=_BATCHES),
    Flag("outlier_batch_size", 1, "outliers in a batch", idle=_BATCHES),
)


def flags_of(command: str) -> tuple[Flag, ...]:
    """The flags of ``warmstart stt COMMAND``."""
    return (*FLAGS, *TRANSCRIBE) if command == "transcribe" else FLAGS


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """The command line of ``warmstart stt COMMAND``."""
    name = f"warmstart stt {command}"
    usage = f"{name} --FLAG VALUE … (all flags: {name} --help)"
    made = argparse.ArgumentParser(name, usage, description)
    for flag in flags_of(command):
        default = " ".join(flag.default) if isinstance(flag.default, list) else flag.default
        text = f"{flag.help} [{str(default).lower() if isinstance(default, bool) else default}]".replace("%", "%%")
        settings: dict[str, Any] = {"dest": flag.name, "default": argparse.SUPPRESS, "help": text.replace(" []", "")}
        if flag.type is list:
            made.add_argument(f"--{flag.name}", nargs="*", action="extend", **settings)
        else:
            made.add_argument(f"--{flag.name}", type=_boolean if flag.type is bool else flag.type, **settings)
    return made


def parse(command: str, description: str, arguments: Sequence[str]) -> Flags:
    """The flags in ``arguments``.

    Raises:
        ConfigError: values that are refused, all at once.
        SystemExit: what is no flag of Coqui's, or no value of one (status 2), or ``--help``.
    """
    given = vars(parser(command, description).parse_args(list(arguments)))
    known = flags_of(command)
    values = {flag.name: given.get(flag.name, flag.default) for flag in known}
    refused = [
        Problem(f"--{flag.name} is not followed", todo=flag.refused)
        for flag in known
        if flag.refused and values[flag.name] != flag.default
    ]
    if refused:
        raise ConfigError(f"warmstart stt {command}: flags that are not followed", problems=refused)
    return Flags(values, frozenset(given), known)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"
