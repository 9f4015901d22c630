"""Augmentations: each one's effect, measured; syntax; purity."""

from __future__ import annotations

import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from speech_files import make_csv, tone

from warmstart.data.speech.augment.augmenter import Augmentations
from warmstart.data.speech.augment.base import Augmentation, Moment, peak_dbfs
from warmstart.data.speech.augment.parse import TABLE, parse_augmentations
from warmstart.data.speech.augment.ranges import Numbers, Wholes
from warmstart.data.speech.augment.spectrogram import cubic, resized
from warmstart.data.speech.batches import Augmented, MixedSpeech
from warmstart.data.speech.config import SpeechDataConfig
from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.split import SpeechSplit, encode_speech
from warmstart.errors import ConfigError, DataError
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

Floats = NDArray[np.float32]
MFCC = Mfcc()


def moment(clock: float = 0.0, seed: int = 0, needed: int = 1) -> Moment:
    return Moment(Generator(Philox(key=seed)), clock, MFCC, needed)


def one(text: str) -> Augmentation:
    (augmentation,) = parse_augmentations([text])
    return augmentation


def apply(text: str, values: Floats, **options: float) -> Floats:
    before = values.copy()
    result = one(text).apply(values, moment(**options))  # type: ignore[arg-type]
    np.testing.assert_array_equal(values, before)  # the given values stay
    assert result.dtype == np.float32
    return result


def level(values: Floats, hertz: float) -> float:
    """dB of the spectrum at ``hertz``."""
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values))))
    return 20 * np.log10(spectrum[round(hertz * len(values) / 16000)] + 1e-9)


@pytest.mark.parametrize(("snr", "layers"), [(3.0, 1), (20.0, 1), (-5.0, 2)])
def test_overlay_reaches_its_ratio(tmp_path: Path, snr: float, layers: int) -> None:
    noise = make_csv(tmp_path, [(0.2, ""), (0.5, "")], "noise.csv")  # 200 and 210 Hz
    speech = tone(1.0, 3000, peak=0.3)
    mixed = apply(f"overlay[source={noise},snr={snr},layers={layers}]", speech)
    assert peak_dbfs(mixed) == pytest.approx(peak_dbfs(speech), abs=0.01)
    scale = np.dot(mixed, speech) / np.dot(speech, speech)  # the peak was brought back
    rest = mixed - scale * speech
    assert peak_dbfs(scale * speech) - peak_dbfs(rest) == pytest.approx(snr, abs=0.35)
    assert np.abs(rest[-800:]).max() > 0.1 * np.abs(rest).max()  # until the end


def test_overlay_of_nothing(tmp_path: Path) -> None:
    silent = make_csv(tmp_path, [(0.0, "")], "silent.csv")
    with pytest.raises(DataError, match="nothing to overlay"):
        Augmentations.of([f"overlay[source={silent}]"]).check(MFCC)
    noise = make_csv(tmp_path, [(0.2, ""), (0.5, "")], "noise.csv")
    Augmentations.of([f"overlay[source={noise}]"]).check(MFCC)
    (tmp_path / "noise-1.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="cannot be used") as caught:
        Augmentations.of([f"overlay[source={noise}]"]).check(MFCC)
    assert caught.value.problems[0].where == str(tmp_path / "noise-1.wav")
    with pytest.raises(DataError, match="cannot read the CSV"):
        Augmentations.of(["overlay[source=missing.csv]"]).check(MFCC)


def test_codec_loses_what_the_bitrate_cannot_hold() -> None:
    speech = (tone(1.0, 300) + tone(1.0, 7000, seed=1))[:-7] / 2
    lowest, low, high = (apply(f"codec[bitrate={rate}]", speech) for rate in (2400, 6000, 128000))
    default = apply("codec", speech)
    assert {len(sound) for sound in (lowest, low, high, default)} == {len(speech)}
    for sound, near in ((lowest, 8), (default, 8), (low, 3)):
        assert level(sound, 300) == pytest.approx(level(speech, 300), abs=near)
        assert level(sound, 7000) < level(speech, 7000) - 20
    assert level(high, 7000) == pytest.approx(level(speech, 7000), abs=3)
    np.testing.assert_array_equal(default, apply("codec", speech))


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("size", [0, 1, 959, 961])
def test_codec_takes_any_length_and_rate(rate: int, size: int) -> None:
    mfcc = Mfcc(sample_rate=rate, win_ms=40)
    sound = one("codec").apply(tone(1.0, rate=rate)[:size], Moment(moment().random, 0.0, mfcc))
    assert sound.shape == (size,)
    assert np.isfinite(sound).all()


def test_codec_names_its_extra_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    Augmentations.of(["codec"]).check(MFCC)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"av is not installed\n  to do: pip install 'warmstart\[codec\]'"):
        Augmentations.of(["codec"]).check(MFCC)


