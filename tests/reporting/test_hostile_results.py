"""Results that mean harm: every string of theirs is shown as the text that it is, in every form of the report."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import unicodedata
from html.parser import HTMLParser

import pytest
import yaml
from tests.reporting.conftest import Dumper, Loader, as_cifar, copy, read
from tests.reporting.test_runs import put

from mllt.report import report, show

SCRIPT = "<script>window.pwned=1</script>"
EVIL = [
    f"{SCRIPT}<img src=x onerror=window.pwned=1>",
    "\"><svg/onload=window.pwned=1>'--></title></style>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "![x](https://evil.example/x.png) [y](javascript:window.pwned=1) `z` *a* __b__ ~~c~~",
    "\\input{/etc/passwd}\\write18{touch pwned} $x^2$ %&#_{}",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\x9b1m",
    "\u202egnp.exe\u2066 \u200bzero\x00null\rreturn\x85",
    "[red]markup[/] [/unopened] [link=https://evil.example]x[/link] :smile:",
    '=HYPERLINK("https://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "</script></textarea></select><iframe src=javascript:window.pwned=1>",
    'id="x" url(#y) font: 10px serif #010101 xlink:href="#z"',
]


def hostile_results(run, text):
    """Every text of a run's results.json, names included, made hostile."""
    told = read(run)
    test = told["test"]
    classes = len(told["class_counts"])
    return {
        "method": text,
        "class_names": [f"{text} {number}" for number in range(classes)],
        "shot_groups": {f"{text} {name}": count for name, count in told["shot_groups"].items()},
        "reconstructed": [text],
        "device": text,
        "command": text,
        "recipe": text,
        "recipe_source": text,
        "experiment": text,
        "fitted_prior": text,
        "git_commit": text,
        "data_digest": text,
        "versions": {"mllt": text, text: text},
        "details": {
            text: text,
            f"{text} 2": {text: 1.5},
            f"{text} 3": {text: {text: 2}},
            f"by {text}": [float(c) for c in range(classes)],
            f"{text} 4": [text, {text: [text]}],
        },
        "test": test,
        "stages": [{"name": text, "epochs": 1}, {"name": f"{text} 2", "epochs": 1}],
    }


def hostile_settings(text):
    return {"data._target_": f"mllt.data.{text}", "network.name": text, "data.root": f"/data/{text}", "optimizer.note": text}


def make(real, root, texts=EVIL):
    for number, text in enumerate(texts):
        # Stages are folders: what cannot be a name of one has none, and its curves are told to be missing
        copy(real["mutual0"], root / f"run{number}", hostile_settings(text), hostile_results(real["mutual0"], text))
    copy(real["mutual1"], root / "unfinished", {"network.name": EVIL[0], "method._target_": EVIL[0]}, finished=False)
    stage = root / "unfinished" / "stages" / "\x1b[31m<script>window.pwned=1<!script>"
    stage.mkdir(parents=True)
    shutil.copy(root / "unfinished" / "metrics.csv", stage / "metrics.csv")
    copy(real["mutual0"], root / "<img src=x onerror=window.pwned=1>\x1b[2J")
    (root / "<img src=x onerror=window.pwned=1>\x1b[2J" / "results.json").write_text('{"method": ["<script>"]}')
    settings, results = as_cifar(real["cross_entropy0"], reconstructed=EVIL, device=EVIL[0])
    copy(real["cross_entropy0"], root / "published", settings, results)
    return report(root)


@pytest.fixture(scope="module")
def written(real, tmp_path_factory):
    """The report of a folder in which every text means harm."""
    return make(real, tmp_path_factory.mktemp("hostile") / "runs")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.tags.add("a comment")


def file(written, name):
    return (written.folder / name).read_text(encoding="utf-8")


