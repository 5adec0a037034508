"""The table: its rows, what stands beside them, and how it is written down."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console
from tests.reporting.conftest import as_cifar, read

from mllt.reporting import tables
from mllt.reporting.groups import experiments
from mllt.reporting.layout import caption, findings, lay_out, more
from mllt.reporting.published import check_table
from mllt.reporting.runs import find_runs


def layouts(folder):
    return [lay_out(experiment) for experiment in experiments(find_runs([folder]).runs)]


def layout(folder):
    (found,) = layouts(folder)
    return found


@pytest.fixture
def cifar(real, made, tmp_path):
    """A folder of runs as if on CIFAR100-LT: cross entropy, and mutual learning with two seeds."""
    for name in ("cross_entropy0", "mutual0", "mutual1"):
        made(real[name], name, *as_cifar(real[name]))
    return tmp_path / "runs"


def test_methods_stand_in_the_papers_order_and_experts_before_their_ensemble(real, made, tmp_path):
    for name in ("crt0", "mutual0", "cross_entropy0"):
        made(real[name], name)
    made(real["cross_entropy0"], "zebra", results={"method": "zebra"})
    made(real["cross_entropy0"], "owl", results={"method": "owl"})
    names = [row.name for row in layout(tmp_path / "runs").rows]
    expected = ["Cross Entropy", "PC Softmax", "cRT", "Mutual Learning (each expert)", "Mutual Learning", "owl", "zebra"]
    assert names == expected


def test_cross_entropy_runs_give_a_row_of_pc_softmax_that_says_so(real):
    found = layout(real["cross_entropy0"])
    raw, compensated = found.rows
    told = read(real["cross_entropy0"])["test"]["ensemble"]
    assert (raw.name, raw.own[3].mean) == ("Cross Entropy", told["raw"]["all"])
    assert (compensated.name, compensated.own[3].mean) == ("PC Softmax", told["compensated"]["all"])
    assert "Cross Entropy runs once more" in found.notes[compensated.marks[0] - 1]
    assert not set(compensated.marks) & set(raw.marks)


def test_runs_of_pc_softmax_itself_are_not_joined_by_those_of_cross_entropy(real, made, tmp_path):
    made(real["cross_entropy0"], "a")
    made(real["cross_entropy0"], "b", results={"method": "pc_softmax", "reported": "compensated"})
    rows = layout(tmp_path / "runs").rows
    assert [row.name for row in rows] == ["Cross Entropy", "PC Softmax"]
    assert [row.group.method for row in rows] == ["cross_entropy", "pc_softmax"]


def test_what_the_authors_report_is_shown(real, made, tmp_path):
    made(real["mutual0"], "a", results={"reported": "raw"})
    told = read(real["mutual0"])["test"]["ensemble"]["raw"]
    row = layout(tmp_path / "runs").rows[-1]
    assert [stat.mean for stat in row.own] == [told[name] for name in ("many", "medium", "few", "all")]
    assert any("the raw outputs of Mutual Learning" in remark for remark in layout(tmp_path / "runs").remarks)


def test_a_group_without_classes_is_told_as_such_and_not_as_zero(real, made, tmp_path):
    test = read(real["mutual0"])["test"]
    for row in (test["ensemble"], *test["experts"]):
        for kind in row.values():
            kind["few"] = None
    made(real["mutual0"], "a", results={"test": test})
    found = layout(tmp_path / "runs")
    assert [tables.cells(row)[2] for row in found.rows] == ["n/a", "n/a"]


def test_data_without_published_figures_has_no_columns_for_them(real):
    found = layout(real["mutual0"])
    assert not found.with_published
    assert tables.header(found)[:6] == ["method", "many", "medium", "few", "all", "seeds"]
    assert "published" not in " ".join(tables.header(found))


def test_published_figures_stand_beside_the_runs_the_most_alike_first(cifar):
    found = layout(cifar)
    rows = [row for row in found.rows if row.method == "cross_entropy"]
    assert [row.beside.all for row in rows] == [38.35, 41.4, 39.1, 41.0]
    assert [bool(row.group) for row in rows] == [True, False, False, False]
    assert rows[0].flags == []
    assert rows[1].flags == ["plain + rotation augmentation"]
    assert found.notes[rows[0].marks[-1] - 1] == "Published: CE: DiVE Table 1; 200 epochs, plain augmentation."
    assert "Differs from the runs: plain + rotation augmentation" in found.notes[rows[1].marks[-1] - 1]
    (pc,) = (row for row in found.rows if row.method == "pc_softmax")
    assert (pc.beside.all, pc.group.method) == (45.3, "cross_entropy")


def test_published_methods_that_were_not_run_have_rows_too_and_stay_empty(cifar):
    found = layout(cifar)
    (lade,) = (row for row in found.rows if row.method == "lade")
    assert (lade.status, lade.beside.all, tables.cells(lade)) == ("published", 45.4, [""] * 4)
    assert [row.name for row in found.rows if row.method == "ride"] == [
        "RIDE (3 experts)",
        "RIDE (3 experts, distilled)",
        "RIDE (4 experts, distilled)",
        "RIDE (6 experts)",
    ]
    assert {row.name for row in found.others} >= {"SADE", "PaCo", "LIFT"}


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"data.rotation": 15.0}, ["plain augmentation"]),
        ({"data.flip": False, "data.padding": 0}, ["plain augmentation (runs: no crop, no flip)"]),
        ({"data.padding": 1}, ["plain augmentation (runs: padding 1)"]),
        ({"trainer.max_epochs": 20}, ["200 epochs"]),
        ({"data.augment": False, "trainer.max_epochs": 20}, ["200 epochs", "plain augmentation"]),
        ({"network.num_experts": 3}, ["a single network"]),
    ],
)
def test_published_figures_that_were_trained_otherwise_are_flagged(real, made, tmp_path, config, flags):
    settings, results = as_cifar(real["cross_entropy0"])
    epochs = config.get("trainer.max_epochs", 200)
    stages = [{"name": "training", "epochs": epochs}]
    # Of three published figures of cross entropy the one most alike is taken: pc_softmax has but one.
    made(real["cross_entropy0"], "a", settings | config, results | {"method": "pc_softmax", "epochs": epochs, "stages": stages})
    found = layout(tmp_path / "runs")
    (row,) = (row for row in found.rows if row.method == "pc_softmax")
    assert row.flags == flags
    assert tables.line(found, row)[-2].endswith("*")
    assert ", ".join(flags) in tables.line(found, row, sources=True)
    assert any("trained otherwise" in text for text in tables.notes_as_lines(found))


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, []),
        ({"data.color_jitter": 0.0}, ["plain augmentation (runs: no colour jitter)"]),
        ({"data.crop_scale": [0.2, 1.0]}, ["plain augmentation (runs: crops of 0.2 to 1)"]),
        ({"data.padding": 8, "data.hue": 0.1}, ["plain augmentation (runs: padding 8, hue jitter 0.1)"]),
        ({"data.image_size": 160}, ["plain augmentation (runs: 160 pixels)"]),
    ],
)
def test_augmentation_of_pictures_is_compared_with_the_customary_one(real, made, tmp_path, change, flags):
    usual = {"color_jitter": 0.4, "hue": 0.0, "crop_scale": [0.08, 1.0], "padding": None, "image_size": 224}
    settings, results = as_cifar(
        real["cross_entropy0"], method="lade", epochs=180, stages=[{"name": "training", "epochs": 180}]
    )
    settings |= {f"data.{name}": value for name, value in usual.items()}
    settings |= {"data._target_": "mllt.data.ImageNetLT", "data.imbalance_factor": None, "network.name": "resnext50"}
    made(real["cross_entropy0"], "a", settings | {"trainer.max_epochs": 180} | change, results)
    (row,) = (row for row in layout(tmp_path / "runs").rows if row.method == "lade")
    assert row.beside.source == "Mutual Learning Table A2"
    assert row.flags == flags


@pytest.mark.parametrize(
    ("config", "name", "flags"),
    [
        ({"network.num_experts": 3}, "RIDE (3 experts)", []),
        ({"network.num_experts": 3, "method.distill": True}, "RIDE (3 experts, distilled)", []),
        ({"network.num_experts": 3, "method.teacher": "/t/last.ckpt"}, "RIDE (3 experts, distilled)", []),
        ({"network.num_experts": 4, "method.distill": True}, "RIDE (4 experts, distilled)", []),
        ({"network.num_experts": 6}, "RIDE (6 experts)", []),
        ({"network.num_experts": 5}, "RIDE (3 experts)", ["3 experts"]),
    ],
)
def test_a_run_stands_beside_the_published_variant_of_its_own(real, made, tmp_path, config, name, flags):
    settings, results = as_cifar(real["mutual0"], method="ride")
    made(real["mutual0"], "a", settings | {"data.rotation": 15.0} | config, results)
    (row,) = (row for row in layout(tmp_path / "runs").rows if row.method == "ride" and row.group and not row.part)
    assert (row.beside.name, row.flags) == (name, flags)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, ""),
        ({"evaluation.many_above": 50}, "many above 50, few below 20"),
        ({"evaluation.shot_edges_inclusive": True}, "many from 100, few up to 20"),
    ],
)
def test_another_rule_of_shot_groups_is_told_beside_published_groups(real, made, tmp_path, rule, said):
    settings, results = as_cifar(real["mutual0"], method="ride")
    made(real["mutual0"], "a", settings | rule, results)
    remark = "".join(text for text in layout(tmp_path / "runs").remarks if "another rule" in text)
    assert bool(remark) is bool(said)
    assert said in remark


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"fitted_prior": "uniform", "test_prior": "uniform"}, "the outputs, which fit the test prior as they are, of"),
        ({"fitted_prior": "train", "test_prior": "uniform"}, "the outputs, post-compensated to the test prior, of"),
        ({"fitted_prior": "train", "test_prior": "train"}, "the outputs, which fit the test prior as they are, of"),
        ({"fitted_prior": None}, "the outputs, which fit the test prior as they are, of"),  # an old file: by the numbers
    ],
)
def test_whether_outputs_fit_the_test_prior_is_told_by_the_prior_and_not_by_chance(real, made, tmp_path, told, words):
    test = read(real["mutual0"])["test"]
    test["ensemble"]["raw"] = test["ensemble"]["compensated"]  # the same accuracies, as may happen by chance
    made(real["mutual0"], "a", results={"test": test, **told})
    (remark,) = (text for text in layout(tmp_path / "runs").remarks if text.startswith("As the methods' authors"))
    assert f"{words} Mutual Learning" in remark


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"evaluation.test_prior": "train"}, False),
        ({"data.profile": "step"}, False),
        ({"data.imbalance_factor": 20.0}, False),
        ({"network.name": "resnet20"}, False),
    ],
)
def test_published_figures_are_shown_only_for_their_own_data_network_and_prior(real, made, tmp_path, change, shown):
    settings, results = as_cifar(real["mutual0"])
    made(real["mutual0"], "a", settings | change, results)
    assert layout(tmp_path / "runs").with_published is shown


def test_runs_on_another_number_of_images_are_not_comparable_and_the_report_says_so(real, made, tmp_path, cifar):
    assert not any("not comparable" in remark for remark in layout(cifar).remarks)
    settings, results = as_cifar(real["mutual0"])
    counts = [count - 1 for count in results["class_counts"]]
    made(real["mutual0"], "less", settings, results | {"class_counts": counts})
    assert any("10,847 training images, the runs of 10,747, 10,847" in remark for remark in layout(cifar).remarks)


def test_the_second_table_shows_both_kinds_and_the_size(real):
    found = layout(real["mutual0"])
    ((title, texts),) = more(found.experiment)
    told = read(real["mutual0"])
    ensemble = told["test"]["ensemble"]
    both = [ensemble[kind][column] for column in ("few", "all", "ece") for kind in ("raw", "compensated")]
    assert title == "Mutual Learning"
    assert texts == [*(f"{value:.1f}" for value in both), f"{told['parameters']:,}"]


def test_a_methods_own_findings_are_averaged_over_seeds(real, made, tmp_path):
    details = [
        {
            "mean_experts": 1.5,
            "macs": {"saved": 0.5, "all": 2},
            "by_depth": {"1": {"few": 1}},
            "used": [50, 30],
            "per_class": list(range(10)),
            "chosen": "a",
            "none": None,
        },
        {
            "mean_experts": 2.5,
            "macs": {"saved": 0.0, "all": 4},
            "by_depth": {"1": {"few": 3}},
            "used": [70, 10],
            "per_class": [2] * 10,
            "chosen": "b",
            "none": None,
        },
    ]
    for seed in (0, 1):
        made(real[f"mutual{seed}"], str(seed), results={"details": details[seed]})
    (group,) = layout(tmp_path / "runs").experiment.groups
    told = findings(group)
    assert dict(told.texts) == {
        "experts asked per image, mean": "2 ± 0.7071",
        "macs": "saved 0.25, all 3",
        "used": "60, 20",
        "chosen": "a | b",
    }
    assert [(grid.title, grid.columns, grid.lines) for grid in told.grids] == [("by depth", ["few"], [["1", "2"]])]
    assert told.by_class == {"per class": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5]}


def test_dives_virtual_examples_are_a_table_of_temperatures_by_groups(real, made, tmp_path):
    for seed, few in ((0, 7.0), (1, 9.0)):
        at = {"1": {"many": 119.5, "medium": None, "few": few}, "6": {"many": 65.5, "medium": None, "few": 24.0}}
        details = {"virtual_examples": [float(c) for c in range(10)], "effective_temperature": 6.0, "virtual_examples_at": at}
        made(real[f"mutual{seed}"], str(seed), results={"details": details})
    folder = tmp_path / "runs"
    (group,) = layout(folder).experiment.groups
    told = findings(group)
    (grid,) = told.grids
    assert (grid.title, grid.first) == ("virtual examples per class by effective temperature", "effective temperature")
    assert grid.columns == ["many", "medium", "few"]
    assert grid.lines == [["1", "119.5", "n/a", "8.0"], ["6", "65.5", "n/a", "24.0"]]
    assert list(told.by_class) == ["virtual examples per class"]
    assert told.texts == [("effective temperature", "6")]
    assert "| effective temperature | many | medium | few |" in tables.to_markdown(layouts(folder), [], [])


# ---------------------------------------------------------------------------------------------------------------
# Written down


def test_the_terminals_table_is_whole_also_where_the_output_is_narrow(cifar, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tables.say(tables.to_terminal(layout(cifar)))
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.strip().startswith("Mutual Learning (each expert)"))
    assert "…" not in line
    assert len(re.findall(r"\d+\.\d ± \d+\.\d", line)) == 4


def cells_of(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_tables_have_as_many_cells_in_every_row(cifar):
    text = tables.to_markdown(layouts(cifar), check_table(), ["An opening."])
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.M)
    assert len(blocks) == 4  # the table, its compensation, how its runs were made, other systems
    for block in blocks:
        assert len({len(cells_of(line)) for line in block.splitlines()}) == 1
    (line,) = (line for line in blocks[0].splitlines() if line.startswith("| Mutual Learning |"))
    row = layout(cifar).rows[-1]
    assert cells_of(line)[1:5] == [stat.text() for stat in row.own]
    assert "Does the published table agree with itself?" not in text  # none of its figures stands here
    assert "An opening." in text


def test_the_check_of_table_a2_stands_where_a_figure_of_it_does(real, made, tmp_path):
    settings, results = as_cifar(real["mutual0"])
    settings |= {"data._target_": "mllt.data.ImageNetLT", "data.imbalance_factor": None, "network.name": "resnext50"}
    made(real["mutual0"], "a", settings, results)
    text = tables.to_markdown(layouts(tmp_path / "runs"), check_table(), [])
    assert "differs: more than rounding explains" in text


def test_names_stay_text_in_markdown_and_foreign_ones_name_the_engine_of_latex(real, made, tmp_path):
    made(real["mutual0"], "a", results={"method": "<b>R&D</b>\n\x1b鳥"})
    found = layouts(tmp_path / "runs")
    text = tables.to_markdown(found, [], ["<i>opening</i>"])
    assert "| &lt;b&gt;R&amp;D&lt;/b&gt; 鳥 |" in text
    assert "&lt;i&gt;opening" in text
    assert "lualatex" in tables.to_latex(found).splitlines()[1]
    assert "lualatex" not in tables.to_latex([layout(real["mutual0"])])


def test_every_number_in_latex_sits_in_a_table_of_even_rows_and_nothing_is_left_unescaped(real, made, cifar):
    made(real["cross_entropy0"], "odd", *as_cifar(real["cross_entropy0"], method="50%_of & {all} #1 $x^2~\\"))
    text = tables.to_latex(layouts(cifar))
    body = text[text.index("\\midrule") : text.index("\\bottomrule")].splitlines()[1:]
    assert len(body) > 20
    for line in body:
        assert line.endswith(" \\\\")
        assert len(re.findall(r"(?<!\\)&", line)) == 9, line
    assert "50\\%\\_of \\& \\{all\\} \\#1 \\$x\\textasciicircum{}2\\textasciitilde{}\\textbackslash{}" in text
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    assert text.count("\\begin{") == text.count("\\end{")
    assert all(ord(character) < 128 for character in text)


def test_csv_holds_unrounded_numbers_and_says_whose_they_are(cifar):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(layouts(cifar)))))
    (ensemble,) = (row for row in rows if (row["origin"], row["method"], row["part"]) == ("runs", "mutual", ""))
    told = [read(cifar / name)["test"]["ensemble"]["compensated"]["all"] for name in ("mutual0", "mutual1")]
    assert float(ensemble["all_mean"]) == sum(told) / 2
    assert float(ensemble["all_std"]) == pytest.approx(abs(told[0] - told[1]) / 2**0.5, abs=1e-12)
    assert (ensemble["seeds"], ensemble["num_seeds"], ensemble["epochs"], ensemble["augmentation"]) == (
        "0 1",
        "2",
        "200",
        "plain",
    )
    published = [row for row in rows if row["origin"] == "published"]
    assert all(row["source"] and row["trust"] and not row["seeds"] for row in published)
    assert {row["all_mean"] for row in published if row["method"] == "lade"} == {"45.4"}
    assert any(row["differs"] == "AutoAugment + Cutout" for row in published)


def test_the_caption_counts_classes_and_images(cifar):
    assert "10,847 training images in 100 classes (35 many, 35 medium, 30 few)" in caption(layout(cifar).experiment)


def test_rich_draws_no_more_than_the_table_needs(real):
    table = tables.to_terminal(layout(real["mutual0"]))
    assert Console(width=300).measure(table).maximum < 120
