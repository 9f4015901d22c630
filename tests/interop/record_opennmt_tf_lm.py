"""Records what ``ct2-opennmt-tf-converter`` writes of small language models of OpenNMT-tf, and what they answer.

As ``record_opennmt_tf.py``, with what that one installs:

    python tests/interop/record_opennmt_tf_lm.py tests/golden/ctranslate2-converters/opennmt-tf-lm.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from record_opennmt_tf import digests, fill, tokens

UNITS, HEADS, INNER, LAYERS, ROWS = 16, 4, 24, 2, 24
# A sentence whose tokens are scored: rows of the vocabulary, ``<s>`` first.
SENTENCE = (1, 5, 9, 4, 20, 23, 7, 2)
# kind → arguments of the decoder, and of the model, as text
KINDS = {
    "learned": ("ffn_activation=onmt.layers.gelu, position_encoder_class=LEARNED", ""),
    "sinusoidal": ("", ""),
    "after": ("pre_norm=False, position_encoder_class=LEARNED", ""),
    "untied": ("", "reuse_embedding=False"),
    "without biases": ("mha_bias=False, output_layer_bias=False, position_encoder_class=LEARNED", ""),
}
_LEARNED = "lambda: onmt.layers.PositionEmbedder(maximum_position=20)"


def description(kind: str) -> str:
    """``model_description.py``."""
    decoder, model = (f", {text}".replace("LEARNED", _LEARNED) if text else "" for text in KINDS[kind])
    sizes = f"{LAYERS}, num_units={UNITS}, num_heads={HEADS}, ffn_inner_dim={INNER}, num_sources=0"
    made = f"onmt.decoders.SelfAttentionDecoder({sizes}{decoder})"
    call = f"onmt.models.LanguageModel({made}, embedding_size={UNITS}{model})"
    return f"import opennmt as onmt\n\n\ndef model():\n    return {call}\n"


def record(kind: str, folder: Path) -> dict[str, object]:
    import tensorflow as tf

    space: dict[str, object] = {}
    exec(description(kind), space)
    model = space["model"]()  # type: ignore[operator]
    (folder / "words.txt").write_text("\n".join(tokens(ROWS)) + "\n", "utf-8")
    model.initialize({"vocabulary": str(folder / "words.txt")})
    shapes, written = fill(model, folder), digests(model, folder)
    ids = tf.constant([SENTENCE[:-1]])
    logits = model({"ids": ids, "length": tf.constant([ids.shape[1]]), "ids_out": ids})[0]["logits"]
    scores = tf.gather(tf.nn.log_softmax(logits)[0], SENTENCE[1:], batch_dims=1)
    return {"shapes": shapes, "digests": written, "scores": [round(float(s), 6) for s in scores]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for kind in KINDS:
            (Path(place) / kind).mkdir()
            found[kind] = record(kind, Path(place) / kind)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=None, sort_keys=True) + "\n")
