"""The architectures that ``transformers`` knows, each a table: keys of config.json, names of modules, joined arrays."""

from warmstart.models.decoder.dialects.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from warmstart.models.decoder.dialects.architectures.gpt import CODEGEN, GPT2, GPT_BIGCODE, GPT_NEOX, GPTJ
from warmstart.models.decoder.dialects.architectures.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from warmstart.models.decoder.dialects.architectures.others import BLOOM, FALCON, MPT, OPT, PHI, PHI3
from warmstart.models.decoder.dialects.architectures.table import Architecture, cut

ARCHITECTURES: tuple[Architecture, ...] = (
    *(GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, OPT, GPT_NEOX, GPTJ, CODEGEN, GPT_BIGCODE, BLOOM),
    *(FALCON, MPT, PHI, PHI3),
)

__all__ = ["ARCHITECTURES", "Architecture", "cut"]
