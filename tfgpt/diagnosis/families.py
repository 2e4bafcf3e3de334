"""Pretrained models that `convert` reads: their published shapes, contexts, licences and training. No TensorFlow.

Shapes are those of each model's `config.json` on the Hugging Face hub; the parameters that they come to are the hub's
own count (tests). Contexts, licences, languages and training tokens are as the model cards and the papers named in
`source` say.
"""

from __future__ import annotations

import dataclasses

from tfgpt.model.config import DecoderConfig
from tfgpt.model.presets import resolve

OPEN_LICENCES = ("Apache-2.0", "MIT")
"""Licences that let anybody use, change and sell, without conditions of the maker's own."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One published model.

    Attributes:
        base: its name on the hub, as pretrained.
        chat: the name of the version that was taught to talk; "" where there is none.
        config: its shape.
        context: tokens that it was made to read.
        licence: of the weights.
        training_tokens: how many it was pretrained on; 0 where that was not published.
        many_languages: whether other languages than English are a stated part of its training text.
        code: whether programs are.
        source: where all this stands.
    """

    base: str
    chat: str
    config: DecoderConfig
    context: int
    licence: str
    training_tokens: float
    many_languages: bool
    code: bool
    source: str


def llama(
    width: int, layers: int, heads: int, key_value_heads: int, inside: int, vocabulary: int, *, tied: bool, **options
) -> DecoderConfig:
    """A decoder in Llama's manner."""
    return resolve(
        "llama3_8b",
        vocabulary,
        {
            "hidden_dim": width,
            "num_layers": layers,
            "num_query_heads": heads,
            "num_key_value_heads": key_value_heads,
            "intermediate_dim": inside,
            "tie_embeddings": tied,
            **options,
        },
    )


def gpt2(name: str, preset: str) -> Pretrained:
    """One of OpenAI's; WebText's 40 GB are about 9 billion of its tokens."""
    source = "Radford et al. 2019; github.com/openai/gpt-2"
    return Pretrained(f"openai-community/{name}", "", resolve(preset), 1024, "MIT", 9e9, False, False, source)


def smollm2(size: str, config: DecoderConfig, tokens: float) -> Pretrained:
    """One of Hugging Face's."""
    name = f"HuggingFaceTB/SmolLM2-{size}"
    return Pretrained(name, f"{name}-Instruct", config, 8192, "Apache-2.0", tokens, False, True, "arXiv 2502.02737")


def qwen25(size: str, config: DecoderConfig, context: int, licence: str = "Apache-2.0") -> Pretrained:
    """One of Alibaba's second generation and a half."""
    name = f"Qwen/Qwen2.5-{size}"
    return Pretrained(name, f"{name}-Instruct", config, context, licence, 18e12, True, True, "arXiv 2412.15115")


def qwen3(size: str, config: DecoderConfig) -> Pretrained:
    """One of Alibaba's third generation."""
    name = f"Qwen/Qwen3-{size}"
    return Pretrained(f"{name}-Base", name, config, 32768, "Apache-2.0", 36e12, True, True, "arXiv 2505.09388")


def llama31(name: str, config: DecoderConfig, tokens: float) -> Pretrained:
    """One of Meta's whose RoPE is stretched, in eight languages."""
    licence, context = f"{name.rsplit('-', 1)[0].replace('-', ' ')} Community", 131072
    base = f"meta-llama/{name}"
    return Pretrained(base, f"{base}-Instruct", config, context, licence, tokens, True, True, "arXiv 2407.21783, cards")


BIAS = {"use_query_key_value_bias": True}
NORM = {"query_key_norm": True, "head_dim": 128}

FAMILIES: tuple[Pretrained, ...] = (
    gpt2("gpt2", "gpt2"),
    gpt2("gpt2-medium", "gpt2_medium"),
    gpt2("gpt2-large", "gpt2_large"),
    gpt2("gpt2-xl", "gpt2_xl"),
    smollm2("135M", resolve("llama_135m"), 2e12),
    smollm2("360M", resolve("llama_360m"), 4e12),
    smollm2("1.7B", llama(2048, 24, 32, 32, 8192, 49152, tied=True), 11e12),
    Pretrained(
        "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B", llama(2048, 36, 16, 4, 11008, 128256, tied=True),
        65536, "Apache-2.0", 11e12, True, True, "huggingface.co/blog/smollm3",
    ),
    qwen25("0.5B", llama(896, 24, 14, 2, 4864, 151936, tied=True, **BIAS), 32768),
    qwen25("1.5B", llama(1536, 28, 12, 2, 8960, 151936, tied=True, **BIAS), 32768),
    qwen25("3B", llama(2048, 36, 16, 2, 11008, 151936, tied=True, **BIAS), 32768, "Qwen Research"),
    qwen25("7B", llama(3584, 28, 28, 4, 18944, 152064, tied=False, **BIAS), 32768),
    qwen3("0.6B", llama(1024, 28, 16, 8, 3072, 151936, tied=True, **NORM)),
    qwen3("1.7B", llama(2048, 28, 16, 8, 6144, 151936, tied=True, **NORM)),
    qwen3("4B", llama(2560, 36, 32, 8, 9728, 151936, tied=True, **NORM)),
    qwen3("8B", llama(4096, 36, 32, 8, 12288, 151936, tied=False, **NORM)),
    Pretrained(
        "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", llama(4096, 32, 32, 32, 11008, 32000, tied=False),
        4096, "Llama 2 Community", 2e12, False, True, "arXiv 2307.09288",
    ),
    Pretrained(
        "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", resolve("llama3_8b"),
        8192, "Llama 3 Community", 15e12, False, True, "arXiv 2407.21783",
    ),
    llama31("Llama-3.1-8B", resolve("llama3_8b"), 15e12),
    llama31("Llama-3.2-1B", llama(2048, 16, 32, 8, 8192, 128256, tied=True), 9e12),
    llama31("Llama-3.2-3B", llama(3072, 28, 24, 8, 8192, 128256, tied=True, head_dim=128), 9e12),
    Pretrained(
        "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1",
        llama(4096, 32, 32, 8, 14336, 32000, tied=False), 8192, "Apache-2.0", 0, False, True, "arXiv 2310.06825",
    ),
)  # fmt: skip
"""What is ranked."""
