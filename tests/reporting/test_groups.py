"""What is averaged, what is not, and what is said about it."""

from __future__ import annotations

import os
import statistics

import pytest
from tests.reporting.conftest import as_cifar, read

from mllt.reporting.groups import augmentation, experiments
from mllt.reporting.layout import lay_out
from mllt.reporting.published import published
from mllt.reporting.runs import find_runs
from mllt.reporting.tables import notes_as_lines, to_csv


def tables(folder):
    return experiments(find_runs([folder]).runs)


def table(folder):
    (found,) = tables(folder)
    return found


def groups(folder, method="mutual"):
    return [group for group in table(folder).groups if group.method == method]


def notes(folder):
    return "\n".join(notes_as_lines(lay_out(table(folder))))


@pytest.fixture
def pair(real, made, tmp_path):
    """`pair(config, results)`: seed 0 as it is and seed 1 changed; returns the folder of both."""

    def make(config=None, results=None):
        made(real["mutual0"], "a")
        made(real["mutual1"], "b", config, results)
        return tmp_path / "runs"

    return make


def test_seeds_are_averaged_with_the_sample_deviation(pair):
    folder = pair()
    (group,) = groups(folder)
    assert [run.seed for run in group.runs] == [0, 1]
    layout = lay_out(table(folder))
    told = [read(folder / name)["test"] for name in ("a", "b")]
    each, ensemble = [row for row in layout.rows if row.method == "mutual"]
    for column, name in enumerate(("many", "medium", "few", "all")):
        of_ensemble = [test["ensemble"]["compensated"][name] for test in told]
        assert ensemble.own[column].mean == pytest.approx(sum(of_ensemble) / 2, abs=1e-12)
        assert ensemble.own[column].std == pytest.approx(abs(of_ensemble[0] - of_ensemble[1]) / 2**0.5, abs=1e-9)
        of_experts = [sum(expert["compensated"][name] for expert in test["experts"]) / 2 for test in told]
        assert each.own[column].mean == pytest.approx(sum(of_experts) / 2, abs=1e-12)
        assert each.own[column].std == pytest.approx(statistics.stdev(of_experts), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.lr", 0.04),
        ("trainer.max_epochs", 3),
        ("trainer.precision", "bf16-mixed"),
        ("method.mutual_weight", 0.5),
        ("data.rotation", 7.5),
        ("data.subset_seed", 1),
        ("network.num_experts", 3),
        ("batch_size", 32),
        ("evaluation.ensemble", "probabilities"),
        ("a_setting.that_nobody_knows", 7),
    ],
)
def test_runs_of_another_recipe_stand_apart_and_the_report_says_in_what(pair, name, value):
    folder = pair({name: value})
    found = groups(folder)
    assert [len(group.runs) for group in found] == [1, 1]
    assert "must not be averaged" in notes(folder)
    assert name in notes(folder)
    assert f"{name.rpartition('.')[2]} {value}" in found[1].label + notes(folder)
    assert found[0].title != found[1].title


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"git_commit": "0123456789abcdef"}, ["code fedcba9", "code 0123456"]),
        ({"git_commit": "fedcba9999999999"}, ["code fedcba9876543210", "code fedcba9999999999"]),  # seven digits alike
        ({"git_commit": None}, ["code fedcba9", "code not recorded"]),
        ({"git_commit": "0123456789abcdef-dirty-0a1b2c3d"}, ["code fedcba9", "code 0123456-dirty-0a1b2c3d"]),
        ({"versions": {"mllt": "9.9.9"}}, ["mllt 9.9.9"]),
        (
            {"class_counts": [120, 76, 48, 30, 19, 12, 7, 4, 3, 1]},
            ["training images 257 in 10 classes", "training images 320 in 10 classes"],
        ),
        ({"class_counts": [119, 77, *[48, 30, 19, 12, 7, 4, 3, 2]]}, ["training images 321 in 10 classes"]),  # the same sum
        ({"epochs": 1}, ["epochs 2", "epochs 1"]),
        ({"recipe": "published"}, ["recipe published"]),
        ({"data_digest": "0a1b2c3d4e5f"}, ["digest 0a1b2c3d", "not of the same images with the same labels"]),
    ],
)
def test_runs_of_other_code_data_or_length_stand_apart_and_the_report_says_in_what(real, made, tmp_path, results, said):
    counts = {"class_counts": [120, 60, 30, 20, 10, 7, 5, 3, 1, 1]} if "257" in said[0] else {}
    known = {"git_commit": "fedcba9876543210", "data_digest": "99887766"}
    known = {name: value for name, value in known.items() if name in results}
    made(real["mutual0"], "a", results={**counts, **known})
    made(real["mutual1"], "b", results=results)
    folder = tmp_path / "runs"
    found = groups(folder)
    assert [len(group.runs) for group in found] == [1, 1]
    told = "\n".join([*(group.title for group in found), notes(folder)])
    for text in said:
        assert text in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "/elsewhere"),
        ("threads", 7),
        ("overwrite", True),
        ("resume", "auto"),
        ("data.root", "/elsewhere"),
        ("data.num_workers", 3),
        ("data.on_device", False),
        ("data.eval_batch_size", 7),
        ("trainer.devices", 4),
        ("trainer.accelerator", "gpu"),
        ("trainer.strategy", "ddp"),
        ("trainer.num_nodes", 2),
        ("trainer.profiler", "simple"),
        ("logger.project", "owls"),
        ("callbacks.progress.refresh_seconds", 9),
        ("recipe_source", "somewhere"),
        ("method.mutual_weight", 1),  # for 1.0
    ],
)
def test_what_does_not_bear_on_the_result_keeps_no_seeds_apart(pair, name, value):
    (group,) = groups(pair({name: value}))
    assert len(group.runs) == 2


