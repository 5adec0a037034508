"""The published figures, typed here a second time, and the check of the paper's table."""

from __future__ import annotations

import pytest

from mllt.reporting.published import GROUPS, TRUST, Training, all_published, check_table, published

TABLE_A2 = """
cross_entropy    | 68.7 41.8 10.3 47.9 | 68.9 43.2 12.6 49.0
pc_softmax       | 64.1 50.3 29.0 52.7 | 64.8 50.6 31.9 53.5
lade             |                     | 65.1 48.9 33.4 53.0
mislas           | 61.7 51.3 35.8 52.7 |
ssd              |                     | 66.8 53.1 35.4 56.0
dive             |                     | 64.1 50.4 31.5 53.1
ride             | 66.2 51.7 34.9 54.9 | 67.6 53.5 35.9 56.4
ace              | - - - 54.7          | - - - 56.6
mutual each      | 65.8 53.3 36.4 55.8 | 68.0 54.4 37.1 57.3
mutual           | 67.6 55.3 38.2 57.7 | 70.2 56.7 39.1 59.5
"""
TABLE_A3 = {
    "cross_entropy": 65.0, "pc_softmax": 69.3, "bbn": 69.6, "lade": 70.0, "mislas": 71.6, "ssd": 71.5, "dive": 71.7,
    "ace": 72.9, "mutual each": 73.0, "mutual": 74.9,
}  # fmt: skip


def of_paper(dataset, network):
    """The paper's rows as {"method part": (many, medium, few, all)}."""
    rows = [row for row in published(dataset, None, network) if row.trust == "paper"]
    return {f"{row.method} {row.part}".strip(): row.accuracies for row in rows}


@pytest.mark.parametrize(("network", "column"), [("resnet50", 1), ("resnext50", 2)])
def test_every_figure_of_table_a2_stands_in_the_file_and_no_other(network, column):
    expected = {}
    for line in TABLE_A2.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if cells[column]:
            expected[cells[0]] = tuple(None if text == "-" else float(text) for text in cells[column].split())
    assert of_paper("imagenet_lt", network) == expected


def test_every_figure_of_table_a3_stands_in_the_file_and_no_other():
    assert of_paper("inat2018", "resnet50") == {name: (None, None, None, value) for name, value in TABLE_A3.items()}


@pytest.mark.parametrize(
    ("dataset", "factor", "network", "method", "figures"),
    [
        ("cifar100_lt", 100, "resnet32", "cross_entropy", {38.35, 39.1, 41.4, 41.0}),
        ("cifar100_lt", 50, "resnet32", "cross_entropy", {42.41, 45.5}),
        ("cifar100_lt", 10, "resnet32", "cross_entropy", {56.51, 59.0}),
        ("cifar100_lt", 100, "resnet32", "pc_softmax", {45.3}),
        ("cifar100_lt", 10, "resnet32", "pc_softmax", {61.2}),
        ("cifar100_lt", 100, "resnet32", "balanced_softmax", {42.39, 45.1, 46.1, 46.5, 50.8}),
        ("cifar100_lt", 50, "resnet32", "balanced_softmax", {47.6, 49.9}),
        ("cifar100_lt", 10, "resnet32", "ldam_drw", {58.71}),
        ("cifar100_lt", 100, "resnet32", "crt", {40.3}),
        ("cifar100_lt", 50, "resnet32", "lws", {45.2}),
        ("cifar100_lt", 100, "resnet32", "bbn", {42.56}),
        ("cifar100_lt", 50, "resnet32", "lade", {50.5}),
        ("cifar100_lt", 10, "resnet32", "dive", {62.0}),
        ("cifar100_lt", 100, "resnet32", "ssd", {46.0}),
        ("cifar100_lt", 50, "resnet32", "ssd", set()),  # remembered only
        ("cifar100_lt", 100, "resnet32", "mislas", {47.0}),
        ("cifar100_lt", 100, "resnet32", "ride", {48.6, 49.0, 49.4, 50.2}),
        ("cifar100_lt", 100, "resnet32", "ace", {49.6}),
        ("cifar100_lt", 100, "resnet32", "mutual", set()),  # not public
        ("imagenet_lt", None, "resnet50", "cross_entropy", {47.9, 41.6}),
        ("imagenet_lt", None, "resnext50", "cross_entropy", {49.0, 44.4, 48.2}),
        ("imagenet_lt", None, "resnext50", "pc_softmax", {53.5, 52.8}),
        ("imagenet_lt", None, "resnet50", "ldam_drw", {48.8, 51.2}),
        ("imagenet_lt", None, "resnext50", "tau_norm", {49.4}),
        ("imagenet_lt", None, "resnext50", "balanced_softmax", {51.4, 52.1}),
        ("inat2018", None, "resnet50", "ride", {71.2, 72.6, 74.6}),
        ("inat2018", None, "resnet50", "balanced_softmax", {69.8}),
        ("inat2018", None, "resnet50", "lws", {69.5}),
        ("inat2018", None, "resnet50", "cross_entropy", {65.0, 61.7}),
    ],
)
def test_the_literatures_figures_stand_in_the_file(dataset, factor, network, method, figures):
    assert {row.all for row in published(dataset, factor, network) if row.method == method} == figures


