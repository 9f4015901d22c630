"""The arithmetic of reference/ctranslate2.md §4, and the values that it cannot keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.errors import ConfigError, FormatError
from warmstart.export import layouts, plan, quantize
from warmstart.export.quantize import Encoder, Loss, Storage, storage_of
from warmstart.formats.checkpoint import Entry


def encoded(values, storage: Storage) -> Encoder:
    array = np.asarray(values, np.float32)
    encoder = Encoder("w", array.shape, storage, report=True)
    if storage.scale == "whole":
        encoder.set_largest(float(np.abs(array).max()))
    encoder.block(array, 0)
    return encoder


def int8_rows(weight):
    """Values and scales of ``weight`` in one block."""
    encoder = Encoder("w", weight.shape, Storage("int8", "rows"))
    encoder.block(weight, 0)
    return encoder.values, encoder.scale


def test_vectors():
    values, scale = int8_rows(np.array([[-10, -3, 5, 2], [0, 0, 0, 0]], np.float32))
    assert values.tolist() == [[-127, -38, 64, 25], [0, 0, 0, 0]]
    assert scale.tolist() == pytest.approx([12.7, 1])
    half = int8_rows(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32))[0]
    assert half.tolist() == [[127, 0, 2, 2, 0, -2]]
    whole = encoded([[-10, -3, 5, 2]], Storage("int16", "whole"))
    assert (whole.values.tolist(), whole.scale) == ([[-1024, -307, 512, 205]], pytest.approx(102.4))


def test_rows_so_small_that_their_scale_would_be_infinite():
    values, scale = int8_rows(np.full((1, 4), 1e-40, np.float32))
    assert np.isfinite(scale).all()
    assert np.abs(values).max() <= 127


def test_convolutions_have_a_scale_for_each_first_index():
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    values, scale = int8_rows(w)
    assert (values.shape, scale.shape) == ((3, 4, 5), (3,))
    assert np.array_equal(values, int8_rows(w.reshape(3, -1))[0].reshape(3, 4, 5))


def test_blocks_and_layouts_make_no_difference():
    w = np.random.default_rng(0).normal(size=(700, 130)).astype(np.float32)
    whole = int8_rows(w)
    encoder = Encoder("w", w.shape, Storage("int8", "rows"))
    transposed = np.ascontiguousarray(w.T).T
    for start in range(0, 700, 300):
        encoder.block(transposed[start : start + 300], start)
    assert np.array_equal(encoder.values, whole[0])
    assert np.array_equal(encoder.scale, whole[1])


def test_a_weight_of_zeros_stays_zeros_in_int16():
    encoder = encoded(np.zeros((2, 3)), Storage("int16", "whole"))
    assert (encoder.values.any(), encoder.scale) == (False, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", [Storage("int8", "rows"), Storage("int16", "whole"), Storage("float16"),
                                     Storage("bfloat16")])  # fmt: skip
def test_what_is_not_finite(value, storage):
    with pytest.raises(FormatError, match="not finite") as caught:
        encoded([[1, value], [2, 3]], storage)
    assert caught.value.where == "w"


def test_overflow_is_no_infinity():
    with pytest.raises(FormatError, match="do not fit into float16"):
        encoded([[70000.0, 1]], Storage("float16"))
    with pytest.raises(FormatError, match="do not fit into bfloat16"):
        encoded([[np.finfo(np.float32).max, 1]], Storage("bfloat16"))


def test_losses_are_measured():
    w = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    for storage, largest in (
        (Storage("int8", "rows"), 0.02),
        (Storage("int16", "whole"), 0.003),
        (Storage("float16"), 0.002),
    ):
        loss = Loss.of(encoded(w, storage).sums)
        assert 0 < loss.relative < loss.largest < largest
    assert Loss.of(encoded(w, Storage("float32")).sums).largest == 0


def test_what_is_stored_as_what():
    def stored(quantization: str, dtype: str = "float32", rank: int = 2) -> list[str]:
        return [storage_of(dtype, rank, weight, quantization).dtype for weight in (True, False)]

    assert stored("int8", "float16") == ["int8", "float16"]
    assert stored("int8_bfloat16") == ["int8", "bfloat16"]
    assert stored("int8_float32", "float16") == ["int8", "float32"]
    assert stored("int16", "float16") == ["int16", "float32"]
    assert stored("none", "bfloat16") == ["bfloat16", "bfloat16"]
    assert stored("float16", rank=0) == ["float32", "float32"]
    assert stored("float16", "int32") == ["int32", "int32"]


def test_packed_words_are_not_rounded():
    assert quantize.already_quantized("int32", True, "int8")
    assert quantize.already_quantized("int32", True, "float16")
    assert not quantize.already_quantized("int32", True, "none")


@pytest.mark.parametrize("quantization", ["int8", "int16", "float16"])
@pytest.mark.parametrize("array", ["decoder_l2_ffn_W1", "encoder_Wemb"])
def test_the_array_is_named_and_nothing_is_written(quantization, array, tmp_path):
    contents = arrays(OPTIONS)
    contents[array][0, 3] = np.nan
    folder = write(tmp_path / "marian", OPTIONS, contents)
    with pytest.raises(FormatError, match=r"decoder/layer_1/ffn/linear_0/weight|encoder/embeddings_0/weight"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize=quantization)
    assert [p.name for p in tmp_path.iterdir()] == ["marian"]
    api.convert(folder, tmp_path / "ct2", "ctranslate2")  # without a quantization the bits stay


@pytest.mark.parametrize("quantization", ["int8", "int8_float32", "int16", "float32", "float16"])
def test_what_a_quantization_leaves_as_it_is_must_be_numbers_too(quantization, tmp_path):
    contents = arrays(OPTIONS)
    contents["decoder_l2_ffn_b1"][0, 3] = np.inf
    folder = write(tmp_path / "marian", OPTIONS, contents)
    with pytest.raises(FormatError, match="not finite") as error:
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize=quantization)
    assert error.value.where == "decoder/layer_1/ffn/linear_0/bias"
    assert not (tmp_path / "ct2").exists()


def test_a_quantization_is_for_ctranslate2(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    with pytest.raises(ConfigError, match="does not go with --to marian"):
        api.convert(folder, tmp_path / "m", "marian", quantize="int8")


def test_a_report_of_every_array(tmp_path):
    from warmstart.reports.conversion import conversion_text

    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    facts = api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8", report=True)
    by_name = {loss["array"]: loss for loss in facts["losses"]}
    assert by_name["decoder/embeddings/weight"]["dtype"] == "int8"
    assert 0 < by_name["decoder/embeddings/weight"]["relative"] < 0.01
    assert by_name["decoder/projection/bias"]["largest"] == 0
    assert "decoder/embeddings/weight" in conversion_text(facts)
    assert json.loads((tmp_path / "ct2/conversion.json").read_text())["options"]["quantization"] == "int8"


def test_arrays_of_4_gib_are_refused_before_anything_is_read():
    row = plan.Row("decoder/embeddings/weight", (2**20, 1024), "float32", ("x",), layouts_op(), 0, Storage("float32"))
    conversion = plan.Conversion((row,), plan.Ledger(), plan.Options(), "model.bin", ("TransformerSpec", 7))
    with pytest.raises(FormatError, match=r"decoder/embeddings/weight is of 4,294,967,296 bytes"):
        layouts.check(conversion, layouts.entries_of(conversion, {}))
    small = layouts.Written((Entry("x", (2**20, 1023), "float32"),), {})
    layouts.check(conversion, small)


def layouts_op():
    from warmstart.spec.ops import Identity

    return Identity()
