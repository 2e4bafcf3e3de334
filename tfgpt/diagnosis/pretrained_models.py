"""Pretrained models that `convert` reads: their published shapes, contexts, licences and training. No TensorFlow.

Every row says where it was looked up (in November 2026), as `shape` and `source`. Shapes are those of each model's
`config.json` as litgpt lists them (its file names each one's address) or as the hub has them; tests compare them with
the parameters that KerasHub counts, with transformers' defaults and with the hub's count. Contexts, licences, languages
and training tokens are as the model cards, announcements and papers say. What could not be found is "not verified".
"""

from __future__ import annotations

import dataclasses

from tfgpt.model.config import DecoderConfig
from tfgpt.model.presets import resolve

OPEN_LICENCES = ("Apache-2.0", "MIT")
"""Licences that let anybody use, change and sell, without conditions of the maker's own."""


LITGPT = "config.json in litgpt/config.py of github.com/Lightning-AI/litgpt, commit 0006c97"

CONDITIONS = {
    "Qwen Research": "no commercial use",
    "Community": "conditions of Meta's, which the hub asks to accept",
}
"""What a licence's name ends with → what has to be known of it."""

ENGLISH = ("English",)
LLAMA_LANGUAGES = ("English", "German", "French", "Italian", "Portuguese", "Hindi", "Spanish", "Thai")
QWEN_LANGUAGES = (
    "Chinese", "English", "French", "Spanish", "Portuguese", "German", "Italian", "Russian", "Japanese", "Korean",
    "Vietnamese", "Thai", "Arabic",
)  # fmt: skip
"""Those that Qwen2.5's card names of its more than 29. Qwen3's maker counts 119, three times as many."""


@dataclasses.dataclass(frozen=True)
class PretrainedModelInfo:
    """One published model.

    Attributes:
        base: its name on the hub, as pretrained.
        chat: the name of the version that was taught to talk; "" where there is none.
        config: its shape.
        context: tokens that the base version was made to read, without stretching its RoPE any further.
        licence: of the weights.
        training_tokens: how many it was pretrained on, at most; 0 where that was not published.
        languages: those that its maker names.
        code: whether its maker names programs as part of what it learned.
        shape: where `config` stands.
        source: where all the rest stands.
        chat_context: tokens that the version that talks was made to read; 0: as many as the base version.
    """

    base: str
    chat: str
    config: DecoderConfig
    context: int
    licence: str
    training_tokens: float
    languages: tuple[str, ...]
    code: bool
    shape: str
    source: str
    chat_context: int = 0

    def reads(self, name: str) -> int:
        """Tokens that the version of this name was made to read."""
        return self.chat_context or self.context if name == self.chat else self.context

    @property
    def conditions(self) -> str:
        """What has to be known of the licence; "" for an open one."""
        return next((text for ending, text in CONDITIONS.items() if self.licence.endswith(ending)), "")


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


def gpt2(name: str, preset: str) -> PretrainedModelInfo:
    """One of OpenAI's."""
    shape = "keras_hub/src/models/gpt2/gpt2_presets.py; transformers' GPT2Config for the smallest"
    source = (
        "github.com/openai/gpt-2 LICENSE (MIT, modified to ask for less); WebText itself was never counted: 9.04e9 is "
        "OpenWebText, its copy, in github.com/karpathy/nanoGPT data/openwebtext/readme.md"
    )
    return PretrainedModelInfo(
        f"openai-community/{name}", "", resolve(preset), 1024, "MIT", 9e9, ENGLISH, False, shape, source
    )


def smollm2(size: str, config: DecoderConfig, tokens: float) -> PretrainedModelInfo:
    """One of Hugging Face's."""
    name = f"HuggingFaceTB/SmolLM2-{size}"
    source = f"card of {name} (licence, language, tokens, The Stack); arXiv 2502.02737"
    return PretrainedModelInfo(
        name, f"{name}-Instruct", config, 8192, "Apache-2.0", tokens, ENGLISH, True, LITGPT, source
    )


def qwen25(size: str, config: DecoderConfig, context: int, licence: str = "Apache-2.0") -> PretrainedModelInfo:
    """One of Alibaba's second generation and a half; all that talk were made for 32,768 tokens."""
    name = f"Qwen/Qwen2.5-{size}"
    source = (
        f"cards of {name} and -Instruct (licence, languages, context; more for the latter only by YaRN); "
        "arXiv 2412.15115 (18e12 tokens at most, programs)"
    )
    return PretrainedModelInfo(
        name, f"{name}-Instruct", config, context, licence, 18e12, QWEN_LANGUAGES, True, LITGPT, source, 32768
    )