@pytest.mark.parametrize(
    ("dataset", "name", "figures"),
    [
        ("cifar100_lt", "SADE", {49.8}),
        ("cifar100_lt", "NCL (ensemble)", {54.2}),
        ("cifar100_lt", "ProCo", {52.8, 54.2, 57.1, 65.5}),
        ("cifar100_lt", "LIFT", {81.7, 83.1, 84.9, 89.1, 90.2, 91.3}),
        ("imagenet_lt", "PaCo", {57.0, 58.2}),
        ("imagenet_lt", "ProCo", {57.3, 57.8, 58.0}),
        ("imagenet_lt", "SADE", {58.8}),
        ("inat2018", "SHIKE", {75.4}),
        ("inat2018", "BalPoE", {76.9}),
    ],
)
def test_systems_that_mllt_does_not_have_stand_in_it_too(dataset, name, figures):
    assert {row.all for row in all_published() if (row.dataset, row.name) == (dataset, name) and row.confirmed} == figures


def test_groups_of_classes_where_they_are_published():
    found = {(row.name, row.accuracies) for row in all_published()}
    assert ("RIDE (3 experts)", (67.0, 49.9, 25.7, 48.6)) in found
    assert ("cRT", (61.8, 46.2, 27.4, 49.6)) in found
    assert ("SADE", (66.5, 57.0, 43.4, 58.8)) in found
    assert ("CE", (72.2, 63.0, 57.2, 61.7)) in found


def test_every_row_says_where_it_stands_and_how_far_to_trust_it():
    for row in all_published():
        assert row.source, row
        assert row.trust in TRUST, row
        assert all(value is None or 0 < value < 100 for value in row.accuracies), row


def test_what_is_only_remembered_is_kept_apart_from_every_table():
    remembered = [row for row in all_published() if row.trust == "recollection"]
    assert {row.all for row in remembered if row.name == "SSD"} == {50.5, 62.3}
    shown = {row for d, f, n in {(r.dataset, r.imbalance_factor, r.network) for r in remembered} for row in published(d, f, n)}
    assert shown
    assert shown.isdisjoint(remembered)


def test_other_data_networks_and_factors_have_no_published_figures():
    assert published("digits_lt", 60, "resnet20") == []
    assert published("cifar100_lt", 20, "resnet32") == []
    assert published("imagenet_lt", None, "resnet18") == []


def test_a_network_that_is_not_stated_is_never_taken_for_one_of_ours():
    names = {row.name for row in published("imagenet_lt", None, "resnet50") if row.network == "not stated"}
    assert names == {"NCL (single network)", "NCL (ensemble)", "SHIKE", "BalPoE"}
    assert not any(row.method for row in all_published() if row.network == "not stated")


def test_all_of_table_a2_follows_from_its_groups_except_in_two_rows():
    checks = {(check.name, check.network): check for check in check_table()}
    assert len(checks) == 6 + 8  # all rows of the table but ACE's two, which print no groups
    assert {key for key, check in checks.items() if not check.agrees} == {("RIDE", "resnext50"), ("MiSLAS", "resnet50")}
    assert all(check.why for check in checks.values() if not check.agrees)
    for (name, network), check in checks.items():
        (row,) = (
            r for r in all_published() if (r.name, r.network, r.trust, r.dataset) == (name, network, "paper", "imagenet_lt")
        )
        classes = [row.many] * 385 + [row.medium] * 479 + [row.few] * 136  # one class after another
        assert check.recomputed == pytest.approx(sum(classes) / 1000, abs=1e-9)
        assert check.printed == row.all
    assert checks["RIDE", "resnext50"].difference == pytest.approx(0.13, abs=0.005)
    assert checks["MiSLAS", "resnet50"].difference == pytest.approx(0.5, abs=0.005)


def test_mislas_agrees_by_its_own_groups():
    (check,) = (check for check in check_table((390, 445, 165)) if check.name == "MiSLAS")
    assert check.agrees


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([(200, "plain")], []),
        ([(100, "plain")], ["200 epochs"]),
        ([(200, "plain"), (100, "plain")], ["200 epochs"]),
        ([(200, "plain + rotation")], ["plain augmentation"]),
        ([(200, "plain, no crop, no flip")], ["plain augmentation (runs: no crop, no flip)"]),
        ([(200, "plain + rotation, no flip"), (200, "none")], ["plain augmentation (runs: no flip)"]),
        ([(90, "none")], ["200 epochs", "plain augmentation"]),
        ([(200, "plain", 3)], ["a single network"]),
        ([(200, "plain", 1, True)], []),
    ],
)
def test_training_that_differs_is_told(runs, said):
    (row,) = (row for row in published("cifar100_lt", 100, "resnet32") if row.method == "lade")
    assert row.differences([Training(*run) for run in runs]) == said


@pytest.mark.parametrize(
    ("experts", "distilled", "said"),
    [
        (3, False, [[], ["distilled"], ["4 experts", "distilled"], ["6 experts"]]),
        (3, True, [["not distilled"], [], ["4 experts"], ["6 experts", "not distilled"]]),
        (4, True, [["3 experts", "not distilled"], ["3 experts"], [], ["6 experts", "not distilled"]]),
        (None, None, [[], [], [], []]),
    ],
)
def test_variants_of_ride_are_told_apart(experts, distilled, said):
    rows = [row for row in published("cifar100_lt", 100, "resnet32") if row.method == "ride"]
    assert [row.differences([Training(200, "plain + rotation", experts, distilled)]) for row in rows] == said


def test_what_a_source_does_not_say_is_neither_alike_nor_different_but_said():
    (row,) = (row for row in published("imagenet_lt", None, "resnet50") if row.method == "ace")
    assert row.differences([Training(180, "plain", 3, False)]) == []
    assert "epochs not stated, augmentation not stated" in row.described()


def test_the_columns_are_those_of_the_table():
    assert GROUPS == ("many", "medium", "few", "all")
    with pytest.raises(ValueError, match=r"shorter|longer"):
        check_table((385, 479))
