"""SentencePiece models inside a graph where there is no tensorflow-text, as on Windows."""

import json
import sys
from pathlib import Path

import pytest

from tfgpt.common.errors import UserError
from tfgpt.serving.saved_model_session import TEXT_OPERATIONS, register_operations
from tfgpt.tokenization.gguf_tokenizer import Piece, PieceType, bpe_model
from tfgpt.tokenization.in_graph.sentencepiece import in_graph_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from tfgpt.tokenization.special_tokens import SpecialTokens


@pytest.fixture
def without_tensorflow_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)


def test_a_sentencepiece_model_is_refused_by_name_without_tensorflow_text(without_tensorflow_text):
    pieces = [Piece(name, 0, PieceType.CONTROL) for name in ("<s>", "</s>")]
    pieces = [Piece("<unk>", 0, PieceType.UNKNOWN), *pieces, Piece("a", 0, PieceType.NORMAL)]
    model = bpe_model(pieces, {"unk": 0, "bos": 1, "eos": 2}, add_dummy_prefix=False)
    roles = SpecialTokens(end_of_text="</s>", padding="<unk>", start_of_turn="<s>", end_of_turn="</s>")
    tokenizer = SentencePieceTokenizer(model, "models/llama/tokenizer.model", roles, {})
    with pytest.raises(UserError, match=r"^models/llama/tokenizer.model: .* tensorflow-text, .*Linux or macOS$"):
        in_graph_tokenizer(tokenizer)


def test_an_export_that_needs_tensorflow_text_is_refused_by_name_without_it(without_tensorflow_text, tmp_path: Path):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra/tfgpt.json").write_text(json.dumps({"operations": TEXT_OPERATIONS}))
    with pytest.raises(UserError, match=r"needs tensorflow-text .*does not exist for Windows"):
        register_operations(tmp_path)
