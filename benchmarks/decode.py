"""How fast a test set is decoded: our search, ``generate()`` of transformers and CTranslate2, on the same weights.

All three get the same token ids and give token ids, in one process with the same number of threads; rounds
take turns. Medians, ratios to transformers, and the fraction of the measured matrix-product rate.

    python benchmarks/decode.py MODEL SOURCE          # a Marian directory or a bundle, and a file of lines
    python benchmarks/decode.py --random small        # random weights, sentences of equal length
    pip install transformers ctranslate2              # the peers; --only warmstart measures without them
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from warmstart.bundle.layout import storages, write_bundle
from warmstart.bundle.model import Model, open_model
from warmstart.export.convert import convert_model
from warmstart.inference.load import load_module
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.models.registry import family
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import sinusoids
from warmstart.vocabularies.marian_yaml import MarianVocabulary

SIZES = {  # d_model, d_ff, heads, layers, vocabulary
    "small": (256, 1024, 4, 3, 4000),
    "base": (512, 2048, 8, 6, 32000),
}
PEERS = ("transformers", "ctranslate2")
BATCH_SIZES = (32, 64, 128, 256, 512)  # transformers is given its best
RATE_SIZE = 1536
Ids = list[list[int]]
Decode = Callable[[int], Ids]
clock = time.perf_counter


class Task(NamedTuple):
    """What everybody decodes: ``sources`` with end tokens, outputs at most ``factor`` times as long."""

    model: Model
    sources: Ids
    factor: float
    normalize: float


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of square matrix products, the best of several."""
    a, b = (torch.randn(RATE_SIZE, RATE_SIZE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        seconds.append(timed(lambda: torch.mm(a, b))[0])
    return 2 * RATE_SIZE**3 / min(seconds) / 1e9


def ours(task: Task, precision: str) -> Decode:
    """Our search on the module, prepared anew in every round."""
    module, target = load_module(task.model), task.model.vocabularies["target"]

    def decode(beam: int) -> Ids:
        config = SearchConfig(beam_size=beam, normalize=task.normalize, max_length_factor=task.factor)
        scorer = TransformerScorer(module, precision)
        found = translate_ids([scorer], task.sources, config, eos_id=target.eos_id, unk_id=target.unk_id)
        return [list(best[0].ids) for best in found]

    return decode


def transformers_model(model: Model) -> Any:
    """The same network as a MarianMTModel (post-norm) or a PegasusForConditionalGeneration (pre-norm).

    The target vocabulary grows by one row, of zeros and never put out: it starts the decoder. Their table of
    positions and their layer norms' epsilon are overwritten with Marian's.
    """
    import transformers

    module, c = load_module(model), model.config
    assert isinstance(c, TransformerConfig)
    if c.positions != "sinusoidal" or not c.normalize_keys:
        sys.exit("transformers has no such model: it needs sinusoidal positions and normalised keys")
    start, one = c.target_vocab_size, c.tied_embeddings == "all"
    sizes: dict[str, Any] = {
        "d_model": c.d_model, "encoder_layers": c.encoder_layers, "decoder_layers": c.decoder_layers,
        "encoder_attention_heads": c.num_heads, "decoder_attention_heads": c.num_heads,
        "encoder_ffn_dim": c.d_ff, "decoder_ffn_dim": c.decoder_d_ff or c.d_ff, "scale_embedding": c.scale_embeddings,
        "activation_function": {"relu": "relu", "swish": "silu", "gelu": "quick_gelu"}[c.activation],
        "vocab_size": start + 1 if one or c.norm == "pre" else c.source_vocab_size,
        "pad_token_id": start, "decoder_start_token_id": start, "eos_token_id": model.vocabularies["target"].eos_id,
        "forced_eos_token_id": None, "max_position_embeddings": 1024,
    }  # fmt: skip
    if c.norm == "pre":
        if not one:
            sys.exit("transformers' Pegasus needs one table of embeddings (tied_embeddings: all)")
        peer = transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**sizes))
    else:
        more = {"decoder_vocab_size": start + 1, "share_encoder_decoder_embeddings": one}
        peer = transformers.MarianMTModel(
            transformers.MarianConfig(**sizes, **more, tie_word_embeddings=c.tied_embeddings != "none")
        )
    names = {
        "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj", "up": "fc1", "down": "fc2",
        "self_attention": "self_attn", "cross_attention": "encoder_attn", "ffn": "", "embedding": "embed_tokens",
        "self_attention_norm": "self_attn_layer_norm", "cross_attention_norm": "encoder_attn_layer_norm",
        "ffn_norm": "final_layer_norm", "norm": "layer_norm",
    }  # fmt: skip
    state = peer.state_dict()
    for name, value in module.state_dict().items():
        grow = name in ("decoder.embedding.weight", "decoder.output.weight") or (one and "embedding" in name)
        wide = torch.cat([value, value.new_zeros(1, value.shape[1])]) if grow else value
        if name == "decoder.output.bias":
            state["final_logits_bias"] = torch.cat([value, value.new_zeros(1)])[None]
        elif name == "decoder.output.weight":
            state["lm_head.weight"] = wide
        else:
            theirs = ".".join(filter(None, (names.get(part, part) for part in name.split("."))))
            state[f"model.{theirs}"] = wide
            if one and name == "encoder.embedding.weight":
                state["model.shared.weight"] = state["model.decoder.embed_tokens.weight"] = wide
                state["lm_head.weight"] = wide
    never = [start, *([] if (unk := model.vocabularies["target"].unk_id) is None else [unk])]
    state["final_logits_bias"][:, never] = -1e9
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = sinusoids(1024, c.d_model)
    peer.load_state_dict(state)
    for part in peer.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = c.layer_norm_epsilon
    return peer.eval()


