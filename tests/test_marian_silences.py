"""What Marian does silently on continuing and on ``--pretrained-model`` is right here, or an error with what to do.

The cases are those of the recorded Marian 1.12.42 runs (``fixtures/marian-continue``), by their names there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from warmstart import api
from warmstart.bootstrap.plan import Plan
from warmstart.data.plan import Position
from warmstart.errors import WarmstartError
from warmstart.formats.marian import write_marian
from warmstart.training.run import prepare
from warmstart.training.standing import Standing
from warmstart.training.state import State
from warmstart.trainings import job_of, open_for_run


@pytest.fixture
def source(fixtures, tmp_path, monkeypatch) -> Path:
    """A writable copy of the 2,500-update model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fixtures / "fixtures" / "marian-en-ru-names", "parent", copy_function=shutil.copyfile)
    for path in [Path("parent"), *Path("parent").rglob("*")]:
        path.chmod(0o755)
    return Path("parent")


def plan(**keys: Any) -> Plan:
    """The plan of a child of ``parent``; ``start`` keys are given flat, ``model`` and ``vocabularies`` by name."""
    tree: dict[str, Any] = {"run": "run"}
    for key in ("model", "vocabularies"):
        if key in keys:
            tree[key] = keys.pop(key)
    tree["start"] = {"source": "parent@last", **keys}
    Path("c.yaml").write_text(yaml.safe_dump(tree))
    return api.plan("c.yaml")


def refusal(**keys: Any) -> str:
    with pytest.raises(WarmstartError) as caught:
        plan(**keys)
    return str(caught.value)


def initialised(made: Plan) -> list[str]:
    return [r.target for r in made.rows if r.action == "initialise"]


def loaded_slots(made: Plan) -> int:
    return sum(s.action == "load" for s in made.slots)


def vocabulary_file(name: str, change: str) -> str:
    """The parent's vocabulary, ``grown`` by two or ``reordered``."""
    lines = Path("parent", name).read_text("utf-8").splitlines()
    tokens = [line.rpartition(": ")[0] for line in lines]
    if change == "grown":
        tokens += ['"1"', '"2"']
    if change == "reordered":
        tokens = tokens[:2] + tokens[:1:-1]
    Path(f"{change}.{name}").write_text("".join(f"{t}: {k}\n" for k, t in enumerate(tokens)), "utf-8")
    return f"{change}.{name}"


def test_i_a_continue_carries_optimizer_and_step_and_refuses_the_foreign_shuffle(source):
    assert "say `data: start`" in refusal(mode="continue")
    made = plan(mode="continue", data="start")
    assert (made.step, loaded_slots(made), made.coverage) == (2500, 176, 1.0)


def test_i_b_without_the_optimizer_file(source):
    (source / "model.npz.optimizer.npz").unlink()
    assert "the source has no optimizer state to carry" in refusal(mode="continue", data="start")
    made = plan(mode="continue", data="start", optimizer="fresh")
    assert (made.step, loaded_slots(made)) == (2500, 0)


def test_i_c_without_progress(source):
    (source / "model.npz.progress.yml").unlink()
    assert "the source does not say its step" in refusal(mode="continue", data="start")
    assert plan(mode="continue", data="start", step="fresh").step == 0


def test_i_d_model_alone(source):
    for suffix in ("optimizer.npz", "progress.yml", "yml"):
        (source / f"model.npz.{suffix}").unlink()
    text = refusal(mode="continue")
    assert all(f"`{key}`" in text for key in ("optimizer: fresh", "step: fresh", "data: start"))
    assert plan(mode="init").coverage == 1.0


def test_i_e_another_corpus_begins_at_its_start(source):
    assert plan(mode="continue", data="start").answers[0].data == "start"


def test_i_f_another_architecture_is_refused_not_ignored(source):
    text = refusal(mode="continue", data="start", model={"d_model": 64, "d_ff": 256, "decoder_layers": 1})
    assert "has another shape" in text
    assert "would be left behind" in text
    text = refusal(mode="continue", data="start", model={"num_heads": 8})
    assert "num_heads is 8 in the model and 4 in the source" in text


