"""`LongTailedModule`: training, testing, checkpoints and resuming, through Lightning's real Trainer."""

import math

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.reference import metrics as reference
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mllt import CrossEntropyModule, DigitsLT, LongTailedModule, MutualLTModule, compensate, load_checkpoint
from mllt.data import Batch
from mllt.errors import ArgumentError, CheckpointError, MlltError

COUNTS = [120, 24, 6]


class Recorder(Callback):
    """What happened in a training, step by step and epoch by epoch."""

    def __init__(self):
        self.losses, self.rates, self.weights, self.gradients, self.evaluated = [], [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([p.grad.clone() for p in pl_module.network.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.weights.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.evaluated.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


class Prepared(Dataset):
    """Batches made by hand, in order."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

    def loader(self):
        return DataLoader(self, batch_size=None)


def whole(problem, weight=1.0, rows=slice(None)):
    images, targets = (part[rows] for part in problem)
    return Batch(images, targets, torch.arange(len(targets)), torch.tensor(weight))


def same(first, second):
    """Bitwise equal, whatever they are."""
    assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def seeded(cls=MutualLTModule, seed=0, **arguments):
    torch.manual_seed(seed)
    return cls(**arguments)


# ----------------------------------------------------------------------------------------------- anyone's loader


def test_ten_lines_train_and_test_a_model_on_anyones_images(tmp_path):
    images, targets = torch.randn(32, 3, 16, 16), torch.tensor([0] * 20 + [1] * 8 + [2] * 4)
    loader = DataLoader(TensorDataset(images, targets), batch_size=16, shuffle=True)
    module = MutualLTModule(class_counts=targets.bincount(), network="resnet20")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)
    assert 0 <= trainer.callback_metrics["test/compensated/all"] <= 100
    probabilities = torch.cat(trainer.predict(module, loader))
    assert probabilities.shape == (32, 3)


def test_a_separable_problem_is_learned(small, loader, make_trainer):
    module, recorder = MutualLTModule(**small, lr=0.05, schedule="constant"), Recorder()
    trainer = make_trainer(12, callbacks=[recorder])
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)
    assert sum(recorder.losses[-3:]) < 0.2 * sum(recorder.losses[:3])
    assert module.test_results["ensemble"]["compensated"]["all"] > 95


def test_pairs_and_batches_train_alike_to_the_last_bit(small, problem, make_trainer):
    results = []
    for batch in (whole(problem), tuple(problem), list(problem)):
        module = seeded(**small)
        make_trainer(2).fit(module, Prepared(batch).loader())
        results.append(module.state_dict())
    same(results[1], results[0])
    same(results[2], results[0])


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 8, 8), {"image": torch.zeros(2, 3, 8, 8)}, (torch.zeros(2, 3, 8, 8),)])
def test_what_is_no_pair_of_images_and_targets_is_refused(small, make_trainer, batch):
    with pytest.raises(ArgumentError, match=r"Expected a batch to be a pair of tensors \(images, targets\), but got"):
        make_trainer().fit(MutualLTModule(**small), Prepared(batch).loader())


def test_two_runs_of_one_seed_are_equal_to_the_last_bit(small, make_trainer):
    results = []
    for seed in (3, 3, 4):
        L.seed_everything(seed, verbose=False)
        data = DigitsLT(batch_size=32, seed=seed)
        module = MutualLTModule(**{**small, "class_counts": data.class_counts})
        make_trainer(2, limit_train_batches=3).fit(module, datamodule=data)
        results.append(module.state_dict())
    same(results[1], results[0])
    assert not torch.equal(results[2]["network.heads.0.weight"], results[0]["network.heads.0.weight"])


# ------------------------------------------------------------------------------------------------------ training


def test_the_loss_is_the_sum_of_the_terms_times_the_batchs_weight(small, problem, make_trainer):
    runs = []
    for weight in (1.0, 0.5):
        module, recorder = seeded(**small), Recorder()
        trainer = make_trainer(callbacks=[recorder])
        module.network.eval()  # batch normalisation apart, so that the loss can be had again
        with torch.no_grad():
            terms = module.objective(module(problem[0]), problem[1])
        trainer.fit(module, Prepared(whole(problem, weight)).loader())
        assert recorder.losses == [pytest.approx(weight * (terms["cross_entropy"] + terms["mutual"]).item())]
        assert trainer.callback_metrics["train/loss"].item() == pytest.approx(sum(terms.values()).item())
        assert trainer.callback_metrics["train/mutual"].item() == pytest.approx(terms["mutual"].item())
        runs.append(recorder.gradients[0])
    for full, half in zip(*runs, strict=True):
        assert_close(half, full / 2)


def test_the_logged_loss_is_the_mean_over_the_epochs_images(small, problem, make_trainer):
    parts = [whole(problem, rows=slice(0, 100)), whole(problem, rows=slice(100, 150)), whole(problem, 0.0, slice(7, 8))]
    module = MutualLTModule(**{**small, "lr": 1e-12})  # stands still
    module.network.eval()
    with torch.no_grad():
        terms = module.objective(module(problem[0]), problem[1])  # means over all 150 images; those of weight 0 do not count
    trainer = make_trainer()
    trainer.fit(module, Prepared(*parts).loader())
    logged = trainer.callback_metrics
    assert set(logged) == {"train/loss", "train/cross_entropy", "train/mutual"}
    for name, term in {**terms, "loss": sum(terms.values())}.items():
        assert logged[f"train/{name}"].item() == pytest.approx(term.item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [64, 320])
def test_accumulated_shares_give_the_gradient_of_the_global_batch(small, make_trainer, batch_size):
    # 321 images: the last step has a single one, so that one of its two shares is empty
    runs = []
    for accumulate in (1, 2):
        data = DigitsLT(batch_size=batch_size)
        standing_still = {**small, "class_counts": data.class_counts, "lr": 1e-12}
        module, recorder = seeded(**standing_still), Recorder()
        module.network.eval()  # batch normalisation would see other batches
        trainer = make_trainer(accumulate_grad_batches=accumulate, callbacks=[recorder])
        trainer.fit(module, datamodule=data)
        runs.append((recorder, trainer.callback_metrics["train/loss"].item()))
    (whole_batches, loss), (shares, accumulated_loss) = runs
    assert len(whole_batches.gradients) == len(shares.gradients) == math.ceil(321 / batch_size)
    for one, other in zip(whole_batches.gradients, shares.gradients, strict=True):
        assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert accumulated_loss == pytest.approx(loss, rel=1e-4)


def test_the_learning_rate_follows_the_schedule_of_the_run(small, problem, make_trainer):
    recorder = Recorder()
    settings = {"lr": 0.4, "warmup_epochs": 2, "milestones": [0.5, 5], "gamma": 0.5}
    make_trainer(6, callbacks=[recorder]).fit(MutualLTModule(**{**small, **settings}), Prepared(whole(problem)).loader())
    assert recorder.rates == pytest.approx([0.2, 0.4, 0.4, 0.2, 0.2, 0.1])


def test_the_optimizer_is_the_one_that_was_set(small, problem, make_trainer):
    settings = {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3, "decay_norm_and_bias": False}
    trainer = make_trainer()
    module = MutualLTModule(**small, **settings)
    trainer.fit(module, Prepared(whole(problem)).loader())
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0]
    assert all((g["initial_lr"], g["momentum"], g["nesterov"]) == (0.02, 0.8, True) for g in optimizer.param_groups)
    optimized = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert optimized == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("limits", [{"max_epochs": None, "max_steps": 2}, {"max_epochs": -1, "max_steps": 2}])
def test_a_schedule_needs_to_know_the_length_of_the_run(small, loader, make_trainer, limits):
    for schedule in ("multistep", "cosine"):
        with pytest.raises(
            ArgumentError, match=rf"Expected the Trainer to have `max_epochs`.*{schedule}.* schedule='constant'"
        ):
            make_trainer(**limits).fit(MutualLTModule(**small, schedule=schedule), loader)
    trainer = make_trainer(**limits)
    trainer.fit(MutualLTModule(**small, schedule="constant"), loader)
    assert trainer.global_step == 2


# ------------------------------------------------------------------------------------------------ moving average


def moving_average(weights, decay):
    """By hand, in float64, from the weights after each step; what is not floating is taken from the last step."""
    average = {name: value.double() for name, value in weights[0].items()}
    for later in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * later[name].double() for name in average}
    return {name: average[name].float() for name, value in weights[-1].items() if value.is_floating_point()}


def floating(state):
    return {name: value for name, value in state.items() if value.is_floating_point()}


def test_a_moving_average_is_evaluated_saved_and_loaded(small, problem, make_trainer, tmp_path):
    module, recorder = MutualLTModule(**small, ema_decay=0.9), Recorder()
    loader = Prepared(*(whole(problem, rows=slice(start, start + 30)) for start in range(0, 150, 30))).loader()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    trainer = make_trainer(2, callbacks=[recorder, saver], enable_checkpointing=True, num_sanity_val_steps=0)
    trainer.fit(module, loader, loader)
    assert len(recorder.weights) == 10
    for epoch, steps in enumerate((5, 10)):  # each validation of five batches sees the average so far
        expected = moving_average(recorder.weights[:steps], 0.9)
        assert_close(floating(recorder.evaluated[5 * epoch]), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(recorder.weights[-1]["heads.0.weight"], expected["heads.0.weight"], rtol=1e-3)
    assert_close(floating(module.network.state_dict()), expected, rtol=1e-4, atol=1e-6)  # and so does a test
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert_close(floating(loaded.network.state_dict()), expected, rtol=1e-4, atol=1e-6)
    same(loaded(problem[0]), module.eval()(problem[0]))


@pytest.mark.parametrize("decay", [0.9, 0.9995, 0.9999])
def test_averaging_does_not_touch_class_counts_and_compensation(problem, small, make_trainer, tmp_path, decay):
    # In float32 0.9 * 3 + 0.1 * 3 is less than 3, and as a whole number 2.
    counts = [3000, 20, 3]
    module = CrossEntropyModule(**{**small, "class_counts": counts}, ema_decay=decay)
    before = module.compensation.clone()
    trainer = make_trainer(3)
    loader = Prepared(*(whole(problem, rows=slice(start, start + 10)) for start in range(0, 150, 10))).loader()
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert module.class_counts.tolist() == counts
    assert module.evaluation.class_counts.tolist() == counts
    assert load_checkpoint(tmp_path / "last.ckpt").class_counts.tolist() == counts
    same(module.compensation, before)


# ------------------------------------------------------------------------------------------------------- testing


def expected_rows(module, images, targets, test_prior=None):
    """The table's rows from the logits alone: `{kind: [expert 1, ..., ensemble]}`."""
    with torch.no_grad():
        logits = module.eval()(images).double()
    counts = module.class_counts.numpy()
    prior = np.full(len(counts), 1 / len(counts)) if test_prior is None else np.array(test_prior)
    offset = torch.tensor(np.log(prior) - np.log(counts / counts.sum()))
    rows = {}
    for kind, values in (("raw", logits), ("compensated", logits + offset)):
        rows[kind] = []
        for scores in reference.predictors(values.tolist(), with_ensemble=True):
            guesses = [reference.first_largest(score) for score in scores]
            row = reference.shot_accuracy(guesses, targets.tolist(), counts.tolist())
            row["micro"] = float(np.mean(np.array(guesses) == targets.numpy()))
            row["ece"] = reference.calibration_error(scores, targets.tolist())
            rows[kind].append({name: 100 * value for name, value in row.items()})
    return rows


def assert_table(table, rows):
    predictors = [*table["experts"], table["ensemble"]]
    assert len(predictors) == len(rows["raw"])
    for kind, expected in rows.items():
        for predictor, row in zip(predictors, expected, strict=True):
            assert set(predictor[kind]) == {"many", "medium", "few", "all", "micro", "ece"}
            for name, value in row.items():
                assert predictor[kind][name] == pytest.approx(value, abs=1e-3), (kind, name)


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("prior", [None, [0.2, 0.3, 0.5]])
def test_the_table_of_a_test_is_that_of_the_logits(small, problem, loader, make_trainer, num_experts, prior):
    module = MutualLTModule(**small, num_experts=num_experts, test_prior=prior, lr=0.01)
    trainer = make_trainer(2)
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)
    rows = expected_rows(module, *problem, test_prior=prior)
    assert_table(module.test_results, rows)
    assert rows["raw"][-1] != rows["compensated"][-1]  # or nothing was shown
    logged = trainer.callback_metrics
    names = {f"test/{kind}/{name}" for kind in rows for name in ("many", "medium", "few", "all", "micro", "ece")}
    experts = {f"test/{kind}/all_expert{k}": (kind, k - 1) for kind in rows for k in (1, 2, 3) if num_experts > 1}
    assert set(logged) == names | set(experts)
    for name in names:
        _, kind, column = name.split("/")
        assert logged[name].item() == pytest.approx(rows[kind][-1][column], abs=1e-3)
    for name, (kind, k) in experts.items():
        assert logged[name].item() == pytest.approx(rows[kind][k]["all"], abs=1e-3)


def test_what_is_not_applicable_is_left_out_of_the_log(small, problem, make_trainer):
    module = MutualLTModule(**{**small, "class_counts": [60, 50, 40]})  # medium-shot classes only
    trainer = make_trainer()
    trainer.test(module, Prepared(whole(problem)).loader(), verbose=False)
    assert module.test_results["ensemble"]["raw"]["few"] is None
    assert not [name for name in trainer.callback_metrics if "many" in name or "few" in name]
    assert "test/raw/medium" in trainer.callback_metrics


def test_validation_is_logged_under_its_own_name_every_epoch(small, problem, loader, make_trainer):
    trainer = make_trainer(2)
    module = MutualLTModule(**small)
    trainer.fit(module, loader, loader)
    rows = expected_rows(module, *problem)
    for kind, row in rows.items():  # of the last epoch alone, or the first would weigh in
        assert trainer.callback_metrics[f"val/{kind}/all"].item() == pytest.approx(row[-1]["all"], abs=1e-3)
    assert module.test_results is None


def test_the_best_epoch_on_validation_can_be_kept(small, loader, make_trainer, tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/compensated/all", mode="max")
    make_trainer(2, callbacks=[best], enable_checkpointing=True).fit(MutualLTModule(**small), loader, loader)
    assert load_checkpoint(best.best_model_path).num_experts == 3


def test_the_shot_rule_of_the_arguments_is_the_one_used(small, problem, make_trainer):
    module = MutualLTModule(**small, many_above=24, few_below=6, shot_edges_inclusive=True)  # edges: 24 many, 6 few
    make_trainer().test(module, Prepared(whole(problem)).loader(), verbose=False)
    row = module.test_results["ensemble"]["raw"]
    per_class = module.test_results["per_class"]["raw"]
    assert row["many"] == pytest.approx((per_class[0] + per_class[1]) / 2)
    assert row["medium"] is None
    assert row["few"] == pytest.approx(per_class[2])


# ----------------------------------------------------------------------------------------------------- inference


def test_probabilities_are_the_compensated_mean_of_the_experts_logits(small, problem):
    module = MutualLTModule(**small).eval()
    with torch.no_grad():
        logits, probabilities = module(problem[0]), module.probabilities(problem[0])
    assert logits.shape == (3, 150, 3)
    assert_close(probabilities, compensate(logits.mean(dim=0), module.class_counts).softmax(dim=-1))
    assert_close(probabilities, compensate(logits, module.class_counts).mean(dim=0).softmax(dim=-1))
    by_hand = logits.mean(dim=0).double().softmax(dim=-1) / torch.tensor(COUNTS)
    assert_close(probabilities.double(), by_hand / by_hand.sum(dim=-1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert_close(probabilities.sum(dim=-1), torch.ones(150))


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_opinions_are_those_of_each_expert_and_of_all_before_and_after_compensation(small, problem, ensemble):
    module = MutualLTModule(**small, ensemble=ensemble)
    logits = module.eval()(problem[0]).detach()
    module.train()
    told = module.opinions(problem[0])
    assert_close(told.raw_experts, logits.softmax(dim=-1))
    assert_close(told.experts, compensate(logits, module.class_counts).softmax(dim=-1))
    assert torch.equal(told.ensemble, module.probabilities(problem[0]))
    raw = logits.mean(dim=0).softmax(dim=-1) if ensemble == "logits" else told.raw_experts.mean(dim=0)
    assert_close(told.raw_ensemble, raw)
    assert told.disagreement.shape == (150,)
    assert module.training
    assert not told.ensemble.requires_grad


def test_a_temperature_softens_probabilities_changes_no_rank_and_travels_with_the_checkpoint(
    small, problem, loader, make_trainer, tmp_path
):
    module, trainer = MutualLTModule(**small), make_trainer(1)
    trainer.fit(module, loader)
    before = module.probabilities(problem[0])
    module.set_temperature(2.0)
    after = module.probabilities(problem[0])
    assert_close(after, before.sqrt() / before.sqrt().sum(dim=-1, keepdim=True))
    assert_close(module.opinions(problem[0]).experts.log().diff(), compensate(module.eval()(problem[0]), COUNTS).diff() / 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = load_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(again.probabilities(problem[0]), after)
    fresh = MutualLTModule(**small)  # to go on, it need not be the same
    make_trainer(2).fit(fresh, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, "warm"])
def test_a_temperature_is_a_number_above_0(small, temperature):
    with pytest.raises(ArgumentError, match="temperature"):
        MutualLTModule(**small, calibration_temperature=temperature)
    with pytest.raises(ArgumentError, match="temperature"):
        MutualLTModule(**small).set_temperature(temperature)


def test_an_ensemble_of_probabilities_averages_the_experts_compensated_ones(small, problem, loader, make_trainer, tmp_path):
    module = MutualLTModule(**small, ensemble="probabilities", lr=0.01)
    trainer = make_trainer(2)
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with torch.no_grad():
        logits = module.eval()(problem[0])
    expected = compensate(logits, module.class_counts).double().softmax(dim=-1).mean(dim=0)
    assert_close(module.probabilities(problem[0]).double(), expected, rtol=1e-5, atol=1e-6)
    right = expected.argmax(dim=-1) == problem[1]
    row = module.test_results["ensemble"]
    assert row["compensated"]["micro"] == pytest.approx(100 * right.double().mean().item())
    confidence = [[math.log(p) for p in scores] for scores in expected.tolist()]
    assert row["compensated"]["ece"] == pytest.approx(
        100 * reference.calibration_error(confidence, problem[1].tolist()), abs=1e-3
    )
    raw = logits.double().softmax(dim=-1).mean(dim=0).argmax(dim=-1) == problem[1]
    assert row["raw"]["micro"] == pytest.approx(100 * raw.double().mean().item())
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    same(loaded.probabilities(problem[0]), module.probabilities(problem[0]))
    by_logits = load_checkpoint(tmp_path / "last.ckpt", ensemble="logits").probabilities(problem[0])
    assert not torch.allclose(by_logits, loaded.probabilities(problem[0]), rtol=1e-3)


def test_probabilities_leave_the_module_as_it_was(small, problem, loader, make_trainer):
    module = MutualLTModule(**small)
    trainer = make_trainer()
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)
    module.train()
    module.network.experts[1].eval()  # a part that somebody froze
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    assert len(set(modes)) == 2
    probabilities = module.probabilities(problem[0])
    assert not probabilities.requires_grad
    same(module.state_dict(), before)  # the running statistics, too
    assert [part.training for part in module.modules()] == modes
    same(probabilities, module.eval().probabilities(problem[0]))
    assert_close(module.probabilities(problem[0][:7]), probabilities[:7])  # not of the batch


def test_modes_are_restored_when_prediction_fails(small, problem):
    module = MutualLTModule(**small).train()
    with pytest.raises(RuntimeError):
        module.probabilities(problem[0][:, :2])
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_does_not_round_compensation_losses_or_the_table(small, problem, loader, make_trainer, precision):
    module, exact = MutualLTModule(**small, lr=0.01), MutualLTModule(**small).compensation.clone()
    trainer = make_trainer(precision=precision)
    trainer.fit(module, loader)
    assert module.compensation.dtype == torch.float32
    same(module.compensation, exact)
    assert trainer.callback_metrics["train/loss"].dtype == torch.float32
    trainer.test(module, loader, verbose=False)
    same(module.compensation, exact)
    if precision == "bf16-mixed":
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            assert module.eval()(problem[0]).dtype == torch.float32
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    same(module.compensated(logits), exact.expand(2, 3))
    assert module.probabilities(problem[0]).dtype == torch.float32


def test_compensation_moves_with_the_module_but_keeps_its_type(small):
    module = MutualLTModule(**small)
    exact = module.compensation.clone()
    same(module.to(torch.bfloat16).compensation, exact)
    same(module.double().half().compensation, exact)
    module.set_test_prior("train")
    same(module.float().compensation, torch.zeros(3))


def test_the_test_prior_can_be_set_afterwards(small, problem):
    module = MutualLTModule(**small).eval()
    images = problem[0]
    with torch.no_grad():
        raw = module(images).mean(dim=0).softmax(dim=-1)
        uniform = module.probabilities(images)
        module.set_test_prior("train")
        assert_close(module.probabilities(images), raw)  # what the training prior took out, the same puts in
        module.set_test_prior(torch.tensor([0.0, 0.5, 0.5]))
        assert (module.probabilities(images)[:, 0] == 0).all()
        module.set_test_prior("backward", factor=10)
        assert (module.probabilities(images)[:, 2] > uniform[:, 2]).all()
        module.set_test_prior(None)
        same(module.probabilities(images), uniform)


def test_a_prior_that_is_none_leaves_the_old_one(small):
    module = MutualLTModule(**small)
    before = module.compensation.clone()
    for wrong in ("unifrom", [1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(MlltError, match="test_prior"):
            module.set_test_prior(wrong)
    same(module.compensation, before)


def test_predict_gives_probabilities(small, problem, loader, make_trainer):
    module = MutualLTModule(**small)
    predictions = torch.cat(make_trainer().predict(module, loader))
    with torch.no_grad():
        assert_close(predictions, module.eval().probabilities(problem[0]))


# --------------------------------------------------------------------------------------------------- checkpoints


def train_and_save(module, loader, trainer, path):
    trainer.fit(module, loader)
    trainer.save_checkpoint(path)
    return module.eval()


@pytest.mark.parametrize("cls", [MutualLTModule, CrossEntropyModule])
def test_a_checkpoint_needs_nothing_else(cls, small, problem, loader, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    module = train_and_save(cls(**small, head="cosine", scale=16), loader, make_trainer(2), path)
    for loaded in (cls.load_from_checkpoint(path), cls.load_from_checkpoint(str(path)), load_checkpoint(path)):
        assert type(loaded) is cls
        assert not loaded.training
        same(loaded.state_dict(), module.state_dict())
        with torch.no_grad():
            same(loaded(problem[0]), module(problem[0]))
            same(loaded.probabilities(problem[0]), module.probabilities(problem[0]))
        assert dict(loaded.hparams) == dict(module.hparams)
    assert torch.load(path, weights_only=True)["mllt"]["method"] == cls.method


def test_a_loaded_module_can_be_tested_and_trained_on(small, loader, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    module = train_and_save(MutualLTModule(**small), loader, make_trainer(), path)
    make_trainer().test(module, loader, verbose=False)
    loaded = load_checkpoint(path)
    make_trainer().test(loaded, loader, verbose=False)
    assert loaded.test_results == module.test_results
    make_trainer().fit(loaded.train(), loader)
    assert not torch.equal(loaded.network.heads[0].weight, module.network.heads[0].weight)


def test_counts_names_and_preprocessing_travel_with_the_checkpoint(loader, small, make_trainer, tmp_path):
    names = ["hare", "gnu", "okapi"]
    preprocessing = {"size": 8, "resize": None, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    path = tmp_path / "last.ckpt"
    train_and_save(MutualLTModule(**small, class_names=names, preprocessing=preprocessing), loader, make_trainer(), path)
    loaded = load_checkpoint(path)
    assert loaded.class_counts.tolist() == COUNTS
    assert loaded.class_names == names
    assert loaded.preprocessing == preprocessing


def test_the_names_of_classes_are_their_numbers_by_default(small):
    assert MutualLTModule(**small).class_names == ["0", "1", "2"]
    assert MutualLTModule(**small, class_names=[7, 8, 9]).class_names == ["7", "8", "9"]


@pytest.mark.parametrize(
    "numbers",
    [
        {"lr": np.float64(0.01), "weight_decay": np.float64(1e-4), "momentum": np.float64(0.8)},
        {"schedule": "multistep", "milestones": tuple(np.array([0.5, 0.75])), "gamma": np.float64(0.1)},
        {"width": np.float64(0.25), "head": "cosine", "scale": np.float64(20)},
        {"test_prior": np.array([0.5, 0.25, 0.25]), "test_prior_factor": np.float64(10)},
        {"class_counts": np.array(COUNTS), "class_names": np.array(["a", "b", "c"])},
        {"preprocessing": {"size": 8, "resize": None, "mean": tuple(np.zeros(3)), "std": tuple(np.ones(3))}},
        {"temperature": np.float64(2), "mutual_weight": np.float64(0.5)},
        {"ema_decay": np.float64(0.9)},
    ],
    ids=lambda numbers: next(iter(numbers)),
)
def test_numbers_of_numpy_do_not_spoil_the_checkpoint(small, make_trainer, problem, tmp_path, numbers):
    path = tmp_path / "last.ckpt"
    module = MutualLTModule(**{**small, **numbers})
    train_and_save(module, Prepared(whole(problem)).loader(), make_trainer(), path)
    same(load_checkpoint(path).state_dict(), module.state_dict())


def test_arguments_can_be_changed_while_loading(small, problem, loader, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    module = train_and_save(MutualLTModule(**small), loader, make_trainer(), path)
    loaded = MutualLTModule.load_from_checkpoint(path, test_prior="train", lr=0.5)
    with torch.no_grad():
        assert_close(loaded.probabilities(problem[0]), module(problem[0]).mean(dim=0).softmax(dim=-1))
    assert (loaded.hparams["lr"], loaded.hparams["test_prior"]) == (0.5, "train")
    with pytest.raises(ArgumentError, match="`lr`"):
        load_checkpoint(path, lr=-1.0)


def test_a_test_prior_from_a_file_does_not_need_the_file_again(small, loader, make_trainer, tmp_path):
    prior, path = tmp_path / "prior.csv", tmp_path / "last.ckpt"
    prior.write_text("1\n1\n2\n")
    module = train_and_save(MutualLTModule(**small, test_prior=str(prior)), loader, make_trainer(), path)
    prior.unlink()
    loaded = load_checkpoint(path)
    assert_close(loaded.compensation, module.compensation)
    assert loaded.hparams["test_prior"] == [0.25, 0.25, 0.5]


def test_another_methods_checkpoint_is_refused_and_the_way_out_is_named(small, loader, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    train_and_save(CrossEntropyModule(**small), loader, make_trainer(), path)
    with pytest.raises(CheckpointError, match=r"of method 'mutual', but it is of 'cross_entropy'.*load_checkpoint") as caught:
        MutualLTModule.load_from_checkpoint(path)
    assert str(path) in str(caught.value)
    assert type(LongTailedModule.load_from_checkpoint(path)) is CrossEntropyModule


# ---------------------------------------------------------------------------------------------- a method of one's own


@pytest.fixture
def registry(monkeypatch):
    """Methods that a test makes are forgotten after it."""
    monkeypatch.setattr(LongTailedModule, "registry", dict(LongTailedModule.registry))
    return LongTailedModule.registry


def test_a_method_of_ones_own_takes_a_few_lines(registry, small, problem, loader, make_trainer, tmp_path):
    class BalancedSoftmax(LongTailedModule):
        method = "my_balanced_softmax"

        def objective(self, logits, targets):
            shifted = logits + self.class_counts.log()
            return {"balanced": torch.stack([torch.nn.functional.cross_entropy(z, targets) for z in shifted]).sum()}

    path = tmp_path / "last.ckpt"
    trainer = make_trainer(2)
    module = train_and_save(BalancedSoftmax(**small, num_experts=2, test_prior="train"), loader, trainer, path)
    assert {"train/loss", "train/balanced"} <= set(trainer.callback_metrics)
    loaded = load_checkpoint(path)
    assert type(loaded) is BalancedSoftmax
    with torch.no_grad():
        same(loaded(problem[0]), module(problem[0]))
    del registry["my_balanced_softmax"]
    with pytest.raises(CheckpointError, match=r"'my_balanced_softmax'.*import its class first"):
        load_checkpoint(path)


def test_a_subclass_without_a_name_of_its_own_does_not_take_its_parents(registry, small, loader, make_trainer, tmp_path):
    path = tmp_path / "last.ckpt"
    train_and_save(MutualLTModule(**small), loader, make_trainer(), path)

    class Verbose(MutualLTModule):
        """A user's variant, say one that logs more."""

    assert type(load_checkpoint(path)) is MutualLTModule
    assert type(MutualLTModule.load_from_checkpoint(path)) is MutualLTModule
    assert type(Verbose.load_from_checkpoint(path)) is Verbose


# -------------------------------------------------------------------------------------------------------- resuming


class StopAfterTwoEpochs(Callback):
    """The ways a run may end early: asked to, or killed in the middle of the third epoch."""

    def __init__(self, how):
        self.how = how

    def on_train_epoch_end(self, trainer, pl_module):
        if self.how == "asked" and trainer.current_epoch == 1:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.how == "killed" and trainer.current_epoch == 2 and batch_idx == 1:
            raise SystemExit(143)


@pytest.mark.parametrize("how", ["asked", "killed"])
@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine", "mutual_warmup_epochs": 3},
        pytest.param(
            {"schedule": "multistep", "milestones": [1, 3], "warmup_epochs": 2, "ema_decay": 0.9}, marks=pytest.mark.slow
        ),
    ],
    ids=["cosine", "multistep and average"],
)
def test_a_run_resumed_at_an_epochs_end_equals_the_straight_one_to_the_last_bit(small, make_trainer, tmp_path, how, settings):
    def run(seed, *callbacks, ckpt_path=None):
        data = DigitsLT(batch_size=32, seed=5)
        module = seeded(seed=seed, **{**small, "class_counts": data.class_counts, "lr": 0.05, **settings})
        saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        trainer = make_trainer(4, callbacks=[saver, *callbacks], enable_checkpointing=True, limit_train_batches=3)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module, trainer

    straight, one = run(0)
    torch.manual_seed(1)  # a new process stands elsewhere in its random numbers
    if how == "killed":
        with pytest.raises(SystemExit):
            run(0, StopAfterTwoEpochs(how))
    else:
        run(0, StopAfterTwoEpochs(how))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    recorder = Recorder()
    resumed, other = run(7, recorder, ckpt_path=tmp_path / "last.ckpt")
    assert len(recorder.losses) == 6
    assert one.current_epoch == other.current_epoch == 4
    same(resumed.state_dict(), straight.state_dict())
    same(other.optimizers[0].state_dict(), one.optimizers[0].state_dict())
    assert other.lr_scheduler_configs[0].scheduler.state_dict() == one.lr_scheduler_configs[0].scheduler.state_dict()


@pytest.mark.parametrize("changed", [{"num_experts": 2}, {"network": "resnet32"}, {"class_counts": [120, 24, 5]}], ids=str)
def test_a_run_cannot_go_on_from_a_checkpoint_of_another_network(small, loader, make_trainer, tmp_path, changed):
    path = tmp_path / "last.ckpt"
    train_and_save(MutualLTModule(**small), loader, make_trainer(), path)
    with pytest.raises(CheckpointError, match=next(iter(changed))):
        make_trainer(2).fit(MutualLTModule(**{**small, **changed}), loader, ckpt_path=path, weights_only=True)


# ------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_counts": [5, 0, 3]}, r"every class to have at least one training image"),
        ({"class_counts": [5, -1, 3]}, r"`class_counts` .* none negative"),
        ({"class_counts": [5, 2.5, 3]}, r"`class_counts` to be whole numbers"),
        ({"class_counts": []}, r"`class_counts`"),
        ({"class_counts": 10}, r"`class_counts`"),
        ({"class_counts": "many"}, r"`class_counts`"),
        ({"network": "resnet23"}, r"no network 'resnet23'. Did you mean"),
        ({"num_experts": 0}, r"`num_experts` .* at least 1 and of at most 100, but got 0"),
        ({"num_experts": 2.0}, r"`num_experts` to be a whole number"),
        ({"shared": "stage9"}, r"`shared`"),
        ({"width": 0}, r"`width` .* above 0"),
        ({"width": 75}, r"`width` .* at most"),
        ({"head": "cosin"}, r"`head` .*Did you mean 'cosine'\?"),
        ({"head": "cosine", "scale": 0}, r"`scale` .* above 0"),
        ({"scale": 30.0}, r"linear head has no scale"),
        ({"pretrained": True}, r"no pretrained weights"),
        ({"pretrained": "yes"}, r"`pretrained`"),
        ({"network_options": {"img_size": 64}}, r"takes no `options`"),
        ({"lr": 0}, r"`lr` .* above 0, but got 0"),
        ({"lr": math.nan}, r"`lr`"),
        ({"lr": "0.1"}, r"`lr`"),
        ({"momentum": 1.0}, r"`momentum` .* below 1"),
        ({"momentum": -0.1}, r"`momentum`"),
        ({"nesterov": "false"}, r"`nesterov` to be true or false"),
        ({"nesterov": True, "momentum": 0.0}, r"`momentum` above 0 with nesterov=true"),
        ({"weight_decay": -1e-4}, r"`weight_decay` .* at least 0"),
        ({"decay_norm_and_bias": 1}, r"`decay_norm_and_bias`"),
        ({"schedule": "step"}, r"`schedule`"),
        ({"milestones": 160}, r"`milestones`"),
        ({"gamma": 0}, r"`gamma`"),
        ({"warmup_epochs": -1}, r"`warmup_epochs`"),
        ({"warmup_start": 1.0}, r"`warmup_start` .* below 1"),
        ({"ema_decay": 1.0}, r"`ema_decay` .* below 1"),
        ({"ema_decay": 0}, r"`ema_decay` .* above 0"),
        ({"test_prior": "unifrom"}, r"`test_prior`.*Did you mean 'uniform'\?"),
        ({"test_prior": [0.5, 0.5]}, r"`test_prior` .*shape \(3,\)"),
        ({"test_prior": [0.5, -0.5, 1.0]}, r"`test_prior`"),
        ({"test_prior": "forward", "test_prior_factor": 0.5}, r"`factor`|`test_prior_factor`"),
        ({"many_above": 10, "few_below": 20}, r"`few_below` to lie under `many_above`"),
        ({"many_above": 20, "few_below": 20, "shot_edges_inclusive": True}, r"`few_below` to lie under `many_above`"),
        ({"few_below": -1}, r"`few_below`"),
        ({"ensemble": "logit"}, r"`ensemble` .*Did you mean 'logits'\?"),
        ({"preprocessing": {"foo": 1}}, r"`preprocessing` to hold .*missing"),
        ({"preprocessing": {"size": 8, "resize": None, "mean": [0] * 3, "std": [1] * 3, "sizes": 8}}, r"'sizes'"),
        ({"preprocessing": {"size": -8, "resize": None, "mean": [0] * 3, "std": [1] * 3}}, r"size"),
        ({"preprocessing": "imagenet"}, r"`preprocessing` to be a dictionary"),
        ({"class_names": ["a", "b"]}, r"`class_names` to hold 3 names, one per class, but got 2"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        CrossEntropyModule(**{**small, **changed})