def test_a_seed_that_ran_twice_counts_once_by_its_newest_run(real, made, tmp_path):
    first = made(real["mutual0"], "z_first")
    second = made(real["mutual0"], "a_second", results={"train_seconds": 99.0})
    made(real["mutual1"], "b")
    os.utime(first / "results.json", (1e9, 1e9))
    os.utime(second / "results.json", (2e9, 2e9))
    (group,) = groups(tmp_path / "runs")
    assert [run.folder.root for run in group.runs if run.seed == 0] == [second]
    assert len(group.runs) == 2
    assert "seed 0 ran 2 times" in notes(tmp_path / "runs")
    os.utime(first / "results.json", (3e9, 3e9))
    (group,) = groups(tmp_path / "runs")
    assert group.runs[0].folder.root == first


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("abcdef0123-dirty", "files that differ from commit abcdef0, so that its runs may be of different code"),
        ("abcdef0123-dirty-0a1b2c3d", "files that differ from commit abcdef0."),
        ("abcdef0123 + 9876543210", "trained partly by one commit and partly by another: abcdef0 + 9876543"),
        ("abcdef0123 + 9876543210-dirty-0a1b2c3d", "files that differ from commit 9876543."),
        (None, "no commit is recorded"),
    ],
)
def test_code_that_cannot_be_told_exactly_is_never_silently_the_same(real, made, tmp_path, commit, said):
    for name in ("mutual0", "mutual1"):
        made(real[name], name, results={"git_commit": commit})
    (group,) = groups(tmp_path / "runs")
    assert len(group.runs) == 2
    assert said in notes(tmp_path / "runs")


def test_an_unfinished_run_stands_with_the_runs_of_its_settings(real, made, tmp_path):
    made(real["mutual0"], "a")
    made(real["mutual1"], "b", finished=False)
    (group,) = groups(tmp_path / "runs")
    assert ([run.seed for run in group.runs], [run.seed for run in group.incomplete]) == ([0], [1])
    assert "seed 1 is incomplete, no results yet" in notes(tmp_path / "runs")
    assert [row.own[3].std for row in lay_out(table(tmp_path / "runs")).rows] == [None, None]