def test_reverb_echoes_with_its_delay_and_decay() -> None:
    click = np.zeros(16000, np.float32)
    click[0] = 0.5
    echo = apply("reverb[delay=20,decay=6]", click)
    places = [int(20 * prime / 17 * 16) for prime in (17, 19, 23, 29, 31)]
    assert set(places) <= set(np.flatnonzero(echo).tolist())
    assert peak_dbfs(echo) == pytest.approx(peak_dbfs(click), abs=1e-3)
    ratios = [echo[place] / echo[0] * 6 for place in places]  # one of six copies echoes here
    np.testing.assert_allclose(ratios, 10 ** (-6 / 20), rtol=1e-4)
    assert echo[2 * places[0]] / echo[places[0]] == pytest.approx(10 ** (-6 / 20), rel=1e-4)


def test_resample_takes_the_upper_half_away() -> None:
    speech = (tone(1.0, 1000) + tone(1.0, 6000, seed=1))[:-3] / 2
    narrow = apply("resample[rate=8000]", speech)
    assert len(narrow) == len(speech)
    assert level(narrow, 1000) == pytest.approx(level(speech, 1000), abs=0.5)
    assert level(narrow, 6000) < level(speech, 6000) - 40
    np.testing.assert_array_equal(apply("resample[rate=16000]", speech), speech)


@pytest.mark.parametrize("dbfs", [3.0103, -10.0, -40.0])
def test_volume_reaches_its_level(dbfs: float) -> None:
    assert peak_dbfs(apply(f"volume[dbfs={dbfs}]", tone(0.3))) == pytest.approx(dbfs, abs=1e-3)
    assert np.abs(apply("volume[dbfs=20]", tone(0.3))).max() == 1.0
    assert apply("volume", np.zeros(9, np.float32)).tolist() == [0] * 9


def spectrum_of(hertz: float = 1000.0) -> Floats:
    return MFCC.spectrogram(tone(1.0, hertz))


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_pitch_moves_frequencies(factor: float) -> None:
    power = spectrum_of()
    moved = apply(f"pitch[pitch={factor}]", power)
    assert moved.shape == power.shape
    assert moved.mean(0).argmax() == pytest.approx(power.mean(0).argmax() * factor, abs=1)
    if factor < 1:
        assert not moved[:, int(257 * factor) :].any()


@pytest.mark.parametrize(("options", "needed", "frames"), [("factor=1.1", 1, 44), ("factor=0.5", 1, 98)])
def test_tempo_changes_the_frames(options: str, needed: int, frames: int) -> None:
    assert apply(f"tempo[{options}]", spectrum_of(), needed=needed).shape == (frames, 257)
    assert apply("tempo[factor=0.5,max_time=1500]", spectrum_of()).shape == (75, 257)
    assert apply("tempo[factor=10]", spectrum_of(), needed=30).shape == (30, 257)
    assert apply("tempo[factor=2]", np.zeros((0, 257), np.float32)).shape == (0, 257)