def qwen3(size: str, config: DecoderConfig) -> PretrainedModelInfo:
    """One of Alibaba's third generation; more than 32,768 tokens by YaRN only, whatever config.json says (40,960)."""
    name = f"Qwen/Qwen3-{size}"
    source = "qwenlm.github.io/blog/qwen3 (licence, tied embeddings, context, 119 languages); arXiv 2505.09388 (36e12)"
    return PretrainedModelInfo(
        f"{name}-Base", name, config, 32768, "Apache-2.0", 36e12, QWEN_LANGUAGES, True, LITGPT, source
    )


def llama31(name: str, config: DecoderConfig, tokens: float) -> PretrainedModelInfo:
    """One of Meta's whose RoPE is stretched, in eight languages."""
    licence, context = f"{name.rsplit('-', 1)[0].replace('-', ' ')} Community", 131072
    base = f"meta-llama/{name}"
    source = f"card of {base}; github.com/huggingface/blog llama31.md, llama32.md; arXiv 2407.21783"
    return PretrainedModelInfo(
        base, f"{base}-Instruct", config, context, licence, tokens, LLAMA_LANGUAGES, True, LITGPT, source
    )


BIAS = {"use_query_key_value_bias": True}
NORM = {"query_key_norm": True, "head_dim": 128}

FAMILIES: tuple[PretrainedModelInfo, ...] = (
    gpt2("gpt2", "gpt2"),
    gpt2("gpt2-medium", "gpt2_medium"),
    gpt2("gpt2-large", "gpt2_large"),
    gpt2("gpt2-xl", "gpt2_xl"),
    smollm2("135M", resolve("llama_135m"), 2e12),
    smollm2("360M", resolve("llama_360m"), 4e12),
    smollm2("1.7B", llama(2048, 24, 32, 32, 8192, 49152, tied=True), 11e12),
    PretrainedModelInfo(
        "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B", llama(2048, 36, 16, 4, 11008, 128256, tied=True),
        65536, "Apache-2.0", 11.2e12, ("English", "French", "Spanish", "German", "Italian", "Portuguese"), True,
        "transformers' SmolLM3Config", "github.com/huggingface/blog smollm3.md (64k trained, 128k by YaRN only)",
    ),
    qwen25("0.5B", llama(896, 24, 14, 2, 4864, 151936, tied=True, **BIAS), 32768),
    # Its config.json says 131,072; the report (table 1) 32K.
    qwen25("1.5B", llama(1536, 28, 12, 2, 8960, 151936, tied=True, **BIAS), 32768),
    qwen25("3B", llama(2048, 36, 16, 2, 11008, 151936, tied=True, **BIAS), 32768, "Qwen Research"),
    qwen25("7B", llama(3584, 28, 28, 4, 18944, 152064, tied=False, **BIAS), 131072),
    qwen3("0.6B", llama(1024, 28, 16, 8, 3072, 151936, tied=True, **NORM)),
    qwen3("1.7B", llama(2048, 28, 16, 8, 6144, 151936, tied=True, **NORM)),
    qwen3("4B", llama(2560, 36, 32, 8, 9728, 151936, tied=True, **NORM)),
    qwen3("8B", llama(4096, 36, 32, 8, 12288, 151936, tied=False, **NORM)),
    PretrainedModelInfo(
        "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", llama(4096, 32, 32, 32, 11008, 32000, tied=False),
        4096, "Llama 2 Community", 2e12, ENGLISH, False, "transformers' LlamaConfig",
        "arXiv 2307.09288, table 1; card (English). That it has read programs was not verified.",
    ),
    PretrainedModelInfo(
        "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct", resolve("llama3_8b"),
        8192, "Llama 3 Community", 15e12, ENGLISH, True, LITGPT, "card (15e12 tokens or more, English, text and code)",
    ),
    llama31("Llama-3.1-8B", resolve("llama3_8b"), 15e12),
    llama31("Llama-3.2-1B", llama(2048, 16, 32, 8, 8192, 128256, tied=True), 9e12),
    llama31("Llama-3.2-3B", llama(3072, 28, 24, 8, 8192, 128256, tied=True, head_dim=128), 9e12),
    PretrainedModelInfo(
        "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1",
        llama(4096, 32, 32, 8, 14336, 32000, tied=False), 8192, "Apache-2.0", 0, ENGLISH, True,
        "transformers' MistralConfig", "arXiv 2310.06825 (8,192 tokens, a window of 4,096); tokens were not published",
    ),
    PretrainedModelInfo(
        "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3",
        llama(4096, 32, 32, 8, 14336, 32768, tied=False), 32768, "Apache-2.0", 0, ENGLISH, True,
        LITGPT, "card; arXiv 2310.06825; tokens were not published, other languages not verified",
    ),
)  # fmt: skip
"""What is ranked."""