def test_an_unfinished_run_of_other_settings_has_a_row_of_its_own(real, made, tmp_path):
    made(real["mutual0"], "a")
    made(real["mutual1"], "b", {"optimizer.lr": 0.5}, finished=False)
    made(real["crt0"], "c", finished=False)
    layout = lay_out(table(tmp_path / "runs"))
    told = {row.name: row.status for row in layout.rows}
    assert told["Mutual Learning (lr 0.5)"] == "incomplete"  # and nothing of the code, which an unfinished run does not tell
    assert told["cRT"] == "incomplete"
    assert told["Mutual Learning (lr 0.02)"] == ""
    remark = "\n".join(layout.remarks)
    assert "They differ in optimizer.lr. No results yet: lr 0.5." in remark


@pytest.mark.parametrize(
    ("config", "titles"),
    [
        ({"network.name": "resnet32"}, {"Digits-LT (imbalance 60), ResNet-20", "Digits-LT (imbalance 60), ResNet-32"}),
        ({"data.imbalance_factor": 30.0}, {"Digits-LT (imbalance 60), ResNet-20", "Digits-LT (imbalance 30), ResNet-20"}),
        ({"data.profile": "step"}, {"Digits-LT (imbalance 60), ResNet-20", "Digits-LT (step, imbalance 60), ResNet-20"}),
        (
            {"evaluation.test_prior": "backward", "evaluation.test_prior_factor": 50.0},
            {"Digits-LT (imbalance 60), ResNet-20", "Digits-LT (imbalance 60), ResNet-20, test prior backward-50"},
        ),
    ],
)
def test_every_data_set_network_and_test_prior_has_a_table_of_its_own(pair, config, titles):
    assert {experiment.title for experiment in tables(pair(config))} == titles


OURS = {"data._target_": "mllt.data.ImageFolderLT", "data.root": "/pictures/birds"}


def test_folders_of_other_classes_are_other_experiments(real, made, tmp_path):
    made(real["mutual0"], "a", OURS, results={"data_digest": "aa11bb22"})
    made(real["mutual1"], "b", OURS | {"data.root": "/moved/birds"}, results={"data_digest": "aa11bb22"})
    made(real["mutual1"], "c", OURS | {"data.root": "/pictures/bees"})
    made(real["mutual1"], "d", OURS, results={"class_names": list("abcdefghij")})
    found = {experiment.title: sum(len(group.runs) for group in experiment.groups) for experiment in tables(tmp_path / "runs")}
    name = "ImageFolderLT {} (imbalance 60), ResNet-20"
    assert found == {name.format("birds") + " (1)": 2, name.format("birds") + " (2)": 1, name.format("bees"): 1}
    assert [len(experiment.groups) for experiment in tables(tmp_path / "runs")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [("data.root", "/a/birds", "/b/birds"), ("data.train_list", "/fold1/train.csv", "/fold2/train.csv")],
)
def test_images_are_the_same_by_their_digest_and_without_one_by_where_they_lie(real, made, tmp_path, name, here, there):
    for place, digests in {"old": (None, None), "same": ("aa11bb22", "aa11bb22"), "other": ("aa11bb22", "cc33dd44")}.items():
        for seed, (path, digest) in enumerate(zip((here, there), digests, strict=True)):
            made(real[f"mutual{seed}"], f"{place}/{seed}", OURS | {name: path}, results={"data_digest": digest})
    folder = tmp_path / "runs"
    assert [len(group.runs) for group in groups(folder / "same")] == [2]
    same = notes(folder / "same")
    assert "place of the images differs between its seeds: " in same
    assert same.index(here) < same.index(there)
    for place in ("old", "other"):
        assert [len(group.runs) for group in groups(folder / place)] == [1, 1]
        told = notes(folder / place)
        assert "not of the same images with the same labels" in told
        assert here in told
        assert there in told
    assert "digest aa11bb22" in notes(folder / "other")


def test_methods_of_other_images_in_one_table_are_told(real, made, tmp_path):
    made(real["mutual0"], "a", results={"data_digest": "aa11bb22"})
    made(real["crt0"], "b", results={"data_digest": "cc33dd44"})
    told = notes(tmp_path / "runs")
    assert "cannot be compared: digest cc33dd44 (cRT); digest aa11bb22 (Mutual Learning)." in told