def test_warp_moves_the_middle_and_keeps_the_edges() -> None:
    values = np.add.outer(np.arange(60.0), np.arange(40.0) / 100).astype(np.float32)
    warped = apply("warp[num_t=1,num_f=1,warp_t=0.5,warp_f=0]", values, seed=3)
    np.testing.assert_allclose(warped[[0, -1]], values[[0, -1]], atol=1e-4)
    np.testing.assert_allclose(warped[:, [0, -1]], values[:, [0, -1]], atol=1e-4)
    flow = values - warped  # values are their own place in time
    t, f = np.unravel_index(np.abs(flow).argmax(), flow.shape)
    assert 20 < t < 40
    assert 10 < f < 30
    assert 1 < np.abs(flow).max() < 45
    shifts = [np.abs(values - apply("warp[warp_t=0.5]", values, seed=s)).max() for s in range(200)]
    assert np.median(shifts) == pytest.approx(0.6745 * 0.5 * 60 / 4, rel=0.25)  # half of a normal's values are nearer
    np.testing.assert_allclose(apply("warp[wt=0]", values), values, atol=1e-4)


def test_masks_take_their_share() -> None:
    power = np.ones((100, 257), np.float32)
    for text, axis, size in (("frequency_mask[n=3,size=2]", 0, 2), ("time_mask[n=3,size=200]", 1, 10)):
        masked = apply(text, power)
        lines = (masked == 0).all(axis)
        assert masked.sum() == power.size - lines.sum() * power.shape[axis]
        assert size <= lines.sum() <= 3 * size
    assert (apply("frequency_mask[n=2,size=9999]", power) == 0).all(0).sum() >= 256
    assert (apply("time_mask[n=1]", power) == 0).all(1).sum() == 1  # ten milliseconds are half a frame
    silent = apply("time_mask[domain=signal,n=1,size=100]", np.ones(16000, np.float32))
    assert (silent == 0).sum() == 1600
    assert (apply("time_mask[domain=features,n=1,size=60]", np.ones((50, 26), np.float32)) == 0).all(1).sum() == 3
    assert apply("time_mask", np.ones((1, 257), np.float32)).all()


def test_noise_has_its_strength() -> None:
    ones = np.full((400, 257), 7.0, np.float32)
    assert (apply("dropout[rate=0.05]", ones) == 0).mean() == pytest.approx(0.05, abs=0.003)
    assert (apply("dropout[rate=0.4]", ones) == 0).mean() == pytest.approx(0.4, abs=0.01)
    added = apply("add[stddev=2]", ones) - ones
    assert (added.mean(), added.std()) == (pytest.approx(0, abs=0.03), pytest.approx(2, rel=0.02))
    factors = apply("multiply[stddev=0.3]", ones) / ones
    assert (factors.mean(), factors.std()) == (pytest.approx(1, abs=0.01), pytest.approx(0.3, rel=0.02))
    assert apply("add[domain=spectrogram,stddev=50]", ones).min() == 0
    assert apply("multiply[domain=spectrogram]", ones).min() == 0


