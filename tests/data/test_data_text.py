"""Reading text: compression by content, and what is wrong named by line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
import zstandard

from warmstart.data.text import ParallelFiles, read_lines, read_parallel, read_standard_input
from warmstart.errors import DataError

TEXT = "перша\nдруга\r\n\n ostatnia\u2028x"
LINES = ["перша", "друга", "", " ostatnia\u2028x"]


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "zstd-frames"])
def test_compression_is_known_by_content(kind: str, tmp_path: Path) -> None:
    data = TEXT.encode()
    compress = zstandard.ZstdCompressor().compress
    content = {
        "plain": data,
        "gzip": gzip.compress(data),
        "zstd": compress(data),
        "zstd-frames": compress(data[:7]) + compress(data[7:]),
    }[kind]
    path = tmp_path / "text"
    path.write_bytes(content)
    assert list(read_lines(path)) == LINES


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_truncated_compression_is_an_error(compress: object, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(compress(TEXT.encode() * 100)[:-6])  # type: ignore[operator]
    with pytest.raises(DataError, match=r"truncated|damaged") as caught:
        list(read_lines(path))
    assert caught.value.where == str(path)


def test_lines_longer_than_a_chunk_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\n".encode() + b"x" * 3_000_000 + b"\nb\n")
    assert [len(line) for line in read_lines(path)] == [1, 3_000_000, 1]


def test_standard_input_is_read_as_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffперша\r\nдру\rга\n\n".encode()), "ascii"))
    assert list(read_standard_input()) == ["перша", "дру\rга", ""]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xffbad\n")))
    with pytest.raises(DataError) as caught:
        list(read_standard_input())
    assert caught.value.where == "standard input, line 2"


def test_invalid_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"fine\n\xffbad\n")
    with pytest.raises(DataError) as caught:
        list(read_lines(path))
    assert caught.value.where == f"{path}, line 2"


@pytest.mark.parametrize(("source", "target"), [("a\nb\nc\n", "x\n"), ("a\n", "x\ny\nz\n")])
def test_unequal_length_says_both_counts(source: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(source)
    (tmp_path / "t").write_text(target)
    with pytest.raises(DataError) as caught:
        list(read_parallel(ParallelFiles(tmp_path / "s", tmp_path / "t")))
    assert caught.value.found == f"{source.count(chr(10))} and {target.count(chr(10))} lines"


def test_parallel_files_and_tsv_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a\nb\n")
    (tmp_path / "t").write_text("x\ny\n")
    (tmp_path / "tsv").write_text("a\tx\nb\ty\n")
    pairs = [("a", "x"), ("b", "y")]
    assert list(read_parallel(ParallelFiles(tmp_path / "s", tmp_path / "t"))) == pairs
    assert list(read_parallel(ParallelFiles(tsv=tmp_path / "tsv"))) == pairs


@pytest.mark.parametrize("line", ["alone", "a\tb\tc", ""])
def test_wrong_columns_name_the_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "tsv"
    path.write_text(f"a\tb\n{line}\n")
    with pytest.raises(DataError, match="columns") as caught:
        list(read_parallel(ParallelFiles(tsv=path)))
    assert caught.value.where == f"{path}, line 2"


def test_missing_file_and_half_a_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        list(read_lines(tmp_path / "none"))
    for files in ({"source": tmp_path}, {}, {"source": tmp_path, "target": tmp_path, "tsv": tmp_path}):
        with pytest.raises(DataError, match="either"):
            ParallelFiles(**files)