def test_images_that_are_not_recorded_are_told(real, made, tmp_path):
    made(real["mutual0"], "a", results={"data_digest": "aa11bb22"})
    made(real["crt0"], "b", results={"data_digest": None})
    told = notes(tmp_path / "runs")
    assert "they may not be compared: not recorded (cRT); digest aa11bb22 (Mutual Learning)." in told


def test_an_unfinished_run_stands_with_the_runs_of_its_own_folder(real, made, tmp_path):
    for name, digest in (("a", "aa11bb22"), ("b", "cc33dd44")):
        made(real["mutual0"], name, OURS | {"data.root": f"/{name}/birds"}, results={"data_digest": digest})
    made(real["mutual1"], "c", OURS | {"data.root": "/b/birds"}, finished=False)
    found = groups(tmp_path / "runs")
    assert [(group.settings["images"], len(group.incomplete)) for group in found] == [("aa11bb22", 0), ("cc33dd44", 1)]


def test_titles_that_differ_in_foreign_letters_alone_have_addresses_of_their_own(real, made, tmp_path):
    for name in "鳥花":
        made(real["mutual0"], name, OURS | {"data.root": f"/a/{name}"})
    first, second = tables(tmp_path / "runs")
    assert first.title != second.title
    assert first.slug != second.slug


def test_an_unfinished_run_of_ones_own_method_goes_by_the_name_that_a_finished_one_tells(real, made, tmp_path):
    ours = {"method._target_": "my_package.OwlModule"}
    made(real["mutual0"], "a", ours, results={"method": "owl"})
    made(real["mutual1"], "b", ours, finished=False)
    (group,) = groups(tmp_path / "runs", "owl")
    assert (len(group.runs), len(group.incomplete)) == (1, 1)


def test_rows_of_a_sweep_stand_in_the_order_of_its_numbers(real, made, tmp_path):
    for place, rate in enumerate((1e-05, 10.0, 0.5, 2.0)):
        made(real["mutual0"], f"{3 - place}", {"optimizer.lr": rate})
    assert [group.label for group in groups(tmp_path / "runs")] == ["lr 1e-05", "lr 0.5", "lr 2", "lr 10"]


def test_rows_are_named_by_what_they_differ_in_where_that_is_short_and_else_by_letters(real, made, tmp_path):
    for number in (2, 3):
        made(real["mutual0"], f"short/{number}", {"network.num_experts": number})
        long = dict.fromkeys(("optimizer.lr", "optimizer.momentum", "method.mutual_weight"), 0.1 * number)
        made(real["mutual0"], f"long/{number}", long)
    folder = tmp_path / "runs"
    assert [group.title for group in groups(folder / "short")] == [f"Mutual Learning (num_experts {n})" for n in (2, 3)]
    assert [group.title for group in groups(folder / "long")] == ["Mutual Learning (A)", "Mutual Learning (B)"]
    layout = lay_out(table(folder / "long"))
    ((name, meanings),) = layout.letters
    assert (name, [letter for letter, _ in meanings]) == ("Mutual Learning", ["A", "B"])
    assert meanings[0][1] == "method.mutual_weight 0.2, optimizer.lr 0.2, optimizer.momentum 0.2"
    assert f"Mutual Learning (A): {meanings[0][1]}" in notes(folder / "long")
    assert lay_out(table(folder / "short")).letters == []
    assert ",num_experts 2," in to_csv([lay_out(table(folder / "short"))])


def test_a_run_with_a_teacher_is_none_without(pair):
    assert len(groups(pair({"method.teacher": "/t/one.ckpt"}))) == 2


def test_devices_and_versions_of_torch_may_differ_between_seeds_but_are_told(pair):
    folder = pair(None, {"device": "1 x H100"})
    (group,) = groups(folder)
    assert len(group.runs) == 2
    assert "device differs between its seeds: 1 x cpu" in notes(folder)