def test_defaults_are_coquis() -> None:
    random = moment().random
    expected = {
        "codec": {"bitrate": 3200},
        "reverb": {"delay": 20, "decay": 10},
        "resample": {"rate": 8000},
        "volume": {"dbfs": 3.0103},
        "tempo": {"factor": 1.1},
        "warp": {"num_t": 1, "num_f": 1, "warp_t": 0.1, "warp_f": 0},
        "frequency_mask": {"n": 3, "size": 2},
        "time_mask": {"n": 3, "size": 10, "domain": "spectrogram"},
        "dropout": {"rate": 0.05, "domain": "spectrogram"},
        "add": {"stddev": 5, "domain": "features"},
        "multiply": {"stddev": 5, "domain": "features"},
    }
    assert set(TABLE) == {"overlay", "pitch", *expected}
    for name, values in expected.items():
        augmentation = one(name)
        assert augmentation.p == 1.0
        for key, value in values.items():
            found = getattr(augmentation, key)
            assert (found.pick(0.3, random) if isinstance(found, Numbers) else found) == value
    assert one("pitch").pitch == Numbers(1.075, 1.075, 0.125)  # type: ignore[attr-defined]
    overlay = one("overlay[source=noise.csv]")
    assert (overlay.snr, overlay.layers) == (Numbers(3, 3), Wholes(1, 1))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "values"),
    [("3", (3, 3, 0)), ("1:2", (1, 2, 0)), ("5~2", (5, 5, 2)), ("-10:-40~5", (-10, -40, 5)), ("1e1:.5", (10, 0.5, 0))],
)
def test_ranges(text: str, values: tuple[float, float, float]) -> None:
    numbers = Numbers.parse(text)
    assert (numbers.start, numbers.end, numbers.radius) == values
    random = moment().random
    for clock in (0.0, 0.25, 1.0):
        middle = values[0] + clock * (values[1] - values[0])
        picked = [numbers.pick(clock, random) for _ in range(500)]
        assert min(picked) >= middle - values[2]
        assert max(picked) <= middle + values[2]
        assert max(picked) - min(picked) == pytest.approx(2 * values[2], rel=0.05)


