"""Lists of recordings: CSV, sample databases, tar files; their damage."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from speech_files import RATE, make_tar, sdb_bytes, tone, wav_bytes

from warmstart.data.speech.audio import read_audio
from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.read import read_examples
from warmstart.data.speech.sdb import read_sdb
from warmstart.data.speech.tar import read_tar
from warmstart.errors import DataError

HEADER = "wav_filename,wav_filesize,transcript\n"
CLIPS = [wav_bytes(tone(0.1 + 0.1 * i, 300 + i)) for i in range(3)]
TEXTS = ["one, two", "трёх", "ثلاثة"]


def test_csv_as_coqui_reads_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["a.wav", "sub/b c.wav", "d.wav"]):
        (tmp_path / name).write_bytes(CLIPS[i])
    rows = f'a.wav,10,"one, two",x\nsub/b c.wav,7,трёх,y\n{tmp_path / "d.wav"},0,"ثلاثة",z\n'
    text = "\ufeffwav_filename,wav_filesize,transcript,label\n" + rows
    for end in ("\n", "\r\n"):
        (tmp_path / "list.csv").write_bytes(text.replace("\n", end).encode())
        examples = read_examples(tmp_path / "list.csv")
        assert [example.transcript for example in examples] == TEXTS
        assert [example.size for example in examples] == [10, 7, 0]
        assert [len(read_audio(example.audio, RATE)) for example in examples] == [1600, 3200, 4800]


def test_csv_elsewhere_and_without_sizes_or_transcripts(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/a.wav").write_bytes(CLIPS[0])
    (tmp_path / "list.csv").write_text("wav_filename,transcript\na.wav,x\n")
    (example,) = read_csv(tmp_path / "list.csv", folder=tmp_path / "audio")
    assert (example.size, example.transcript) == (0, "x")
    (tmp_path / "noise.csv").write_text("wav_filename\naudio/a.wav\n")
    assert read_csv(tmp_path / "noise.csv", transcripts=False)[0].transcript is None


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(CLIPS[0])
    rows = "a.wav,1,fine\nmissing.wav,1,x\na.wav,big,x\na.wav,1\n,1,x\nother.wav,1,y\n"
    (tmp_path / "list.csv").write_text(HEADER + rows)
    with pytest.raises(DataError, match="3 bad rows") as caught:
        read_csv(tmp_path / "list.csv")
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("wav_filesize is no number of bytes", f"{tmp_path / 'list.csv'}, line 4"),
        ("a row has too few columns", f"{tmp_path / 'list.csv'}, line 5"),
        ("a row names no file", f"{tmp_path / 'list.csv'}, line 6"),
    ]


def test_a_comma_without_quotes_cuts_no_transcript(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(HEADER + 'a.wav,1,"yes, no"\nb.wav,1,yes,\nc.wav,1,yes, no\n')
    with pytest.raises(DataError, match="1 bad row") as caught:
        read_csv(path)
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == ("a row has too many columns", f"{path}, line 4")
    path.write_text(HEADER + 'a.wav,1,"yes, no"\nb.wav,1,yes,\n')
    assert [example.transcript for example in read_csv(path)] == ["yes, no", "yes"]  # as a spreadsheet leaves it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column transcript, wav_filename"),
        (b"wav_filename,wav_filesize\n", "no column transcript"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (HEADER.encode() + b"a.wav,1,\xe9\n", "not UTF-8"),
        (HEADER.encode() + b'a.wav,1,"' + b"x" * 200_000 + b'"\n', "no CSV"),
        (HEADER.encode() + b"a\0.wav,1,x\n", "bad rows|no CSV"),
    ],
)
def test_no_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path / "list.csv")


def test_missing_lists_and_other_kinds(tmp_path: Path) -> None:
    for name in ("none.csv", "none.sdb", "none.tar"):
        with pytest.raises(DataError, match="cannot read"):
            read_examples(tmp_path / name)
    with pytest.raises(DataError, match="no list of recordings"):
        read_examples(tmp_path / "list.txt")


def test_sample_database(tmp_path: Path) -> None:
    path = tmp_path / "a.sdb"
    path.write_bytes(sdb_bytes(list(zip(CLIPS, TEXTS, strict=True))))
    examples = read_examples(path)
    assert [example.transcript for example in examples] == TEXTS
    assert [example.size for example in examples] == [len(clip) for clip in CLIPS]
    for example, clip in zip(examples, CLIPS, strict=True):
        assert example.audio.read() == clip
        np.testing.assert_array_equal(read_audio(example.audio, RATE), read_audio(clip, RATE))
    assert read_sdb(path, transcripts=False)[0].transcript is None


def ogg_packets(data: bytes) -> list[bytes]:
    packets, rest, at = [], b"", 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + len(lacing)
        for size in lacing:
            rest += data[at : at + size]
            at += size
            if size < 255:
                packets.append(rest)
                rest = b""
    return packets


def packed_opus(samples: int, seconds: float) -> tuple[bytes, bytes]:
    """(Ogg Opus by libsndfile, its packets as Coqui packs them)."""
    ogg = wav_bytes(tone(seconds), format="OGG", subtype="OPUS")
    packets = ogg_packets(ogg)[2:]
    packed = struct.pack(">IIBB", 2 * samples, RATE, 1, 2)
    return ogg, packed + b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)


def test_packed_opus_of_sample_databases(tmp_path: Path) -> None:
    ogg, packed = packed_opus(samples=15_000, seconds=1.0)
    path = tmp_path / "a.sdb"
    path.write_bytes(sdb_bytes([(packed, "a"), (packed[:-40], "b")], "application/vnd.mozilla.opus"))
    whole, cut = read_sdb(path)
    samples = read_audio(whole.audio, RATE)
    assert len(samples) == 15_000
    skipped = struct.unpack("<H", ogg_packets(ogg)[0][10:12])[0] // 3  # of 48 kHz: what the encoder needs to begin
    np.testing.assert_allclose(samples[skipped + 2000 :], read_audio(ogg, RATE)[2000 : 15_000 - skipped], atol=2e-3)
    with pytest.raises(DataError, match="packed Opus is damaged"):
        read_audio(cut.audio, RATE)


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"1234567890", struct.pack(">IIBB", 2**32 - 1, RATE, 1, 2), struct.pack(">IIBB", 100, 7, 1, 2)),
        *(struct.pack(">IIBB", 100, RATE, 1, 2) + b"\0\0", struct.pack(">IIBB", 100, RATE, 1, 2) + b"\xff\xffab"),
        struct.pack(">IIBB", 100, RATE, 1, 2) + b"\0\1\xff",
    ],
)
def test_damaged_packed_opus(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "a.sdb"
    path.write_bytes(sdb_bytes([(packed, "a")], "application/vnd.mozilla.opus"))
    with pytest.raises(DataError):
        read_audio(read_sdb(path)[0].audio, RATE)


def test_damaged_sample_databases(tmp_path: Path) -> None:
    good = sdb_bytes(list(zip(CLIPS, TEXTS, strict=True)))
    path = tmp_path / "a.sdb"
    meta = int.from_bytes(good[8:16], "big")
    huge = (2**63).to_bytes(8, "big")
    cases = [
        good[:4],
        good[:40],
        b"SAMPLEDX" + good[8:],
        good[:8] + huge + good[16:],
        good[: 16 + meta] + huge + good[24 + meta :],
        good[: 24 + meta] + huge + good[32 + meta :],
        good[: 32 + meta] + b"\xff\xff\xff\xff" + good[36 + meta :],
        good[: 36 + meta] + b"\xff\xff\xff\xff" + good[40 + meta :],
        good[:16] + b"[" * meta + good[16 + meta :],
        good[:-3000],
    ]
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_sdb(path)
        assert caught.value.where == str(path)
    for old, new in ((b"audio/wav", b"audio/xyz"), (b'"speech"', b'"sneeze"'), (b'"transcript"', b'"transcribe"')):
        assert old in good
        path.write_bytes(good.replace(old, new))
        with pytest.raises(DataError, match=r"unknown kind|has no|damaged"):
            read_sdb(path)


def test_sample_databases_that_hold_more_than_they_count(tmp_path: Path) -> None:
    """As a writer leaves one that is stopped, or one whose number of samples is wrong."""
    good = sdb_bytes(list(zip(CLIPS, TEXTS, strict=True)))
    path, counts = tmp_path / "a.sdb", 16 + int.from_bytes(good[8:16], "big")
    path.write_bytes(good[:counts] + bytes(16) + good[counts + 16 :])
    with pytest.raises(DataError, match="never completed"):
        read_sdb(path)
    path.write_bytes(good[: counts + 8] + (2).to_bytes(8, "big") + good[counts + 16 :])
    with pytest.raises(DataError, match="behind the last of its 2 samples"):
        read_sdb(path)
    path.write_bytes(sdb_bytes([]))
    assert read_sdb(path) == []


def test_sample_databases_survive_any_byte(tmp_path: Path) -> None:
    good = sdb_bytes(list(zip(CLIPS, TEXTS, strict=True)))
    random = np.random.default_rng(1)
    path = tmp_path / "a.sdb"
    errors = 0
    for _ in range(200):
        data = bytearray(good)
        data[int(random.integers(170))] = int(random.integers(256))
        path.write_bytes(data)
        try:
            for example in read_sdb(path):
                assert example.audio.offset + len(example.audio.read()) <= len(good)
        except DataError:
            errors += 1
    assert 20 < errors < 200


def test_web_dataset(tmp_path: Path) -> None:
    parts = [(f"set/{i}.wav", CLIPS[i]) for i in range(3)] + [(f"set/{i}.txt", TEXTS[i].encode()) for i in (2, 0, 1)]
    path = make_tar(tmp_path / "a.tar", [*parts, ("set/0.json", b"{}"), ("README", b"x")])
    examples = read_examples(path)
    assert [example.transcript for example in examples] == TEXTS
    assert [example.audio.read() for example in examples] == CLIPS
    assert [len(read_audio(example.audio, RATE)) for example in examples] == [1600, 3200, 4800]
    noise = make_tar(tmp_path / "noise.tar", [("a.flac", wav_bytes(tone(0.1), format="FLAC"))])
    assert len(read_tar(noise, transcripts=False)) == 1


def test_a_mark_of_byte_order_is_no_letter_of_a_transcript(tmp_path: Path) -> None:
    """In byte mode it would be learnt."""
    path = make_tar(tmp_path / "a.tar", [("a.wav", CLIPS[0]), ("a.txt", b"\xef\xbb\xbfone\r\n")])
    assert [example.transcript for example in read_tar(path)] == ["one"]


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.zst"])
def test_a_compressed_tar_is_decompressed_once(tmp_path: Path, ending: str) -> None:
    parts = [part for k, clip in enumerate(CLIPS) for part in ((f"{k}.wav", clip), (f"{k}.txt", b"x"))]
    plain = make_tar(tmp_path / "a.tar", parts)
    data, path = plain.read_bytes(), tmp_path / f"b.{ending}"
    path.write_bytes(zstandard.compress(data) if ending == "tar.zst" else gzip.compress(data))
    examples = read_examples(path)
    assert [example.audio.read() for example in examples] == [example.audio.read() for example in read_tar(plain)]
    assert [example.where for example in examples] == [f"{path}, {k}" for k in range(len(CLIPS))]
    stored = examples[0].audio.path
    assert stored.read_bytes() == data
    before = stored.stat().st_mtime_ns
    assert read_examples(path)[0].audio.path == stored
    assert stored.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        read_examples(path)


def test_other_compressions_say_what_to_do(tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "a.tar", [("a.wav", CLIPS[0]), ("a.txt", b"x")])
    (tmp_path / "b.tar").write_bytes(lzma.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"xz -d b\.tar"):
        read_examples(tmp_path / "b.tar")


def test_bad_parts_of_a_tar_are_all_named(tmp_path: Path) -> None:
    parts = [("a.wav", CLIPS[0]), ("../b.wav", CLIPS[0]), ("/c.wav", CLIPS[0]), ("a.wav", b""), ("d.txt", b"\xff")]
    path = make_tar(tmp_path / "a.tar", parts)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("e.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="5 bad parts") as caught:
        read_tar(path)
    assert [problem.what for problem in caught.value.problems] == [
        "a name leaves the directory",
        "a name leaves the directory",
        "there are two of this name",
        "a transcript is not UTF-8",
        "this is no whole file",
    ]
    lonely = make_tar(tmp_path / "b.tar", [("a.wav", CLIPS[0]), ("b.txt", b"x"), ("c.wav", b""), ("c.txt", b"")])
    with pytest.raises(DataError, match="2 bad parts") as caught:
        read_tar(lonely)
    assert {problem.where for problem in caught.value.problems} == {f"{lonely}, a", f"{lonely}, b"}


def test_damaged_tars(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.wav", CLIPS[0]), ("a.txt", b"x")])
    good = path.read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(path, "a.wav")
    for content in (b"", b"no tar" * 200, good[:700], good[:2000], buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"no tar file|bad parts"):
            read_tar(path)
    random = np.random.default_rng(2)
    for _ in range(100):
        data = bytearray(good)
        data[int(random.integers(512))] = int(random.integers(256))
        path.write_bytes(data)
        try:
            for example in read_tar(path):
                example.audio.read()
        except DataError:
            pass


def test_a_tar_that_ends_before_its_end(tmp_path: Path) -> None:
    """``tarfile`` stops at a damaged header as at the end: the others would not be missed."""
    clips = [(f"{k}.wav", clip) for k, clip in enumerate(CLIPS)]
    good = make_tar(tmp_path / "a.tar", clips).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        last = archive.getmember("2.wav")
    path = tmp_path / "b.tar"
    for content, message in (
        (
            good[: last.offset + 10] + b"\xff" + good[last.offset + 11 :],
            f"no header of a member at byte {last.offset:,}",
        ),
        (good[: last.offset + 100], f"no header of a member at byte {last.offset:,}"),
        (good + good, "more than zeros behind it"),
        (good[: last.offset], "without the zeros that mark the end"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_tar(path, transcripts=False)
    path.write_bytes(good[: last.offset] + bytes(tarfile.BLOCKSIZE))
    assert len(read_tar(path, transcripts=False)) == 2


def test_fixture_lists(fixtures: Path) -> None:
    arabic = read_csv(fixtures / "data/arabic-digits-8k/arabic_digits.csv")
    assert len(arabic) == 1308
    assert len({example.transcript for example in arabic}) == 11
    digits = read_csv(fixtures / "fixtures/coqui-digits-en/expected/test.csv", folder=fixtures / "data/fsdd")
    assert len(digits) == 300
    assert digits[0].transcript == "six"
    russian = fixtures / "fixtures/stt-smoke/russian_sample_data"
    samples = read_audio(russian / "ru.wav", RATE)
    assert len(samples) == pytest.approx(5.667 * RATE, rel=1e-3)
