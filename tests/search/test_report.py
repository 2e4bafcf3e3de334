"""The report of a search: what the table says, which hyperparameters matter, and a page that needs no network."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfgpt.common.errors import UserError
from tfgpt.search.report import console_table, importances, numeric_column, parallel_axis, report_page, write_report
from tfgpt.search.trials import TrialTable, read_trials

HEAD = "trial_id,status,rung,bracket,continues,learning_rate,schedule,decay_fraction,dropout,objective,"
HEAD += "validation_bits_per_byte,validation_loss,validation_accuracy,tokens,tokens_per_second,peak_memory_bytes,"
HEAD += "seconds,parameters,error"


def write_search(directory: Path) -> None:
    """The learning rate decides nearly everything, the schedule a little, dropout nothing; trial 0003 failed."""
    random = np.random.default_rng(0)
    lines = [HEAD]
    for number in range(24):
        rate, dropout = 10 ** random.uniform(-3.0, -1.0), random.uniform(0.0, 0.3)
        schedule = ["wsd", "cosine"][number % 2]
        decay = f"{random.uniform(0.1, 0.9):.3f}" if schedule == "wsd" else ""
        bits = 2.0 + 0.3 * (math.log10(rate) + 2.0) ** 2 + (0.03 if schedule == "cosine" else 0.0)
        row = [f"{number:04d}", "completed", "", "", "", f"{rate:.6f}", schedule, decay, f"{dropout:.4f}"]
        if number == 3:
            row[1] = "failed"
            lines.append(",".join([*row, "", "", "", "", "4096", "", "", "2.5", "", '"diverged: <loss> is ""nan"""']))
            continue
        measured = [bits, bits, 2 * bits, 0.3, 4096, 900 + number, 500 << 20, 2.5, 12345]
        lines.append(",".join([*row, *map(str, measured), ""]))
    (directory / "trials.csv").write_text("\n".join(lines) + "\n")
    about = {"search": {"search_objective": "validation_bits_per_byte"}}
    (directory / "search.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> TrialTable:
    directory = tmp_path_factory.mktemp("search")
    write_search(directory)
    return read_trials(directory)


def test_trials_are_ranked_and_failures_are_not_among_them(trials):
    with open(trials.directory / "trials.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "completed"]
    best = min(rows, key=lambda row: float(row["objective"]))
    assert trials.parameters == ("learning_rate", "schedule", "decay_fraction", "dropout")
    assert trials.ranked()[0].trial_id == best["trial_id"]
    assert len(trials.ranked()) == 23
    lines = console_table(trials, limit=3).splitlines()
    assert lines[1].split()[0] == best["trial_id"] and len(lines) == 5
    assert lines[-1].startswith("24 trials: 1 failed, 0 stopped early")


def test_the_learning_rate_is_found_to_matter_most_and_dropout_not_at_all(trials):
    shares = importances(trials)
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 0.7 and shares["dropout"] < 0.1
    assert sum(shares.values()) == pytest.approx(1.0)


def test_wide_ranges_are_drawn_by_their_logarithm_and_flags_that_do_not_count_as_none():
    axis = parallel_axis("learning_rate", [0.001, 0.003, 0.1])
    assert axis["values"] == pytest.approx([-3.0, np.log10(0.003), -1.0])
    assert axis["ticktext"][0] == "0.001" and axis["ticktext"][-1] == "0.1"
    # Evenly spread numbers stay as they are, however small the smallest.
    assert parallel_axis("dropout", [0.001, 0.1, 0.2])["values"] == [0.001, 0.1, 0.2]
    assert parallel_axis("decay_fraction", [0.2, 0.4, None])["ticktext"][-1] == "none"
    assert parallel_axis("schedule", ["wsd", "cosine", None])["values"] == [1, 0, 2]
    np.testing.assert_array_equal(numeric_column([1.0, None, 3.0]), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(numeric_column(["b", None, "a"]), [2.0, 0.0, 1.0])


@pytest.mark.slow
def test_the_page_shows_pictures_without_a_network(trials, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    (tmp_path / "report.html").write_text(report_page(trials), encoding="utf-8")
    asked, problems = [], []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 1500})
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector(".parcoords-line-layers, .parcoords", timeout=20_000)
        # plotly draws its figures as svg; a parallel-coordinates axis carries its hyperparameter's name.
        assert page.locator(".js-plotly-plot").count() == 3
        titles = page.locator(".parcoords .axis-title").all_text_contents()
        assert {"learning_rate", "schedule", "dropout", "validation_bits_per_byte"} <= set(titles)
        assert page.locator("tbody tr").count() == 24
        assert "diverged: <loss>" in page.locator("tbody").inner_text()
        page.screenshot(path=str(tmp_path / "report.png"))
        browser.close()
    assert not problems
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_tensorboards_hparams_page_has_a_run_for_each_trial(trials):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    write_report(trials)
    folders = sorted(path.name for path in (trials.directory / "tensorboard").iterdir() if path.is_dir())
    assert folders == [trial.trial_id for trial in trials.trials]
    (file,) = (trials.directory / "tensorboard" / "0005").glob("events*")
    found, scalars = {}, {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag == metadata.SESSION_START_INFO_TAG:
                info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                found = {name: getattr(each, each.WhichOneof("kind")) for name, each in info.hparams.items()}
            elif value.tag.startswith("trial/"):
                scalars[value.tag] = value.tensor.float_val[0] if value.tensor.float_val else None
    trial = trials.trials[5]
    assert found == pytest.approx({"learning_rate": trial.flags["learning_rate"], "schedule": "cosine",
                                   "dropout": trial.flags["dropout"]})  # fmt: skip
    assert "trial/validation_bits_per_byte" in scalars


def test_what_is_no_search_is_refused_by_name(tmp_path):
    write_search(tmp_path)
    (tmp_path / "search.json").write_text(json.dumps({"search": {}}))
    with pytest.raises(UserError, match="not the table of a search"):
        read_trials(tmp_path)


def test_a_search_without_a_finished_trial_has_a_page_all_the_same(tmp_path: Path):
    write_search(tmp_path)
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    (tmp_path / "trials.csv").write_text("\n".join([lines[0], lines[4]]) + "\n")
    page = report_page(read_trials(tmp_path))
    assert "<td>failed</td>" in page and "plotly" not in page