def test_the_page_holds_no_element_and_no_attribute_of_theirs(written, real, tmp_path):
    plain = Page(file(report([real["mutual0"], real["crt0"]], tmp_path / "report"), "report.html"))
    page = Page(file(written, "report.html"))
    allowed = plain.tags | {"span"}
    assert page.tags <= allowed, page.tags - allowed
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "form", "a comment"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        assert re.fullmatch(r"[a-z0-9:_-]+", name, re.I), (tag, name)
        if name in ("href", "xlink:href", "src", "action"):
            assert value.startswith("#") or value == "data:,", (tag, name, value)


def test_the_page_shows_their_texts_as_they_are(written):
    text = Page(file(written, "report.html")).text
    for evil in (EVIL[0], EVIL[2], EVIL[4], EVIL[7], EVIL[8]):
        assert evil in text
    assert "<img src=x onerror=window.pwned=1>" in text


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.tex", "report.csv"])
def test_nothing_in_a_file_steers_what_shows_it(written, name):
    steering = {one for one in file(written, name) if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")} - {"\n"}
    assert steering == set()


def test_nothing_printed_steers_the_terminal(written, capsys):
    show(written)
    printed = capsys.readouterr().out
    assert {one for one in printed if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")} == {"\n"}
    assert "[/unopened]" in printed
    assert ":smile:" in printed


def test_markdown_holds_no_tag_picture_link_or_emphasis_of_theirs(written):
    text = file(written, "report.md")
    assert "<" not in text
    bare = re.sub(r"\\[\\`*_~#\[\]]", "", text)
    assert not re.search(r"\]\(|!\[|`|\*|~", bare)


def test_latex_holds_no_command_of_theirs(written):
    text = file(written, "report.tex")
    commands = set(re.findall(r"\\([a-zA-Z]+)", text))
    assert not commands & {"input", "write", "include", "openin", "def", "catcode", "csname"}
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in text


def test_no_cell_of_the_csv_is_a_formula(written):
    with (written.folder / "report.csv").open(newline="", encoding="utf-8") as content:
        cells = [cell for row in csv.reader(content) for cell in row]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert any(cell.startswith("'@SUM") for cell in cells)
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []


def test_what_could_not_be_read_is_told_without_its_commands(written):
    (problem,) = written.problems
    assert 'method: expected a name, but it is ["<script>"]' in problem
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in file(written, "report.html")


# ---------------------------------------------------------------------------------------------------------------
# Files that are not what they seem


def write(run, name, content):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(30))
CONFIGS = [
    ("the environment", "more: ${oc.env:SECRET}\n", "refers to"),
    ("a name from the environment", "? ${oc.env:SECRET}\n: 1\n", "refers to"),
    ("code", "name: !!python/object/apply:os.system ['touch canary']\n", "refers to"),
    ("another code", "name: !!python/name:os.system\n", "refers to"),
    (
        "laughs",
        "a0: &a0 [ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(30)),
        "refers to",
    ),
    ("a circle", "a: &a [*a]\n", "refers to"),
    ("depth", "a: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deeply"),
    ("a set", "a: !!set {b, c}\n", "refers to"),
    ("size", "a: " + "x" * (2**22 + 1), "at most 4,194,304 bytes"),
    ("another encoding", "a: ü".encode("latin-1"), "utf-8"),
    ("control characters", "a: \x1b[31m", "special characters"),
]


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_settings_that_are_more_than_settings_cost_their_run_alone(real, made, tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.chdir(tmp_path)
    good, bad = made(real["mutual0"], "good"), made(real["mutual1"], "bad")
    settings = (bad / "config.yaml").read_bytes()
    write(bad, "config.yaml", settings + (text if isinstance(text, bytes) else text.encode()))
    told = report(tmp_path / "runs")
    (problem,) = told.problems
    assert problem.startswith(f"{bad.relative_to(tmp_path)}: its config.yaml cannot be read: ")
    assert said in problem
    assert len(problem) < 1000
    assert [run.folder.root for group in told.layouts[0].experiment.groups for run in group.runs] == [good]
    for path in told.folder.iterdir():
        assert "s3cr3t" not in path.read_text()
    assert not (tmp_path / "canary").exists()


NUMBERS = [
    ("epochs", 10**30),
    ("epochs", True),
    ("class_counts", [2**60] * 10),
    ("class_counts", [-1] * 10),
    ("test.ensemble.compensated.all", 1e308 * 10),
    ("test.ensemble.compensated.all", 10**5000),
    ("parameters", 10**400),
    ("train_seconds", float("inf")),
    ("train_seconds", 1e301),
    ("cpu_seconds", float("inf")),
    ("images_per_second", "x"),
    ("command", "x" * (2**18 + 1)),
    ("command", ["python"]),
    ("details", [[[[]]]]),
    ("shot_groups", {"many": "x"}),
]


@pytest.mark.parametrize(
    ("name", "value"), NUMBERS, ids=lambda value: f"{value!r:.30}" if not isinstance(value, int) else "number"
)
def test_numbers_that_no_run_has_cost_their_run_alone(real, made, tmp_path, name, value):
    made(real["mutual0"], "good")
    bad = made(real["mutual1"], "bad")
    if value == 10**5000:
        text = json.dumps(put_in(read(bad), name, 12345.5)).replace("12345.5", "1" + "0" * 5000)
        (bad / "results.json").write_text(text)
    else:
        put(bad, name, value)
    (problem,) = report(tmp_path / "runs").problems
    assert "bad: its results.json cannot be read: " in problem


def put_in(whole, name, value):
    *above, leaf = name.split(".")
    place = whole
    for key in above:
        place = place[key]
    place[leaf] = value
    return whole


@pytest.mark.parametrize("value", [1e299, -1e299, 10**15])
def test_large_numbers_are_drawn_and_written(real, made, tmp_path, value):
    test = json.loads(json.dumps(read(real["mutual0"])["test"]))
    test["ensemble"]["compensated"]["all"] = value
    details = {"n": value, "by_class": [value] * 10, "grid": {"a": {"b": value}}}
    made(real["mutual0"], "a", results={"test": test, "details": details, "train_seconds": abs(value)})
    assert report(tmp_path / "runs").problems == []


@pytest.mark.parametrize(
    "content",
    [f"epoch,train/loss\n{'9' * 400},1\n", f"epoch,train/loss\n{10**101},1\n", "epoch,train/loss\n1,1e300\n2,-1e300\n"],
    ids=["digits", "epoch", "loss"],
)
def test_curves_beyond_what_can_be_drawn_are_left_out(real, made, tmp_path, content):
    run = made(real["mutual0"], "a")
    (run / "metrics.csv").write_text(content)
    written = report(tmp_path / "runs")
    assert written.problems == []
    assert any("its metrics.csv cannot be read" in note for note in written.layouts[0].notes)


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "metrics.csv"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "huge", "link to nowhere"])
def test_what_is_no_ordinary_file_is_not_waited_for(real, made, tmp_path, name, kind):
    made(real["mutual0"], "good")
    path = made(real["mutual1"], "bad") / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file_:
            file_.truncate(2**36)  # takes no room on the disk
    else:
        path.symlink_to(tmp_path / "nowhere")
    told = report(tmp_path / "runs")
    said = [*told.problems, *(note for layout in told.layouts for note in layout.notes)]
    if kind == "link to nowhere":  # as if it were not there
        return
    assert any(name in text for text in said), said


def test_settings_are_written_as_they_are_read(real):
    """What makes a config.yaml suspect, references and types, no run writes."""
    text = (real["mutual0"] / "config.yaml").read_text()
    assert yaml.load(text, Loader) == yaml.load(yaml.dump(yaml.load(text, Loader), Dumper=Dumper), Loader)
    assert not re.search(r"[&*]\w|!!|\$\{", text)