def test_i_a_the_schedule_goes_on_as_the_source_says(source):
    """Its options and progress are read; the log shows the rate of update 2,511 in its line of update 2,510."""
    sides = {"source": "parent/test.en", "target": "parent/test.ru"}
    training = {"steps": 2600, "learning_rate": 0.002, "schedule": {"type": "source"}}
    config = {
        "run": "run",
        "start": {"source": "parent@last", "mode": "continue", "data": "start"},
        "data": {"tasks": {"t": {"splits": dict.fromkeys(("train", "validation"), sides)}}},
        "training": training | {"evaluate_every": 1, "checkpoint_every": 1},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    job = job_of(open_for_run("c.yaml", (), 0.0))
    parts = prepare(job, write=False, progress=False)
    assert parts.schedule is not None
    assert parts.schedule["epoch"] == 6
    state = State(job.plan.step, Position(), job.seed, schedule=parts.schedule)
    assert f"{Standing(job.training, state).rate(2511):.4e}" == "8.9264e-04"
    del config["start"]
    config["vocabularies"] = {side: {"type": "characters"} for side in ("source", "target")}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(WarmstartError, match="no source says a schedule"):
        job_of(open_for_run("c.yaml", (), 0.0))


def test_i_g_no_step_left(source):
    Path("c.yaml").write_text(
        yaml.safe_dump(
            {
                "run": "run",
                "start": {"source": "parent@last", "mode": "continue", "data": "start"},
                "data": {
                    "tasks": {
                        "t": {
                            "splits": {
                                s: {"source": "parent/test.en", "target": "parent/test.ru"}
                                for s in ("train", "validation")
                            }
                        }
                    }
                },
                "training": {
                    "steps": 2500,
                    "learning_rate": 1e-3,
                    "schedule": {"type": "constant"},
                    "evaluate_every": 1,
                    "checkpoint_every": 1,
                },
            }
        )
    )
    with pytest.raises(WarmstartError, match="all steps are done already"):
        api.train("c.yaml", progress=False)
    assert not Path("run/model").exists()


def test_i_h_optimizer_left_on_purpose(source):
    assert loaded_slots(plan(mode="continue", data="start", optimizer="fresh")) == 0


def test_i_k_a_vocabulary_file_that_grew(source):
    with (source / "vocab.ru.yml").open("a") as stream:
        stream.write("\nxx: 38\nyy: 39\n")
    text = refusal(mode="continue", data="start")
    assert "38 tokens, one for each row" in text
    assert "found: 40 tokens" in text


def test_i_m_smoothing_is_no_key_here(source):
    assert "unknown key training.exponential_smoothing" in _config_error({"exponential_smoothing": 0.01})


def _config_error(training: dict[str, Any]) -> str:
    Path("c.yaml").write_text(yaml.safe_dump({"run": "run", "training": training}))
    with pytest.raises(WarmstartError) as caught:
        api.plan("c.yaml")
    return str(caught.value)


def test_ii_a_and_b_init_copies_all_matrices(source):
    made = plan(mode="init")
    assert [r.action for r in made.rows] == ["load"] * 88
    assert (made.step, made.slots) == (0, ())


def test_ii_c_deeper_encoder(source):
    text = refusal(mode="init", model={"encoder_layers": 3})
    assert text.count("is missing in the source") == 16
    made = plan(mode="init", strict=False, model={"encoder_layers": 3})
    assert len(initialised(made)) == 16
    assert all(n.startswith("encoder.layers.2.") for n in initialised(made))


def test_ii_d_shallower_decoder_names_what_is_left(source):
    assert "26 arrays of the source would be left behind" in refusal(mode="init", model={"decoder_layers": 1})
    made = plan(mode="init", strict=False, model={"decoder_layers": 1})
    assert len(made.leftovers) == 26
    assert len(made.rows) == 62


@pytest.mark.parametrize(("key", "value"), [("d_model", 64), ("d_ff", 256)])
def test_ii_e_and_f_other_sizes(source, key, value):
    assert "has another shape" in refusal(mode="init", model={key: value})


def test_ii_g_tying_what_was_not_tied(source):
    text = refusal(mode="init", strict=False, model={"tied_embeddings": "target"})
    assert "tied in the model, but not in the source" in text


def test_ii_h_pre_norm_from_post_norm(source):
    text = refusal(mode="init", model={"norm": "pre"})
    assert "norm is pre in the model and post in the source" in text
    assert "encoder.norm.weight is missing" in text


def test_ii_i_and_k_new_vocabularies(source):
    new = {"target": {"type": "file", "path": vocabulary_file("vocab.ru.yml", "grown")}}
    assert "the target vocabulary is not the source's" in refusal(mode="init", vocabularies=new)
    made = plan(mode="init", vocabulary="rows", vocabularies=new)
    assert {r.reason for r in made.rows if r.action == "load rows"} == {"38 of 40 rows by token, 2 new"}


def test_ii_j_same_size_other_order(source):
    new = {"target": {"type": "file", "path": vocabulary_file("vocab.ru.yml", "reordered")}}
    assert "the target vocabulary is not the source's" in refusal(mode="init", vocabularies=new)
    made = plan(mode="init", vocabulary="rows", vocabularies=new)
    row = next(r for r in made.rows if r.target == "decoder.embedding.weight")
    assert row.rows == (0, 1, *range(37, 1, -1))


def test_ii_l_forced_sizes(source):
    assert "model.source_vocab_size is not the vocabulary's size" in refusal(
        mode="init", model={"source_vocab_size": 91}
    )


def test_ii_m_missing_file(source):
    shutil.rmtree(source)
    assert "parent" in refusal(mode="init")


def test_ii_n_the_run_exists_already(source):
    Path("run/model").mkdir(parents=True)
    Path("run/config.yaml").write_text("run: run\nseed: 7\n")
    plan(mode="use")
    with pytest.raises(WarmstartError, match="the run directory holds another run"):
        api.train("c.yaml")


def test_ii_o_another_type(source):
    with np.load(source / "model.npz") as z:
        arrays = {n: z[n] for n in z.files if not n.startswith("special:")}
        options = yaml.safe_load(z["special:model.yml"].tobytes().rstrip(b"\0"))
    write_marian(source / "model.npz", yaml.safe_dump({**options, "type": "s2s"}), arrays.items())
    text = refusal(mode="init")
    assert "type: 's2s' is not supported" in text


def test_ii_p_only_an_encoder_without_options(source, fixtures):
    with np.load(source / "model.npz") as z:
        np.savez(source / "part.npz", **{n: z[n] for n in z.files if n.startswith("encoder_")})
    for path in source.glob("model.npz*"):
        path.unlink()
    (source / "part.npz").rename(source / "model.npz")
    size = {"d_model": 96, "num_heads": 4, "d_ff": 384, "encoder_layers": 2, "decoder_layers": 2, "activation": "swish"}
    files = ["parent/vocab.en.yml", "parent/vocab.ru.yml"]
    made = plan(mode="init", strict=False, dialect="marian", files=files, model=size)
    assert sum(r.action == "load" for r in made.rows) == 33
    assert len(initialised(made)) == 55