def test_whole_ranges_are_rounded() -> None:
    layers = Wholes.parse("1:4~1")
    assert {layers.count(1.0, moment(seed=s).random) for s in range(60)} == {3, 4, 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("volum", "did you mean volume?"),
        ("Volume[dbfs=3]", "NAME or NAME"),
        ("volume[db=3]", "volume has no key 'db'\n  where: volume[db=3]\n  expected: p, dbfs"),
        ("volume[3]", "'3' is no key=value"),
        ("volume[dbfs=1:2:3]", "'1:2:3' is none of v, v~r, a:b or a:b~r"),
        ("volume[dbfs=nan]", "with numbers"),
        ("volume[dbfs=1,dbfs=2]", "given dbfs twice"),
        ("codec[bitrate=3.5]", "whole numbers"),
        ("codec[bitrate=48000:2000]", "'48000:2000' reaches from 2000 to 48000; 2400 to 256000 is allowed"),
        ("resample[rate=8000~7990]", "'8000~7990' reaches from 10 to 15990; 100 to 192000 is allowed"),
        ("tempo[p=1.5]", "p of tempo: '1.5' reaches from 1.5 to 1.5; 0 to 1 is allowed"),
        ("tempo[p=0:1]", "no single number"),
        ("pitch[domain=signal]", "pitch has no key 'domain'"),
        ("add[domain=audio]", "none of signal, spectrogram, features"),
        ("overlay[snr=3]", "overlay needs source="),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_augmentations(["reverb", text])
    assert message in str(caught.value).replace("\n- ", "\n")


def test_all_errors_come_at_once() -> None:
    parse_augmentations(["add[p=0.1,domain=signal,stddev=0~0.5]"])  # from Coqui's manual
    with pytest.raises(ConfigError) as caught:
        parse_augmentations(["volum", "add[a=1,b=2]", "reverb"])
    assert len(caught.value.problems) == 3


def test_interpolation() -> None:
    line = np.arange(12.0, dtype=np.float32)[:, None]
    np.testing.assert_allclose(resized(line, 24, 0)[:, 0], np.minimum(np.arange(24) / 2, 11))
    np.testing.assert_allclose(cubic(5, 33).sum(1), 1)
    np.testing.assert_allclose((cubic(5, 33) @ np.arange(5.0))[8:25], np.linspace(1, 3, 17), atol=0.11)


def make_split(tmp_path: Path) -> SpeechSplit:
    path = make_csv(tmp_path, [(0.4 + 0.1 * i, "ab") for i in range(6)])
    return encode_speech(read_csv(path), Alphabet("ab"), MFCC, tmp_path / "cache")


def test_examples_are_a_pure_function_of_seed_epoch_and_example(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    texts = ["volume[p=0.5,dbfs=0~20]", "time_mask[domain=signal]", "pitch", "dropout", "add[p=0.7,stddev=1]"]
    augmented = Augmented(Augmentations.of(texts), 1.0)
    stream = MixedSpeech([split], batch_frames=100, seed=3, augmented=augmented)
    steps = list(islice(stream.iterate(), 12))
    assert stream.ahead > 0
    alone = MixedSpeech([split], batch_frames=100, seed=3, augmented=augmented)
    alone.ahead = 0  # threads change nothing
    resumed = alone.iterate(steps[4][0])
    for (_, batch), (_, other) in zip(steps[5:], resumed, strict=False):
        assert batch.features.tobytes() == other.features.tobytes()

    def example(epoch: int) -> list[bytes]:
        per_epoch = len(stream.window_batches(0, 0))
        batches = [batch for _, batch in steps[epoch * per_epoch : (epoch + 1) * per_epoch]]
        return [
            row[:n].tobytes()
            for batch in batches
            for i, row, n in zip(batch.indices, batch.features, batch.feature_lengths, strict=True)
            if i == 2
        ]

    assert len(example(0)) == len(example(1)) == 1
    assert example(0) != example(1)


def test_what_is_not_drawn_changes_nothing_and_needs_no_audio(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    for file in tmp_path.glob("*.wav"):
        file.unlink()
    for texts in ([], ["volume[p=0]", "pitch[p=0]"]):
        np.testing.assert_array_equal(Augmentations.of(texts)(split, 1, 5, 0.0), split.features(1))
    added = Augmentations.of(["add[stddev=1]"])(split, 1, 5, 0.0)
    assert (added - split.features(1)).std() == pytest.approx(1, rel=0.1)
    with pytest.raises(DataError, match="cannot be read"):
        Augmentations.of(["volume"])(split, 1, 5, 0.0)


def test_one_more_augmentation_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    alone = Augmentations.of(["pitch", "time_mask"])(split, 0, 9, 0.0)
    again = Augmentations.of(["pitch", "time_mask", "volume[p=0]", "add[p=0]"])(split, 0, 9, 0.0)
    np.testing.assert_array_equal(alone, again)


def test_a_tempo_leaves_enough_frames_for_the_transcript(tmp_path: Path) -> None:
    path = make_csv(tmp_path, [(1.0, "ab" * 15)])
    split = encode_speech(read_csv(path), Alphabet("ab"), MFCC, tmp_path / "cache")
    assert len(Augmentations.of(["tempo[factor=3]"])(split, 0, 1, 0.0)) == 30


def test_the_clock_runs_over_the_configured_epochs(tmp_path: Path) -> None:
    make_csv(tmp_path, [(0.4, "ab")] * 4)
    tasks = {"t": {"splits": {"train": {"files": str(tmp_path / "train.csv")}}}}
    options = {"tasks": tasks, "augment": ["volume[dbfs=0:-60]"], "augment_epochs": 4}
    config = SpeechDataConfig.model_validate(options)
    splits = {"t": config.read("t", "train", Alphabet("ab"), MFCC, tmp_path / "cache")}
    stream = config.stream(splits, seed=1)
    loudness = [float(batch.features[:, :, 0].mean()) for _, batch in islice(stream.iterate(), 6)]
    assert all(a > b + 1 for a, b in pairwise(loudness[:5]))
    assert loudness[4] == pytest.approx(loudness[5], abs=0.01)
    with pytest.raises(ValueError, match="augment_epochs goes with"):
        SpeechDataConfig.model_validate({"tasks": tasks, "augment": ["volume[dbfs=0:-60]"]})
    with pytest.raises(ValueError, match="augment_epochs goes with"):
        SpeechDataConfig.model_validate({"tasks": tasks, "augment": ["volume"], "augment_epochs": 4})
    with pytest.raises(ValueError, match="did you mean volume"):
        SpeechDataConfig.model_validate({"tasks": tasks, "augment": ["volum"]})
