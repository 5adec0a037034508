"""What probes found, in the report: read, averaged over seeds, and looked at before it is believed."""

from __future__ import annotations

import json

import pytest
from tests.reporting.conftest import read

from mllt.report import report
from mllt.reporting.groups import experiments
from mllt.reporting.representation import HEAD, representation
from mllt.reporting.runs import find_runs


def groups(value):
    return {"many": None, "medium": value + 1, "few": value, "all": value + 2}


def probe(run, shift=0.0, **changes):
    """What a probe of a run of two experts writes, as far as a report shows it."""
    told = read(run)
    names = ("expert 1", "expert 2", "trunk", "concatenation")
    values = {name: shift + 10.0 * number for number, name in enumerate(names)}
    learned = {
        name: {
            **{kind: groups(value + n) for n, kind in enumerate(("linear", "neighbours", "neighbours_by_count"))},
            "iterations": 9,
            "converged": True,
        }
        for name, value in values.items()
    }
    return {
        **{name: told[name] for name in ("data_digest", "method", "seed")},
        "settings": {"neighbours": 20, "l2": 1e-4},
        "features": {
            name: {"spread": groups(0.1), "separation": groups(0.01 * value), "ratio": groups(1.0)}
            for name, value in values.items()
        },
        "trained_on": {"balanced": learned, "long_tailed": learned},
        **changes,
    }


def put(run, content):
    (run / "probes").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (run / "probes" / "probe.json").write_text(text, encoding="utf-8")


@pytest.fixture
def pair(real, made):
    """Two seeds of one group."""
    return made(real["mutual0"], "a"), made(real["mutual1"], "b")


def table(folder):
    (experiment,) = experiments(find_runs([folder]).runs)
    return representation(experiment)


def test_seeds_are_averaged_and_experts_are_the_mean_over_each_alone(pair, tmp_path):
    for run, shift in zip(pair, (0.0, 2.0), strict=True):
        put(run, probe(run, shift))
    told = table(tmp_path / "runs")
    rows = {line[0]: dict(zip(HEAD, line, strict=True)) for line in told.lines}
    assert list(rows) == [f"Mutual Learning: {name}" for name in ("expert", "trunk", "all experts")]
    expert, trunk = rows["Mutual Learning: expert"], rows["Mutual Learning: trunk"]
    # experts 0 and 10, then 2 and 12: means 5 and 7, two more over all classes, and the kinds one apart
    assert expert["linear, balanced: few"] == "6.0 ± 1.4"
    assert expert["linear, long-tailed: all"] == "8.0 ± 1.4"
    assert expert["kNN, balanced: few"] == "7.0 ± 1.4"
    assert expert["kNN, long-tailed: few"] == "8.0 ± 1.4"
    assert expert["spread: few"] == "0.100 ± 0.000"
    assert trunk["linear, balanced: few"] == "21.0 ± 1.4"
    assert expert["seeds"] == "2"
    assert "k = 20 and l2 = 0.0001" in told.lede


def test_runs_without_probes_have_no_section_and_a_set_that_is_not_there_is_no_number(pair, tmp_path):
    assert table(tmp_path / "runs") is None
    found = probe(pair[0])
    del found["trained_on"]["balanced"]
    put(pair[0], found)
    line = dict(zip(HEAD, table(tmp_path / "runs").lines[0], strict=True))
    assert (line["linear, balanced: all"], line["linear, long-tailed: all"], line["seeds"]) == ("n/a", "7.0", "1")


def test_probes_of_other_settings_are_not_averaged(pair, tmp_path):
    put(pair[0], probe(pair[0]))
    put(pair[1], probe(pair[1], settings={"neighbours": 5, "l2": 1e-4}))
    names = [line[0] for line in table(tmp_path / "runs").lines]
    assert names[0] == "Mutual Learning (k 20, l2 0.0001): expert"
    assert names[3] == "Mutual Learning (k 5, l2 0.0001): expert"


def test_linear_probes_that_did_not_converge_are_told(pair, tmp_path):
    found = probe(pair[0])
    found["trained_on"]["balanced"] = {**found["trained_on"]["balanced"]}
    found["trained_on"]["balanced"]["trunk"] = {**found["trained_on"]["balanced"]["trunk"], "converged": False}
    put(pair[0], found)
    assert table(tmp_path / "runs").remarks == ["Mutual Learning: 1 linear probe of 8 did not converge; see their probe.json."]


HOSTILE = {
    "no json": "{",
    "no table": "[]",
    "deep": "[" * 100_000,
    "nan": lambda found: json.dumps({**found, "settings": {"neighbours": 20, "l2": float("nan")}}),
    "null settings": lambda found: {**found, "settings": None},
    "a text for k": lambda found: {**found, "settings": {"neighbours": "20", "l2": 1}},
    "no features": lambda found: {**found, "features": {}},
    "features of another kind": lambda found: {**found, "features": {"<script>": found["features"]["trunk"]}},
    "huge": lambda found: {**found, "features": {"trunk": {"spread": groups(1e308), "separation": groups(1e308)}}},
    "huge whole": lambda found: {**found, "features": {"trunk": {"spread": groups(10**400), "separation": groups(1)}}},
    "a text for a number": lambda found: {**found, "features": {"trunk": {"spread": {"all": "x", "few": 1}, "separation": {}}}},
    "a list for a set": lambda found: {**found, "trained_on": {"balanced": [1, 2]}},
    "sets of other names": lambda found: {**found, "trained_on": {"balanced": found["trained_on"]["balanced"], "x": 3}},
    "a set of fewer features": lambda found: {**found, "trained_on": {"balanced": {}}},
    "a set of more features": lambda found: {**found, "trained_on": {"balanced": {**found["trained_on"]["balanced"], "x": 1}}},
    "other images": lambda found: {**found, "data_digest": "0" * 16},
    "another seed": lambda found: {**found, "seed": 77},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_no_probe_writes_costs_its_run_alone_and_is_told(pair, tmp_path, name):
    damage = HOSTILE[name]
    put(pair[0], damage if isinstance(damage, str) else damage(probe(pair[0])))
    put(pair[1], probe(pair[1]))
    told = table(tmp_path / "runs")
    assert {line[-1] for line in told.lines} == {"1"}, "the other seed's"
    (remark,) = told.remarks
    assert remark.startswith("Mutual Learning, seed 0: its probes/probe.json is left out: ")


def test_the_report_shows_the_table_and_what_was_left_out_as_text(pair, tmp_path):
    put(pair[0], HOSTILE["features of another kind"](probe(pair[0])))
    put(pair[1], probe(pair[1]))
    folder = report(tmp_path / "runs").folder
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "Representation" in text
        assert "Mutual Learning: all experts" in text
        assert "probes/probe.json is left out" in text
        assert "<script" not in text