def test_teachers_at_other_places_are_averaged_and_told(real, made, tmp_path):
    for seed in (0, 1):
        made(real[f"mutual{seed}"], f"m{seed}", {"method.teacher": f"/teachers/{seed}/last.ckpt"})
    (group,) = groups(tmp_path / "runs")
    assert len(group.runs) == 2
    assert "method.teacher differs between its seeds: /teachers/0/last.ckpt | /teachers/1/last.ckpt" in notes(tmp_path / "runs")


def test_runs_on_a_part_of_the_images_say_so(pair):
    assert "trained on a part of every epoch (trainer.limit_train_batches=4)" in notes(pair())


def test_reconstructed_details_are_notes_of_the_row(real, made, tmp_path):
    made(real["mutual0"], "a", results={"reconstructed": ["the optimizer is not public", "nor is the schedule"]})
    layout = lay_out(table(tmp_path / "runs"))
    (number,) = [number for number, note in enumerate(layout.notes, start=1) if "reconstructed" in note]
    assert layout.notes[number - 1].endswith("the optimizer is not public. nor is the schedule.")
    assert all(number in row.marks for row in layout.rows)


def test_what_holds_for_all_runs_is_said_once(real, made, tmp_path):
    for name in ("mutual0", "cross_entropy0"):
        made(real[name], name, results={"git_commit": "abcdef0123-dirty-0a1b2c3d"})
    layout = lay_out(table(tmp_path / "runs"))
    assert "All runs: made with files that differ from commit abcdef0." in layout.remarks
    assert not any("differ from commit" in note for note in layout.notes)


def test_methods_of_different_lengths_in_one_table_are_told(real, made, tmp_path):
    made(real["mutual0"], "a")
    made(real["cross_entropy0"], "b", {"trainer.max_epochs": 90})
    remark = "\n".join(lay_out(table(tmp_path / "runs")).remarks)
    assert "not alike in trainer.max_epochs: 90 (Cross Entropy); 2 (Mutual Learning)" in remark


def test_the_epochs_of_a_run_are_those_of_its_longest_stage(real, made, tmp_path):
    (run,) = groups(real["crt0"], "crt")
    assert run.epochs == 2
    config, results = as_cifar(real["crt0"])
    stages = [{"name": "features", "epochs": 200}, {"name": "head", "epochs": 10}]
    made(real["crt0"], "a", config, {**results, "epochs": 10, "stages": stages})
    (group,) = groups(tmp_path / "runs", "crt")
    assert group.epochs == 200


@pytest.mark.parametrize(
    ("data", "method", "words"),
    [
        ({"autoaugment": None, "cutout": 0}, {}, "plain"),
        ({"autoaugment": "cifar10", "cutout": 16}, {}, "AutoAugment + Cutout"),
        ({"autoaugment": "cifar10", "cutout": 0, "rotation": 15.0}, {}, "AutoAugment + rotation"),
        ({"autoaugment": None, "cutout": 8, "padding": 0}, {}, "plain + Cutout of 8, no crop"),
        ({"autoaugment": "cifar10", "cutout": 16}, {"mixup_alpha": 1.0}, "mixup + AutoAugment + Cutout"),
        ({"autoaugment": "cifar10"}, {"mixup_alpha": 0.4}, "mixup + AutoAugment"),
        ({"autoaugment": "cifar10", "cutout": 16, "augment": False}, {}, "none"),
    ],
)
def test_autoaugment_and_cutout_are_named(data, method, words):
    whole = {"_target_": "mllt.data.CIFAR100LT", "padding": 4, "flip": True, "rotation": 0.0} | data
    assert augmentation({"data": whole, "method": method}) == words


def test_what_is_published_of_long_training_is_in_the_words_of_such_runs():
    strong = {"_target_": "mllt.data.CIFAR100LT", "padding": 4, "flip": True, "autoaugment": "cifar10", "cutout": 16}
    words = augmentation({"data": strong, "method": {}})
    alike = {one.name for one in published("cifar100_lt", 100, "resnet32") if (one.epochs, one.augmentation) == (400, words)}
    assert {"PaCo", "ProCo", "MDCS"} <= alike