def theirs(task: Task, precision: str) -> Decode:
    """``generate()``, with lines sorted by length and the batch size that is fastest."""
    eos = task.model.vocabularies["target"].eos_id
    peer = transformers_model(task.model).to(getattr(torch, precision))
    order = sorted(range(len(task.sources)), key=lambda i: len(task.sources[i]))

    def once(beam: int, batch_size: int) -> Ids:
        out: Ids = [[] for _ in task.sources]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = len(task.sources[chosen[-1]])
            ids = torch.tensor([task.sources[i] + [eos] * (longest - len(task.sources[i])) for i in chosen])
            mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in (task.sources[i] for i in chosen)])
            more = {"num_beams": beam, "length_penalty": task.normalize} if beam > 1 else {}
            limit = math.ceil(task.factor * longest)
            found = peer.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=limit, **more)
            for i, row in zip(chosen, found.tolist(), strict=True):
                out[i] = row[1 : row.index(eos)] if eos in row else row[1:]
        return out

    best: dict[int, int] = {}

    def decode(beam: int) -> Ids:
        if beam not in best:
            sizes = [size for size in BATCH_SIZES if size < 2 * len(order)]
            best[beam] = min(sizes, key=lambda size: timed(lambda: once(beam, size))[0])
            print(f"transformers, beam {beam}: batches of {best[beam]} sentences are its fastest")
        return once(beam, best[beam])

    return decode


def ctranslate2(task: Task, folder: Path, threads: int, compute: str) -> Decode:
    """CTranslate2 on the exported model."""
    import ctranslate2

    path = folder / f"ctranslate2-{compute}"
    convert_model(task.model, path, "ctranslate2", quantize="int8" if compute == "int8" else None)
    engine = ctranslate2.Translator(str(path), device="cpu", compute_type=compute, intra_threads=threads)
    source, target = (task.model.vocabularies[side] for side in ("source", "target"))
    tokens = [[source.tokens[i] for i in ids[:-1]] for ids in task.sources]
    longest = max(map(len, task.sources))

    def decode(beam: int) -> Ids:
        found = engine.translate_batch(
            tokens, beam_size=beam, length_penalty=task.normalize, disable_unk=True, batch_type="tokens",
            max_batch_size=4096, max_decoding_length=math.ceil(task.factor * longest), max_input_length=0,
        )  # fmt: skip
        return [[target.index[token] for token in result.hypotheses[0]] for result in found]

    return decode


def random_model(size: str, folder: Path) -> Path:
    """A bundle with random weights that ends no output before its limit."""
    d_model, d_ff, heads, layers, vocabulary = SIZES[size]
    torch.manual_seed(1)
    config = TransformerConfig(
        source_vocab_size=vocabulary, target_vocab_size=vocabulary, d_model=d_model, d_ff=d_ff, num_heads=heads,
        encoder_layers=layers, decoder_layers=layers, tied_embeddings="all",
    )  # fmt: skip
    tokens = MarianVocabulary(["</s>", "<unk>", *(f"w{i}" for i in range(2, vocabulary))])
    transformer = family("transformer")
    module = transformer.build(config)
    torch.nn.init.normal_(module.encoder.embedding.weight, std=d_model**-0.5)
    torch.nn.init.constant_(module.decoder.output.bias, 0.0)[0] = -1e9
    state = module.state_dict()
    arrays = (state[e.name].numpy() for e in storages(transformer, config))
    write_bundle(folder / size, transformer, config, arrays, {"source": tokens, "target": tokens}, {})
    return folder / size


