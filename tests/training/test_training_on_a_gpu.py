"""A training on a GPU, with one that is not there: nothing strays between the devices, and the numbers are a CPU's.

Real ones are for ``tests/gpu``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from test_training_loop import arrays, timeless

import tone_speech
from pretended_gpu import OnGPU, pretended_gpu
from speech_models import write_model
from warmstart import api
from warmstart.data.plan import Position
from warmstart.errors import ConfigError
from warmstart.formats.detect import open_checkpoint
from warmstart.inference import device as devices
from warmstart.inference.device import choose_device
from warmstart.models.layers import attention, dropout, linear, norm
from warmstart.models.transformer import module
from warmstart.training.config import Average, LoRA, TrainingConfig
from warmstart.training.device import compile_layers
from warmstart.training.learner import Learner
from warmstart.training.loop import train
from warmstart.training.methods import Adafactor, Adam
from warmstart.training.precision import autocast
from warmstart.training.state import latest, read_state
from warmstart.training.terms import Measured

CPU = torch.device("cpu")
TINY = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with pretended_gpu(monkeypatch) as device:
        yield device


@pytest.fixture
def gpus_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers compute a CPU's tensors as they do those of a GPU."""
    for room in (attention, dropout, linear, norm, module):
        monkeypatch.setattr(room, "has_own_functions", lambda x: False)


