"""Claims about settings classes."""

from __future__ import annotations

import dataclasses

import pytest

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class BoxConfig(Settings):
    """A box."""

    width: float = setting(1.0, "Width.", minimum=0.5)
    lids: int = setting(1, "Lids.")
    labels: tuple[str, ...] = setting((), "Labels.")


def test_settings_turn_to_json_values_and_back():
    box = BoxConfig(width=2, labels=("a", "b"))
    assert box.to_dict() == {"width": 2.0, "lids": 1, "labels": ["a", "b"]}
    assert BoxConfig.from_dict(box.to_dict()) == box


@pytest.mark.parametrize(
    ("values", "name"),
    [({"width": 0.4}, "width"), ({"width": "wide"}, "width"), ({"lids": 1.5}, "lids"), ({"lids": True}, "lids"),
     ({"lids": None}, "lids"), ({"height": 1}, "height")],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(values, name):
    with pytest.raises(SettingError, match=f"--{name}:") as caught:
        BoxConfig.from_dict(values)
    assert caught.value.exit_code == 2