def arithmetic(config: TransformerConfig, sources: Ids, outputs: Ids, beam: int) -> float:
    """Operations of the linear layers that the outputs need: each source token once through the encoder and
    the cross keys and values, each output token (of ``beam`` hypotheses as long) once through the decoder."""
    c, d = config, config.d_model
    encoder = c.encoder_layers * (4 * d * d + 2 * d * c.d_ff) + c.decoder_layers * 2 * d * d
    decoder = c.decoder_layers * (6 * d * d + 2 * d * (c.decoder_d_ff or c.d_ff)) + d * c.target_vocab_size
    return 2.0 * (encoder * sum(map(len, sources)) + beam * decoder * sum(len(o) + 1 for o in outputs))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = clock()
    result = function()
    return clock() - start, result


def measure(task: Task, contenders: dict[str, Decode], beam: int, rounds: int, rates: dict[str, float]) -> None:
    """Rounds of every contender by turns, and the table of their medians."""
    outputs = {name: decode(beam) for name, decode in contenders.items()}  # warm
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, decode in contenders.items():
            seconds[name].append(timed(lambda decode=decode: decode(beam))[0])
    median = {name: statistics.median(times) for name, times in seconds.items()}
    base, first = median.get("transformers"), next(iter(outputs.values()))
    print(f"\n{'greedy' if beam == 1 else f'beam {beam}'}")
    print(f"{'':<24}{'sentences/s':>12}{'target tok/s':>14}{'/ transformers':>16}{'of rate':>9}{'other outputs':>15}")
    for name, taken in median.items():
        tokens = sum(len(ids) + 1 for ids in outputs[name])
        rate = rates["bfloat16" if "bfloat16" in name else "float32"]
        share = arithmetic(task.model.config, task.sources, outputs[name], beam) / taken / 1e9 / rate
        ratio = f"{base / taken:.2f} x" if base else "-"
        other = sum(a != b for a, b in zip(outputs[name], first, strict=True))
        print(
            f"{name:<24}{len(task.sources) / taken:>12,.0f}{tokens / taken:>14,.0f}{ratio:>16}{share:>9.0%}{other:>15,}"
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a Marian directory or a bundle")
    parser.add_argument("source", nargs="?", type=Path, help="lines to decode")
    parser.add_argument("--random", choices=SIZES, help="random weights instead of a model")
    parser.add_argument("--sentences", type=int, default=256, help="with --random: how many")
    parser.add_argument("--length", type=int, default=20, help="with --random: tokens of source and output")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--normalize", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("warmstart", *PEERS), nargs="+", default=["warmstart", *PEERS])
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time, on a shared machine")
    parser.add_argument("--lower", action="store_true", help="also bfloat16 (CTranslate2: int8)")
    options = parser.parse_args(arguments)
    if (options.random is None) == (options.model is None or options.source is None):
        parser.error("give MODEL and SOURCE, or --random")
    return options


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Prints a table for each beam size."""
    global clock  # noqa: PLW0603
    options = parse(arguments)
    clock = time.process_time if options.cpu else time.perf_counter
    for peer in set(options.only) & set(PEERS):
        try:
            __import__(peer)
        except ImportError:
            sys.exit(f"{peer} is not installed: pip install {' '.join(PEERS)} (or leave it out with --only)")
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        if options.random:
            model = open_model(random_model(options.random, folder))
            draw = torch.randint(2, SIZES[options.random][-1], (options.sentences, options.length - 1))
            task = Task(model, [[*row, 0] for row in draw.tolist()], 1.0, options.normalize)
        else:
            model = open_model(options.model)
            vocabulary = model.vocabularies["source"]
            lines = [line for line in options.source.read_text("utf-8").splitlines() if line.strip()]
            task = Task(model, [[*vocabulary.encode(x), vocabulary.eos_id] for x in lines], 3.0, options.normalize)
        contenders: dict[str, Decode] = {}
        for precision in ("float32", "bfloat16") if options.lower else ("float32",):
            suffix = "" if precision == "float32" else f", {precision}"
            if "warmstart" in options.only:
                contenders[f"warmstart{suffix}"] = ours(task, precision)
            if "transformers" in options.only:
                contenders[f"transformers{suffix}"] = theirs(task, precision)
            if "ctranslate2" in options.only:
                compute = "int8" if suffix else "float32"
                name = "ctranslate2, int8" if suffix else "ctranslate2"
                contenders[name] = ctranslate2(task, folder, threads, compute)
        rates = {name: matrix_rate(getattr(torch, name)) for name in ("float32", "bfloat16")}
        print(
            f"{len(task.sources):,} sentences, {threads} threads, normalize {task.normalize}, torch {torch.__version__}"
        )
        print(", ".join(f"{name} matrix products {rate:,.0f} GFLOP/s" for name, rate in rates.items()))
        for beam in options.beams:
            measure(task, contenders, beam, options.rounds, rates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
