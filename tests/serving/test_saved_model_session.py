"""What `SessionModel` refuses, and what it leaves behind when it does."""

import json

import pytest
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.serving.export_metadata import FORMAT
from tfgpt.serving.saved_model_session import SessionModel


def test_a_load_that_fails_leaves_no_session_open(tmp_path, monkeypatch):
    opened = []

    class Watched(tf.compat.v1.Session):
        def __init__(self, **options):
            super().__init__(**options)
            opened.append(self)

    monkeypatch.setattr(tf.compat.v1, "Session", Watched)
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(OSError, match="Cannot parse"):
        SessionModel(tmp_path)
    [session] = opened
    with pytest.raises(RuntimeError, match="closed Session"):
        session.run([])


def test_an_export_of_another_format_is_refused_by_name(tmp_path):
    (tmp_path / EXPORT_METADATA).parent.mkdir()
    (tmp_path / EXPORT_METADATA).write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(UserError, match=rf"{tmp_path}: is an export of format {FORMAT + 1}, .* knows format {FORMAT}"):
        SessionModel(tmp_path)
