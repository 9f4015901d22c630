"""Secrets leave no text."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.errors import Problem, WarmstartError
from warmstart.redact import HARMLESS, redact

SHOWN = [
    ("https://u:p@h/x", "https://***@h/x"),
    ("https://u:p@ss@h:80/x", "https://***@h:80/x"),
    ("https://u:pa/ss@h/x", "https://***@h/x"),
    ("https://token@h/x", "https://***@h/x"),
    ("s3://KEY:sec/ret@bucket/x", "s3://***@bucket/x"),
    ("https://h/x?token=a&download=1", "https://h/x?token=***&download=1"),
    ("https://h/x?X-Amz-Signature=ab&X-Amz-Date=1#frag", "https://h/x?X-Amz-Signature=***&X-Amz-Date=1#frag"),
    ("https://h/x?download=1;token=a", "https://h/x?download=***"),
    ("https://h/x#access_token=a", "https://h/x#access_token=***"),
    ("Authorization: Bearer abc.def", "Authorization: ***"),
    ("{'authorization': 'Basic dTpw'}", "{'authorization': ***"),
    ("X-Amz-Security-Token: abc", "X-Amz-Security-Token: ***"),
    ("Cookie: session=1", "Cookie: ***"),
    ("no such thing: hf_abcdefghijklmnop", "no such thing: hf_***"),
    ("sent Bearer abcdefghij", "sent Bearer ***"),
]
PLAIN = [
    "http://h:8080/dir@best",
    "hf://owner/name@refs%2Fpr%2F1/x",
    "hf:owner/name@rev/model.npz",
    "gs://t5-data/pretrained_models/t5_small/checkpoint_1000000",
    "https://h/x?versionId=3",
    f"https://h/x#sha256={'ab' * 32}",
    "array 'encoder.layers.0' at C:/x, 3 = 4; a=b",
    "did you mean `key=value`? a:b@c",
    "me@example.org: hello",
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(f"error: ({text}")[8:] == shown, "also inside a sentence"


@pytest.mark.parametrize("text", PLAIN)
def test_the_rest_stays(text: str) -> None:
    assert redact(text) == text


SECRET = st.text("abcXYZ0189-_.~+/=@:%", min_size=4, max_size=30).map(lambda s: "s3cr3t" + s)
NAME = st.text("abcdefghijklmnopqrstuvwxyzABC-_0", min_size=1, max_size=20).filter(lambda n: n.lower() not in HARMLESS)


@given(SECRET, NAME, st.sampled_from(["https", "http", "s3", "ftp"]))
def test_wherever_it_is(secret: str, name: str, scheme: str) -> None:
    for url in (
        f"{scheme}://user:{secret}@host/path/x.npz",
        f"{scheme}://user:{quote(secret, safe='')}@host:80/path/x.npz",
        f"{scheme}://host/x?a=1&{name}={secret}",
        f"{scheme}://host/x?{name}={quote(secret, safe='')}&b=2",
    ):
        assert "s3cr3t" not in redact(url)
        assert "s3cr3t" not in str(WarmstartError("cannot be read", where=url, found=OSError(f"at {url}: no")))
        assert "s3cr3t" not in str(Problem("wrong", todo=f"ask {url}"))


def test_errors_keep_no_secret_in_their_attributes() -> None:
    url = "https://u:p4ss@h/x?sig=5ign"
    error = WarmstartError(f"cannot open {url}", where=url, found=url, todo=url, problems=[Problem(url, where=url)])
    assert "p4ss" not in repr((error.args, error.problem, error.problems))
    assert "5ign" not in repr((error.args, error.problem, error.problems))
