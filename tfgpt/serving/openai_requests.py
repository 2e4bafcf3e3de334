"""Requests of OpenAI's API that the server supports; a request with an unknown field is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

StopString = Annotated[str, StringConstraints(max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
NonEmptyString = Annotated[str, StringConstraints(min_length=1)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


def ignored() -> Any:
    return Field(None, description="Accepted and ignored.")


class Body(BaseModel):
    """Base of all bodies: the JSON types as they are, no unknown fields; null means the default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def normalize(cls, values: Any) -> Any:
        """Removes null fields and converts 16.0 to 16: JSON has one type of number."""
        if not isinstance(values, dict):
            return values
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in values.items()
            if value is not None
        }


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Send the token counts last.")
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body):
    """The only supported format of responses."""

    type: Literal["text"]


class GenerationRequest(Body):
    """Base of chats and completions."""

    model: str
    max_tokens: int | None = Field(None, ge=1, description="The most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the most likely token.")
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
    user: str | None = ignored()

    @property
    def stop_strings(self) -> list[str]:
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, defaults: dict[str, Any], seed: int, sample: int) -> dict[str, Any]:
        """Returns the sampling inputs of one text except max_new_tokens."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        values = {name: defaults[name] if getattr(self, name) is None else getattr(self, name) for name in names}
        return {**values, "seed": seed, "sample": sample}


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = ignored()
    refusal: str | None = ignored()
    # Fields that servers add to a reply, and that clients send back with it.
    annotations: list[Any] | None = ignored()
    reasoning: str | None = ignored()
    reasoning_content: str | None = ignored()
    tool_calls: EmptyList | None = Field(None, description="Only empty.")

    def to_dict(self) -> dict[str, str]:
        """Returns the message for `ChatTemplate.render`; OpenAI's role "developer" becomes "system"."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(None, description="Only 0.")
    response_format: TextFormat | None = None
    tools: EmptyList | None = Field(None, description="Only empty.")
    tool_choice: Literal["none", "auto"] | None = ignored()
    parallel_tool_calls: bool | None = ignored()
    metadata: dict[str, str | None] | None = ignored()
    store: Literal[False] | None = None


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)] | str
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="Only 0: the log-probabilities of the generated tokens and of no others."
    )
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else self.prompt  # type: ignore[list-item, return-value]


class EmbeddingRequest(Body):
    """The body of POST /v1/embeddings."""

    model: str
    input: NonEmptyString | Annotated[list[NonEmptyString], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Only the model's own.")
    user: str | None = ignored()

    @field_validator("input", mode="before")
    @classmethod
    def check_text(cls, value: Any) -> Any:
        """Refuses ids: clients that send them (LangChain) make them with OpenAI's tokenizer."""
        if isinstance(value, list) and value and isinstance(value[0], (int, list)):
            raise PydanticCustomError(
                "token_ids",
                "give text; ids of another tokenizer mean other words (LangChain: check_embedding_ctx_length=False)",
            )
        return value


class ErrorDetail(BaseModel):
    """The content of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response that is not 2xx."""

    error: ErrorDetail