def moved(model: Any, device: torch.device) -> Any:
    """With its ties."""
    state = {name: tensor.detach().to(device) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.tie()
    return model


def evaluate(model: Any, step: int) -> Measured:
    return Measured({"validation/loss": float(sum(p.double().abs().sum() for p in model.parameters()))})


@pytest.fixture
def config(config: TrainingConfig) -> TrainingConfig:
    """Short: a device that is pretended is slow."""
    return config.model_copy(update={"steps": 4, "checkpoint_every": 2, "accumulation": 1})


def go(run: Path, model: Any, stream: Any, config: TrainingConfig) -> Learner:
    learner = Learner(model, config, 5)
    train(run, learner, stream, seed=5, evaluate=evaluate, progress=False)
    return learner


def saved(run: Path) -> dict[str, np.ndarray]:
    """All arrays of the latest checkpoint."""
    newest = latest(run)
    assert newest is not None
    opened = {path.stem: open_checkpoint(path) for path in sorted(newest.glob("*.safetensors"))}
    return {f"{file}/{name}": found.read(name) for file, found in opened.items() for name in found.entries}


def require_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"average": Average(decay=0.9)},
        {"lora": LoRA(rank=2, modules=("**.query", "**.up")), "optimizer": Adam(type="adam", weight_decay=0.1)},
        {"optimizer": Adam(epsilon=1e-6, epsilon_rule="tensorflow"), "z_loss": 0.01},
        {"optimizer": Adafactor(min_dim_size_to_factor=8, epsilon1=1e-4), "label_smoothing": 0.0},
    ],
    ids=["average", "lora", "tensorflow", "adafactor"],
)
def test_it_ends_where_a_cpu_does(tmp_path: Path, build, stream, config, gpu, changes: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    config = config.model_copy(update={"optimizer": Adam(epsilon=1e-6), "learning_rate": 1e-3} | changes)
    go(tmp_path / "cpu", build(dropout=0.0), stream(), config)
    learner = go(tmp_path / "gpu", moved(build(dropout=0.0), gpu), stream(), config)
    require_close(saved(tmp_path / "gpu"), saved(tmp_path / "cpu"))
    state = [value for own in learner.optimizer.state.values() for value in own.values() if torch.is_tensor(value)]
    average = learner.average._average if learner.average else []
    assert state
    assert all(isinstance(tensor, OnGPU) for tensor in (*learner.model.parameters(), *state, *average))
    assert read_state(latest(tmp_path / "gpu")).environment["device_name"] == gpu.type  # type: ignore[arg-type]


def test_it_goes_on_bit_for_bit(tmp_path: Path, build, stream, config, gpu) -> None:  # type: ignore[no-untyped-def]
    config = config.model_copy(update={"average": Average(decay=0.9)})
    go(tmp_path / "whole", moved(build(), gpu), stream(), config)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", moved(build(), gpu), stream(fails_at=3), config)
    go(tmp_path / "cut", moved(build(), gpu), stream(), config)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    newest = latest(tmp_path / "whole")
    assert newest is not None
    assert arrays(tmp_path / "cut" / newest.relative_to(tmp_path / "whole")) == arrays(newest)
    assert read_state(newest).exact


def test_another_device_is_said_and_marks_the_run(tmp_path: Path, build, stream, config, gpu, caplog) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, build(), stream(fails_at=3), config)
    go(tmp_path, moved(build(), gpu), stream(), config)
    assert f"resuming will not be bit for bit: device was cpu, is {gpu.type}" in caplog.text
    changes = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert {"step": 2, "key": "environment.device", "old": "cpu", "new": gpu.type} in changes
    newest = latest(tmp_path)
    assert newest is not None
    assert not read_state(newest).exact


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torchs_functions_give_the_gradients_of_our_own(build, stream, config, monkeypatch, precision: str) -> None:  # type: ignore[no-untyped-def]
    batch = next(stream().iterate(Position()))[1]

    def gradients() -> dict[str, torch.Tensor]:
        model = build(dropout=0.0)
        learner = Learner(model, config.model_copy(update={"precision": precision, "clip_norm": None}), 5)
        learner.gradient([batch], 1, 0)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    own = gradients()
    for room in (attention, dropout, linear, norm, module):
        monkeypatch.setattr(room, "has_own_functions", lambda x: False)
    found = gradients()
    assert found.keys() == own.keys()
    tolerance = 1e-5 if precision == "float32" else 0.03
    largest = max(float(g.abs().max()) for g in own.values())
    for name, gradient in own.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.0, atol=largest * tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_are_compiled_once_for_all_shapes(build, stream, config, gpus_functions, precision: str) -> None:  # type: ignore[no-untyped-def]
    from torch._dynamo.testing import CompileCounterWithBackend

    model = build(dropout=0.1).train()
    batches = list(islice(stream().iterate(Position()), 6))
    objective = Learner(model, config, 5).objective

    def losses() -> list[float]:
        found = []
        for number, (_, batch) in enumerate(batches):
            torch.manual_seed(number)
            with autocast(precision, CPU):
                loss = objective(model, batch).loss
            loss.backward()
            found.append(float(loss.detach()))
        return found

    expected = losses()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    counter = CompileCounterWithBackend("eager")
    compile_layers(model, backend=counter)
    assert losses() == pytest.approx(expected, rel=1e-5 if precision == "float32" else 1e-2)
    assert counter.frame_count <= 4  # of each kind of layer one, and one more where a size was 1
    for own, gradient in zip((p.grad for p in model.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(own, gradient, rtol=1e-3, atol=1e-3 if precision == "float32" else 0.1)


# --- which device -----------------------------------------------------------------------------------------------------


def sees(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "get_device_name", lambda index: f"Model {index}")


@pytest.mark.parametrize(
    ("wanted", "there", "local_rank", "expected"),
    [
        ("auto", 0, None, "cpu"),
        ("auto", 2, None, "cuda:0"),
        ("cpu", 2, None, "cpu"),
        ("cuda", 2, None, "cuda:0"),
        ("cuda:1", 2, None, "cuda:1"),
        ("cuda", 2, 1, "cuda:1"),
        ("auto", 2, 1, "cuda:1"),
        ("auto", 0, 1, "cpu"),
    ],
)
def test_devices_have_names(monkeypatch, wanted: str, there: int, local_rank: int | None, expected: str) -> None:  # type: ignore[no-untyped-def]
    sees(monkeypatch, there)
    if local_rank is not None:
        for name, value in {"WORLD_SIZE": "6", "RANK": "5", "LOCAL_RANK": str(local_rank)}.items():
            monkeypatch.setenv(name, value)
    assert choose_device(wanted, "training.device") == torch.device(expected)


@pytest.mark.parametrize(
    ("wanted", "there", "ranks", "message"),
    [
        ("cuda", 0, 1, r"no GPU\n  where: training.device\n  expected: cuda:0 \(cuda\)\n  found: none that torch"),
        ("cuda:2", 2, 1, r"no such GPU\n.*\n  expected: cuda:2 .*\n  found: cuda:0 \(Model 0\), cuda:1 \(Model 1\)"),
        ("auto", 2, 4, r"no such GPU\n.*\n  expected: cuda:3 \(auto\)\n(.*\n)*  to do: start as many ranks"),
        ("cuda:1", 2, 4, r"the ranks would share one GPU"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(monkeypatch, wanted: str, there: int, ranks: int, message: str) -> None:  # type: ignore[no-untyped-def]
    sees(monkeypatch, there)
    for name, value in {"WORLD_SIZE": ranks, "RANK": ranks - 1, "LOCAL_RANK": ranks - 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=message):
        choose_device(wanted, "training.device")


@pytest.mark.parametrize("changes", [{"device": "gpu"}, {"device": "cuda:"}, {"device": "cpu", "compile": True},
                                     {"device": "cpu", "deterministic": False}])  # fmt: skip
def test_keys_that_make_no_sense(changes: dict[str, Any]) -> None:
    sound = {"steps": 4, "learning_rate": 0.1, "schedule": {"type": "constant"}, "evaluate_every": 2}
    sound |= {"checkpoint_every": 2}
    TrainingConfig.model_validate(sound)
    with pytest.raises(ValidationError, match=r"device|changes nothing on a CPU"):
        TrainingConfig.model_validate(sound | changes)


# --- by the public verbs ----------------------------------------------------------------------------------------------


def test_the_device_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sees(monkeypatch, 0)
    text(tmp_path, monkeypatch, training={"device": "cuda"})
    with pytest.raises(ConfigError, match="there is no GPU"):
        api.train("c.yaml", progress=False)
    assert not Path("run").exists()


def text(folder: Path, patch: pytest.MonkeyPatch, training: dict[str, Any]) -> None:
    """A training of reversing words."""
    patch.chdir(folder)
    words = tone_speech.words("abcdefgh", 60, 1)
    for split, own in (("train", words), ("valid", words[:8])):
        Path(f"{split}.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in own), "utf-8")
    files = {"train": {"tsv": "train.tsv"}, "validation": {"tsv": "valid.tsv"}}
    config = {
        "run": "run", "model": TINY, "vocabularies": {"shared": {"type": "characters"}},
        "data": {"tasks": {"t": {"splits": files}}, "batch_tokens": 100, "max_length": 20},
        "decoding": {"beam_size": 2},
        "training": {
            "steps": 4, "learning_rate": 0.001, "schedule": {"type": "constant"}, "evaluate_every": 2,
            "checkpoint_every": 2, "log_every": 2, "precision": "float32",
            "optimizer": {"type": "adamw", "epsilon": 1e-6}, **training,
        },
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(config))


def on_gpu(patch: pytest.MonkeyPatch, device: torch.device) -> list[torch.Size]:
    """What asks for a GPU gets the pretended one; the shapes of all tensors that are made there."""
    found, make, made = devices.choose_device, OnGPU.__new__, []

    def counted(cls: Any, held: torch.Tensor) -> OnGPU:
        made.append(held.shape)
        return make(cls, held)

    patch.setattr(devices, "choose_device", lambda wanted, key: device if wanted == "cuda" else found(wanted, key))
    patch.setattr(OnGPU, "__new__", staticmethod(counted))
    return made


def both(patch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The records of the training of ``c.yaml`` on the CPU, then on the pretended GPU."""
    api.train("c.yaml", ["run=cpu"], progress=False)
    with pretended_gpu(patch) as device:
        patch.setattr(devices, "choose_device", lambda wanted, key: device)
        api.train("c.yaml", ["run=gpu"], progress=False)
    return [timeless(Path(run)) for run in ("cpu", "gpu")]


def require_alike(cpu: list[dict[str, Any]], gpu: list[dict[str, Any]]) -> None:
    for own, other in zip(cpu, gpu, strict=True):
        assert own.pop("kind") == other.pop("kind")
        assert own == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("level", [None, "word", "sequence"])
def test_text_is_trained_evaluated_and_shipped(tmp_path: Path, monkeypatch, level: str | None) -> None:  # type: ignore[no-untyped-def]
    text(tmp_path, monkeypatch, training={"lora": {"rank": 2}} if level is None else {"average": {"decay": 0.9}})
    if level is not None:
        api.train("c.yaml", ["run=teacher", "training.steps=2"], progress=False)
        settings = yaml.safe_load(Path("c.yaml").read_text())
        settings["training"]["distillation"] = {"teachers": ["teacher/model"], "level": level}
        Path("c.yaml").write_text(yaml.safe_dump(settings))
    require_alike(*both(monkeypatch))
    cpu, gpu = (open_checkpoint(Path(run) / "model/model.safetensors") for run in ("cpu", "gpu"))
    require_close({n: gpu.read(n) for n in gpu.entries}, {n: cpu.read(n) for n in cpu.entries})


def test_speech_is_trained_and_evaluated(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for seed, (split, count) in enumerate((("train", 16), ("validation", 4))):
        tone_speech.write_list(tmp_path, split, tone_speech.words("abcd", count, seed), seed)
    config = {
        "run": "run", "family": "deepspeech",
        "model": {"n_hidden": 16, "sample_rate": 8000, **{f"dropout_{i}": 0.0 for i in (1, 2, 3, 5)}},
        "vocabularies": {"text": {"type": "alphabet"}},
        "data": {
            "type": "speech", "batch_size": 8,
            "tasks": {"tones": {"splits": {split: {"files": f"{split}.csv"} for split in ("train", "validation")}}},
        },
        "training": {
            "steps": 4, "learning_rate": 0.001, "schedule": {"type": "constant"}, "evaluate_every": 2,
            "checkpoint_every": 2, "log_every": 2, "precision": "float32",
            "optimizer": {"type": "adam", "epsilon": 1e-6, "epsilon_rule": "tensorflow"},
        },
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(config))
    require_alike(*both(monkeypatch))


def test_text_is_translated_and_scored(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    text(tmp_path, monkeypatch, training={})
    api.train("c.yaml", progress=False)
    search: dict[str, Any] = {"beam_size": 3, "nbest": 2}
    lines = ["abc", "hgf", "", "dddd"]
    own = api.translate(["run", "run/model"], lines, **search)
    scores = api.evaluate("run", split="validation")
    with pretended_gpu(monkeypatch) as device:
        made = on_gpu(monkeypatch, device)
        other = api.translate(["run", "run/model"], lines, device="cuda", **search)
        translated = len(made)
        assert api.evaluate("run", split="validation", device="cuda")["t"] == pytest.approx(scores["t"])
    assert 100 < translated < len(made) - 100
    assert [[t for t, _ in best] for best in other] == [[t for t, _ in best] for best in own]
    for best, expected in zip(other, own, strict=True):
        assert [s for _, s in best] == pytest.approx([s for _, s in expected], rel=1e-4)


def test_recordings_are_transcribed_and_scored(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    write_model(model := tmp_path / "bundle")
    tone_speech.write_list(tmp_path, "test", tone_speech.words("abcd", 4, 1), 1)
    files = sorted(tmp_path.rglob("*.wav"))
    own, scores = api.transcribe(model, files), api.evaluate(model, "test.csv")
    with pretended_gpu(monkeypatch) as device:
        made = on_gpu(monkeypatch, device)
        other = api.transcribe(model, files, device="cuda")
        transcribed = len(made)
        found = api.evaluate(model, "test.csv", device="cuda")
    assert 20 < transcribed < len(made) - 20
    assert any(row["text"] for row in own)
    assert [row["text"] for row in other] == [row["text"] for row in own]
    assert {k: v == pytest.approx(scores[k], rel=1e-4) for k, v in found.items()} == dict.fromkeys(scores, True)


@pytest.mark.parametrize("verb", ["translate", "evaluate", "transcribe"])
@pytest.mark.parametrize(("wanted", "message"), [("cuda", "there is no GPU"), ("gpu", "this names no device")])
def test_a_device_that_is_not_there_is_an_error_of_the_verb(
    tmp_path: Path, monkeypatch, verb: str, wanted: str, message: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "a.tsv").write_text("a\ta\n")
    asked: Any = {
        "translate": lambda: api.translate([tmp_path], ["a"], device=wanted),
        "evaluate": lambda: api.evaluate(tmp_path, tmp_path / "a.tsv", device=wanted),
        "transcribe": lambda: api.transcribe(tmp_path, ["a.wav"], device=wanted),
    }[verb]
    with pytest.raises(ConfigError, match=message) as caught:
        asked()
    assert caught.value.where == "--device"
