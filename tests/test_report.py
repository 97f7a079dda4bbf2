"""The report stands alone, survives anything, and lets nothing through unescaped."""

import math
import re
from html.parser import HTMLParser

import pytest

from vilmedic_ssl.report import write_report
from vilmedic_ssl.report_charts import _full_batches, curves, forest

NOTHING = {
    "title": "run",
    "results": {},
    "figures": [],
    "config": {},
    "log": [],
    "card": {},
    "checkpoints": [],
    "failures": [],
}
VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Complains about a tag that is not closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write(folder, **parts):
    path = write_report(folder, **(NOTHING | parts))
    text = path.read_text(encoding="utf-8")
    reader = Balanced()
    reader.feed(text)
    assert not reader.open
    return text, reader.seen


def scores():
    found = {}
    for split in ("validate", "test"):
        for plugin in ("linear_probe", "knn"):
            for metric in ("accuracy", "auroc", "auroc/Effusion"):
                for row, value in (("", 0.91), ("random_init/", 0.62), ("pixels/", 0.71)):
                    name = f"{split}/{plugin}/{row}{metric}"
                    found |= {
                        name: value,
                        f"{name}/low": value - 0.05,
                        f"{name}/high": value + 0.05,
                    }
                name = f"{split}/{plugin}/minus_random_init/{metric}"
                found |= {name: 0.29, f"{name}/low": 0.2, f"{name}/high": 0.4}
    return found


def training_log(steps=60):
    for step in range(1, steps + 1):
        yield {"kind": "step", "step": step, "epoch": 1, "loss": 4 / step, "chance": math.log(7),
               "lr": 1e-3, "images_per_s": 90.0, "data_wait": 0.1}  # fmt: skip
        if step % 10 == 0:
            scores = {"validation_loss": 5 / step, "knn/accuracy": 0.5}
            yield {"kind": "eval", "step": step, "epoch": 1, "scores": scores}
            yield {"kind": "health", "step": step, "std": 0.1, "rank": 12.0}


def test_an_empty_run_has_a_report(tmp_path):
    text, seen = write(tmp_path)
    assert (tmp_path / "report.html").is_file()
    assert "Research use only" in text and 'name="viewport"' in text
    assert [tag for tag, _ in seen].count("section") == 1  # the configuration, said to be empty


def test_headline_shows_model_references_and_intervals(tmp_path):
    text, _ = write(tmp_path, results=scores())
    assert "random init" in text and "raw pixels" in text
    assert "<b>0.910</b><small>[0.860, 0.960]</small>" in text
    assert "<b>+0.290</b><small>[+0.200, +0.400]</small>" in text
    assert text.index("<h3>test</h3>") < text.index("validate (chose")
    assert "AUROC of each class or finding" in text and "Effusion" in text


def test_a_score_not_above_a_reference_is_named(tmp_path):
    text, _ = write(tmp_path, results=scores())
    assert "Not clearly above" not in text and "model − raw pixels" in text
    pixels = {"test/knn/minus_pixels/auroc": 0.02, "test/knn/minus_pixels/auroc/low": -0.01}
    text, _ = write(tmp_path, results=scores() | pixels)
    assert "Not clearly above" in text and "<li>kNN, AUROC: raw pixels</li>" in text


def test_nothing_is_fetched_and_pictures_are_inside(tmp_path):
    (tmp_path / "post_processing").mkdir()
    picture = tmp_path / "post_processing" / "a.png"
    picture.write_bytes(b"\x89PNG only the bytes matter")
    table = tmp_path / "post_processing" / "numbers of it.json"
    table.write_text("{}")
    figures = [
        ("plot", "a picture", picture),
        ("plot", "a table", table),
        ("plot", "gone", tmp_path / "gone.png"),
    ]
    text, seen = write(tmp_path, figures=figures, log=list(training_log()), results=scores())
    sources = [attrs["src"] for tag, attrs in seen if tag == "img"]
    assert len(sources) == 1 + 1 + 5  # forest, picture, curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    links = [attrs["href"] for tag, attrs in seen if tag == "a"]
    assert links == ["post_processing/numbers%20of%20it.json"]
    assert "gone.png is missing" in text


@pytest.mark.parametrize(
    "place", ["title", "results", "figures", "config", "card", "failures", "log"]
)
def test_everything_is_escaped(place, tmp_path):
    evil = "<script>alert('x')</script>\"&"
    part = {
        "title": evil,
        "results": {f"test/{evil}/x": 1.0, f"test/knn/auroc/{evil}": 0.5, "test/knn/auroc": 0.5},
        "figures": [(evil, evil, tmp_path / evil.replace("/", ""))],
        "config": {evil: {"a": evil}},
        "card": {evil: {evil: [evil, {evil: evil}]}},
        "failures": [(evil, evil)],
        "log": [{"kind": "eval", "step": 1, "scores": {evil: 0.5}}],
    }[place]
    text, seen = write(tmp_path, **{place: part})
    assert "<script" not in text and not any(tag == "script" for tag, _ in seen)


def test_data_card_failures_and_config_are_shown(tmp_path):
    card = {
        "train": {"images": 1600, "patients": 500, "hash": "ab12", "classes": {"Effusion": 30}},
        "test": {"images": 400, "patients": None},
    }
    config = {"name": "demo", "folder": tmp_path, "model": {"tau": 0.5}}
    text, _ = write(
        tmp_path,
        card=card,
        config=config,
        failures=[("knn", "no labels")],
        checkpoints=["0.8_2_0.pth"],
    )
    assert "1,600" in text and "Effusion&nbsp;30" in text and "ab12" in text
    assert "<b>knn</b>: no labels" in text and "0.8_2_0.pth" in text
    assert "name: demo" in text and "tau: 0.5" in text
    flat, _ = write(tmp_path, card={"images": 3, "note": "made up"})
    assert "made up" in flat
    wide = text[text.index("<h2>Data</h2>") :]
    assert wide.index("<th>classes</th>") < wide.index("<th>hash</th>")  # cut first when narrow


def test_curves_survive_short_broken_and_long_logs():
    assert list(curves([])) == []
    assert len(list(curves(list(training_log(1))))) == 3
    odd = [
        {"kind": "step", "step": 1, "loss": float("nan")},
        {"kind": "step", "loss": 1.0},
        {"kind": "eval", "step": 1, "scores": None},
        {"kind": "other"},
        {},
    ]
    assert list(curves(odd)) == []
    captions = [caption for caption, _, _ in curves(list(training_log(2500)))]
    assert captions[0].startswith("Loss") and len(captions) == 5


def test_short_batches_are_left_out_of_the_loss_curve():
    log = [{"kind": "step", "step": s, "loss": 1.0, "chance": 2.0 - (s == 3)} for s in (1, 2, 3)]
    assert [r["step"] for r in _full_batches([*log, {"kind": "eval", "step": 4}])] == [1, 2, 4]


def test_forest_needs_rows_and_accepts_missing_references():
    assert forest([]) is None
    picture = forest([("kNN\naccuracy", {"model": (0.9, 0.8, 0.95), "random init": None})])
    assert picture is not None and picture[:4] == b"\x89PNG"
