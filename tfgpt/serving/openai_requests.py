"""The requests of OpenAI's API that the server understands. A field it does not know is refused, not passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

StopString = Annotated[str, StringConstraints(max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """What all bodies share: the types of JSON as they are, no unknown fields, and null for what is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def given(cls, values: Any) -> Any:
        """Leaves out what is null, and writes 16.0 as 16: JSON has one kind of number."""
        if not isinstance(values, dict):
            return values
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in values.items()
            if value is not None
        }


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool | None = Field(None, description="Send the token counts last.")
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body):
    """The only format of answers there is."""

    type: Literal["text"]


class GenerationRequest(Body):
    """What chat and completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1, description="The most tokens to write.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="0 is off. (Not OpenAI's.)")
    min_p: float | None = Field(None, ge=0, le=1, description="0 is off. (Not OpenAI's.)")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="1 is off. (Not OpenAI's.)")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="The same seed gives the same text.")
    n: int | None = Field(None, ge=1, description="Texts for each prompt.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Zero | None = Field(None, description="Only 0.")
    frequency_penalty: Zero | None = Field(None, description="Only 0.")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(None, description="Only empty.")
    user: str | None = Field(None, description="Taken and not used.")

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings; an empty one stops nothing."""
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_log_probabilities(self) -> bool:
        """Whether each token's log-probability is wanted."""
        raise NotImplementedError

    def sampling(self, defaults: dict[str, Any], seed: int, sample: int) -> dict[str, Any]:
        """The sampling inputs of one text but for max_new_tokens."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        values = {name: defaults[name] if getattr(self, name) is None else getattr(self, name) for name in names}
        return {**values, "seed": seed, "sample": sample}


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, description="Taken and not used.")
    refusal: str | None = Field(None, description="Taken and not used.")
    # What servers write beside an answer, and clients send back with it.
    annotations: list[Any] | None = Field(None, description="Taken and not used.")
    reasoning: str | None = Field(None, description="Taken and not used.")
    reasoning_content: str | None = Field(None, description="Taken and not used.")
    tool_calls: Nothing | None = Field(None, description="Only empty.")

    def plain(self) -> dict[str, str]:
        """The turn as `ChatTemplate.render` takes it; OpenAI's developers are what others call the system."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(None, description="Only 0.")
    response_format: TextFormat | None = None
    tools: Nothing | None = Field(None, description="Only empty.")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="There are no tools to choose from.")
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used.")
    metadata: dict[str, str | None] | None = Field(None, description="Taken and not used.")
    store: Literal[False] | None = None

    @property
    def wants_log_probabilities(self) -> bool:
        """As the base's."""
        return bool(self.logprobs)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)] | str
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="Only 0: the written tokens' log-probabilities and no others'."
    )
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several: all texts or all ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else self.prompt  # type: ignore[list-item, return-value]

    @property
    def wants_log_probabilities(self) -> bool:
        """As the base's; 0 wants them, of the written tokens alone."""
        return self.logprobs is not None


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: str
    input: (
        Annotated[str, StringConstraints(min_length=1)]
        | Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Only the model's own.")
    user: str | None = Field(None, description="Taken and not used.")

    @field_validator("input", mode="before")
    @classmethod
    def text(cls, value: Any) -> Any:
        """Refuses ids by name: who sends them (LangChain) has made them with OpenAI's tokenizer."""
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(value, list) and isinstance(first, (int, list)):
            raise PydanticCustomError(
                "token_ids",
                "give text; ids of another tokenizer mean other words (LangChain: check_embedding_ctx_length=False)",
            )
        return value


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail
