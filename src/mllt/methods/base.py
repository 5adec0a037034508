"""`LongTailedModule`: what all methods share, so that a method's own file holds only the method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mllt.checkpoint import FORMAT, KEY, plain_values, read_checkpoint
from mllt.checkpoint_parts import check_continuable, check_parts, no_larger_than
from mllt.data.base import LongTailedDataModule
from mllt.data.images import eval_pipeline
from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError, CheckpointError, MlltError, check_bool, check_choice, check_number, did_you_mean
from mllt.longtail import TEST_PRIORS, check_class_counts, compensation_offset, resolve_test_prior, shot_groups
from mllt.methods.batches import as_batch, as_images
from mllt.methods.evaluation import KINDS, Evaluation
from mllt.methods.identity import (
    argument_names,
    check_method_is_free,
    check_rebuildable,
    check_same_counts,
    check_same_settings,
    check_subclass,
    has_own_method,
    subclass_name,
)
from mllt.methods.opinions import Opinions
from mllt.methods.stages import Stage
from mllt.metrics import ENSEMBLES, ImageMean, ensemble_logits
from mllt.metrics.shot_accuracy import check_labels
from mllt.networks import build_network
from mllt.optim import MovingAverage, check_schedule, check_sgd, epoch_schedule, parameter_groups, sgd
from mllt.version import __version__


class AveragedWeights(WeightAveraging):
    """Lightning's, which gives the module the average when training ends; also where nothing was left to train."""

    _trained = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._trained:
            self._copy_average_to_current(pl_module)


class LongTailedModule(L.LightningModule):
    """A network of N experts, trained by SGD on long-tailed images, evaluated before and after compensation.

    A method is a subclass with a `method` name and an `objective`; constructor arguments of its own it hands to
    `remember`, so that checkpoints hold them. Trains from any loader of `(images, targets, ...)`, images float
    `(B, 3, H, W)`, normalised, and targets whole numbers `(B,)`, or from our data modules' `Batch`es.

    Args:
        class_counts: `(C,)` training images per class, each at least 1; travels with every checkpoint.
        network: "resnet20/32/44/56" for small images, "resnet18/34/50/101/152", "resnext50", "resnext101", or "timm/NAME".
        num_experts: N.
        shared: the last stage that the experts share: "none", "stem", "stage1", ...; None: RIDE's topology.
        width: factor on the channels of the private stages; None: 3/4 with several experts, else 1.
        head: "linear" or "cosine".
        scale: of the cosine head; None: 30.
        pretrained: start from pretrained weights (timm networks).
        network_options: more arguments for timm's constructor.
        lr, momentum, nesterov, weight_decay: of SGD.
        decay_norm_and_bias: whether normalisation parameters and biases decay too, as in the literature's recipes.
        schedule: "multistep", "cosine" or "constant".
        milestones: of "multistep": epochs, or (under 1) shares of the run.
        gamma: of "multistep": the factor at each milestone.
        warmup_epochs: epochs of linear warm-up.
        warmup_start: the factor that it begins with, in 0 .. 1 (LADE, BBN: 1/3); None: 1 / `warmup_epochs`.
        ema_decay: decay of an exponential moving average of the weights, which is then what is evaluated; None: off.
        test_prior: class prior of the data to predict: "uniform", "train", "forward", "backward", a file's path, or C
            numbers; see `mllt.longtail.resolve_test_prior`.
        test_prior_factor: imbalance factor of "forward" and "backward".
        calibration_temperature: what compensated logits are divided by before they become probabilities, above 0: over 1
            makes them less certain. Found on validation images (`python -m mllt.evaluate`); no class changes its rank by it.
        many_above, few_below, shot_edges_inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        ensemble: how the ensemble averages its experts: "logits" (the mean of the logits, then compensated) or
            "probabilities" (the mean of the experts' compensated probabilities).
        class_names: C names, for predictions; None: the class numbers.
        preprocessing: how a picture becomes an input (`LongTailedDataModule.preprocessing`); needed to predict from files.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.
    """

    #: the method's name on the command line and in checkpoints
    method: ClassVar[str] = ""
    #: the class prior that the raw logits fit: "train", or "uniform" where training has taken the imbalance out already
    fitted_prior: ClassVar[str] = "train"
    #: the row of the table that the method's authors report: "raw" or "compensated" (alike for a uniform fit and test prior)
    reported: ClassVar[str] = "compensated"
    #: what of the method is not public and was decided here, a sentence each; results and reports tell it
    reconstructed: ClassVar[tuple[str, ...]] = ()
    #: all methods by name; a subclass with a `method` enters itself
    registry: ClassVar[dict[str, type[LongTailedModule]]] = {}

    class_counts: Tensor
    compensation: Tensor
    further: Tensor
    network: Any  # an `ExpertNetwork`, or what has its attributes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if has_own_method(cls):
            check_method_is_free(cls, LongTailedModule.registry.get(cls.method))
            LongTailedModule.registry[cls.method] = cls

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        network: str = "resnet32",
        num_experts: int = 1,
        shared: str | None = None,
        width: float | None = None,
        head: str = "linear",
        scale: float | None = None,
        pretrained: bool = False,
        network_options: dict[str, Any] | None = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        decay_norm_and_bias: bool = True,
        schedule: str = "multistep",
        milestones: Sequence[float] = (0.8, 0.9),
        gamma: float = 0.1,
        warmup_epochs: int = 5,
        warmup_start: float | None = None,
        ema_decay: float | None = None,
        test_prior: str | Sequence[float] | None = "uniform",
        test_prior_factor: float = 100.0,
        calibration_temperature: float = 1.0,
        many_above: int = 100,
        few_below: int = 20,
        shot_edges_inclusive: bool = False,
        ensemble: str = "logits",
        class_names: Sequence[str] | None = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        counts = check_class_counts(class_counts).cpu()
        check_sgd(lr, momentum, weight_decay, nesterov=nesterov)
        check_bool("decay_norm_and_bias", decay_norm_and_bias)
        check_schedule(schedule, milestones, gamma, warmup_epochs, warmup_start)
        if ema_decay is not None:
            MovingAverage(ema_decay)
        shot_groups(counts, many_above, few_below, inclusive=shot_edges_inclusive)
        self.remember(
            class_counts=counts,
            network=network,
            num_experts=num_experts,
            shared=shared,
            width=width,
            head=head,
            scale=scale,
            pretrained=pretrained,
            network_options=network_options,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decay_norm_and_bias=decay_norm_and_bias,
            schedule=schedule,
            milestones=milestones,
            gamma=gamma,
            warmup_epochs=warmup_epochs,
            warmup_start=warmup_start,
            ema_decay=ema_decay,
            test_prior=_portable_prior(test_prior, counts, test_prior_factor),
            test_prior_factor=test_prior_factor,
            calibration_temperature=check_number("calibration_temperature", calibration_temperature, above=0),
            many_above=many_above,
            few_below=few_below,
            shot_edges_inclusive=shot_edges_inclusive,
            ensemble=check_choice("ensemble", ensemble, ENSEMBLES),
        )
        self.class_names = check_class_names(class_names, counts.numel())
        self.preprocessing = None if preprocessing is None else check_preprocessing(preprocessing)
        self._stage: str | None = None  # the first one, until one begins
        self.register_buffer("class_counts", counts)
        self.register_buffer("compensation", torch.zeros(counts.numel()), persistent=False)
        self.register_buffer("further", torch.zeros(0, counts.numel()), persistent=False)
        self._further_names: tuple[str, ...] = ()
        self.set_test_prior(test_prior, test_prior_factor)
        self.use_network(self.make_network())
        self.train_means = nn.ModuleDict()  # of the terms of the loss, by name
        self._means_are_logged = False
        #: the table of the last test (see `Evaluation.compute`); None before one
        #: the tables of `Evaluation.compute`: of the last test, and of the weights as they are on validation
        self.test_results: dict[str, Any] | None = None
        self.val_results: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------- for the method

    def remember(self, **settings: Any) -> None:
        """Keep constructor arguments in `self.hparams`, and so in every checkpoint, which is made into a module with them.

        A method calls it with its own arguments, as `MutualLTModule` does. Numbers and containers of any kind become
        Python's own. (In place of `save_hyperparameters`, which compares all arguments with each other and so fails for
        arrays.)

        Raises:
            ArgumentError: a value that a checkpoint cannot hold.
        """
        self._set_hparams({**self.hparams, **plain_values(settings)})
        self._hparams_initial = copy.deepcopy(self._hparams)
        self._log_hyperparams = True

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, by name; their sum is minimised. A method defines this, or `losses`.

        Args:
            logits: raw, `(N, B, C)`.
            targets: int64 `(B,)`.

        Returns:
            Scalars, each a mean over the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither `objective` nor `losses`.")

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        """The terms of the loss of a batch; a method whose loss is not of logits and targets alone defines it anew.

        Args:
            batch: images of the network's type, targets int64; with a companion where the stage asks for one
                (`mllt.methods.batches.companion_of`).

        Returns:
            As of `objective`.
        """
        return self.objective(self(batch.images), batch.targets)

    def make_network(self, **changes: Any) -> Any:
        """A new network by the module's settings, its weights random; `changes` are arguments of `build_network`."""
        hp = self.hparams
        names = ("num_experts", "shared", "width", "head", "scale", "pretrained")
        settings = {**{name: hp[name] for name in names}, "options": hp["network_options"], **changes}
        return build_network(hp["network"], len(hp["class_counts"]), **settings)

    def use_network(self, network: Any) -> None:
        """Make this the module's network: what is trained, evaluated and predicts."""
        self.network = network
        self._make_evaluation()

    def _make_evaluation(self) -> None:
        hp = self.hparams
        rule = (hp["many_above"], hp["few_below"], hp["shot_edges_inclusive"])
        kinds = (*KINDS[1:], *self._further_names)
        self.evaluation = Evaluation(self.class_counts, self.network.num_experts, *rule, hp["ensemble"], kinds)
        self.to(self.class_counts.device)

    def lr_factor(self, name: str) -> float:
        """The factor on the learning rate of the parameter of this name."""
        return 1.0

    def details(self) -> dict[str, Any]:
        """What a run of the method shows besides accuracies, as plain values by name, for `results.json`."""
        return {}

    def stages(self) -> list[Stage]:
        """The parts of a run, in order: one, unless the method says otherwise."""
        return [Stage("training")]

    def begin(self, stage: str) -> None:
        """Make ready for a stage, after the stage before it is trained or its weights are loaded.

        Raises:
            ArgumentError: the method has no such stage.
        """
        names = [known.name for known in self.stages()]
        check_choice("stage", stage, names)
        if self._stage is not None and names.index(stage) <= names.index(self._stage):
            raise ArgumentError(
                f"Expected a stage after {self._stage!r}, which has begun, but got {stage!r} of {', '.join(names)}. To train "
                "a stage again, begin with a new module, or load the checkpoint of the stage before."
            )
        self._enter(stage)
        self.train()  # a trainer leaves the modes of modules as it finds them

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self.on_stage()
        self.set_test_prior(self.hparams["test_prior"], self.hparams["test_prior_factor"])
        self.to(self.class_counts.device)  # what the stage has made

    def restore(self, stage: str | None, weights: dict[str, Any], *, strict: bool = True) -> None:
        """Take the weights of a checkpoint of this stage (None: the first one)."""
        if stage is not None and stage != self._stage:
            self.begin(stage)
        self.load_state_dict(weights, strict=strict)

    @property
    def stage(self) -> str:
        """The name of the stage that is trained; the first one until another begins."""
        return self.stages()[0].name if self._stage is None else self._stage

    @property
    def begun(self) -> str | None:
        """The name of the stage that has begun; None before any has."""
        return self._stage

    @property
    def fits(self) -> str:
        """The class prior that the raw logits fit in this stage: "train" or "uniform"."""
        known = {stage.name: stage.fitted_prior for stage in self.stages()} if self._stage is not None else {}
        return known.get(self.stage if known else "") or self.fitted_prior

    def on_stage(self) -> None:
        """What a method does when `self.stage` begins: freeze what is learned, start anew what is not, make what it needs.

        The module comes from the stage before, or, when the weights of a checkpoint are about to be loaded, straight from
        the first one. The first stage itself is what the constructor makes.
        """

    def recipe(self) -> dict[str, Any]:
        """Settings of the stage: "lr", "weight_decay", and the arguments of `learning_rate_factor`."""
        names = ("lr", "weight_decay", "schedule", "milestones", "gamma", "warmup_epochs", "warmup_start")
        return {name: self.hparams[name] for name in names}

    def progress(self) -> float:
        """The share of the run that lies behind: finished epochs over all, in 0 .. 1; 0 where there is no trainer."""
        max_epochs = None if self._trainer is None else self._trainer.max_epochs
        return self.current_epoch / max_epochs if max_epochs is not None and max_epochs > 0 else 0.0

    # ------------------------------------------------------------------------------------------------- inference

    @property
    def num_experts(self) -> int:
        """N."""
        return self.network.num_experts

    @property
    def num_classes(self) -> int:
        """C."""
        return self.class_counts.numel()

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits `(N, B, C)` of images `(B, 3, H, W)`."""
        return self.network(images)

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the experts say, and how much each counts: raw logits `(N, B, C)`, and weights that broadcast to them.

        Weights of None are 1 / N; see `mllt.metrics.ensemble_logits`.
        """
        return self(images), None

    def together(self, images: Tensor) -> Tensor:
        """The ensemble's compensated logits `(B, C)`."""
        return self.combine(*self.judge(images))

    def combine(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The ensemble's compensated logits `(B, C)` from what `judge` gives."""
        return ensemble_logits(logits.float(), self.hparams["ensemble"], weights, self.compensation)

    def compensated(self, logits: Tensor) -> Tensor:
        """Logits `(..., C)` compensated from the prior that they fit to the test prior (`set_test_prior`)."""
        return logits + self.compensation  # of float32, so half-precision logits become that

    def probabilities(self, images: Tensor) -> Tensor:
        """The ensemble's compensated class probabilities `(B, C)` of images `(B, 3, H, W)`.

        The network is evaluated in eval mode and without gradients, whatever mode it is in; that is left as it was.
        """
        return self._quietly(lambda images: self._softmax(self.together(images)), images)

    def opinions(self, images: Tensor) -> Opinions:
        """What each expert and the ensemble say of images `(B, 3, H, W)`, before and after compensation; see `Opinions`.

        One pass over the images, evaluated as by `probabilities`.
        """
        return self._quietly(self._opinions, images)

    def _opinions(self, images: Tensor) -> Opinions:
        logits, weights = self.judge(images)
        logits = logits.float()
        together = self.combine(logits, weights)
        raw = ensemble_logits(logits, self.hparams["ensemble"], weights)
        return Opinions(*map(self._softmax, (self.compensated(logits), together, logits, raw)))

    def _softmax(self, logits: Tensor) -> Tensor:
        return (logits / self.hparams["calibration_temperature"]).softmax(dim=-1)

    @torch.no_grad()
    def _quietly(self, ask: Callable[[Tensor], Any], images: Tensor) -> Any:
        """Ask in eval mode, and leave all modules in the mode they are in."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return ask(as_images(images, self.dtype))  # type: ignore[arg-type]
        finally:
            for module in training:  # not by train(), which would switch parts on that were off
                module.training = True

    def set_temperature(self, temperature: float) -> None:
        """Divide compensated logits by this number, above 0, before they become probabilities, from now on."""
        self.hparams["calibration_temperature"] = check_number("temperature", temperature, above=0)

    def set_test_prior(self, prior: str | Sequence[float] | Tensor | None, factor: float = 100.0) -> None:
        """Compensate to this class prior from now on; see `mllt.longtail.resolve_test_prior`."""
        self.compensation = self._compensation_to(prior, factor)
        portable = _portable_prior(prior, self.class_counts.cpu(), factor)
        self.hparams.update(plain_values({"test_prior": portable, "test_prior_factor": factor}))

    def _compensation_to(self, prior: str | Sequence[float] | Tensor | None, factor: float) -> Tensor:
        counts = self.class_counts.cpu()
        fitted = counts if self.fits == "train" else torch.ones_like(counts)
        offset = compensation_offset(fitted, resolve_test_prior(prior, counts, factor))
        return offset.float().to(self.compensation.device)

    def evaluate_also_under(self, priors: Mapping[str, str | Sequence[float] | Tensor | None], factor: float = 100.0) -> None:
        """Have the table tell rows under further class priors, from the same pass over the images, until called again.

        Args:
            priors: of the test data, by the name that each kind of row is to have beside "raw" and "compensated" (see
                `Evaluation.compute`); none to have these two alone. What they are is as of `mllt.longtail.resolve_test_prior`.
            factor: imbalance factor of "forward" and "backward".

        Raises:
            ArgumentError: a prior that does not resolve, or a name that is taken.
        """
        offsets = [self._compensation_to(prior, factor) for prior in priors.values()]
        self._further_names, self.further = tuple(priors), torch.stack([self.compensation, *offsets])[1:]
        self._make_evaluation()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LongTailedModule:
        """Whatever type the module is brought to, the compensation stays float32."""
        exact = {name: getattr(self, name) for name in ("compensation", "further")}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    # -------------------------------------------------------------------------------------------- Lightning's side

    def setup(self, stage: str) -> None:
        """A trainer is at work: the first stage begins, if none has; in whichever mode the module is."""
        if stage == "fit" and self._stage is None:
            self._enter(self.stage)

    def on_fit_start(self) -> None:
        """Refuse now what would train wrongly, or a checkpoint that could not be loaded."""
        check_rebuildable(self)
        if not self.training:  # as it comes from a checkpoint; what a method freezes stays so
            self.train()
        data = getattr(self.trainer, "datamodule", None)
        theirs = getattr(data, "class_counts", None)
        if theirs is not None:
            check_same_counts(self.class_counts.cpu(), check_class_counts(theirs).cpu())
        if isinstance(data, LongTailedDataModule):
            stage = next(stage for stage in self.stages() if stage.name == self.stage)
            data.sampling, data.companion, data.stage_batch_size = stage.sampling, stage.companion, stage.batch_size

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.val_results = None  # of other weights
        batch = as_batch(batch, self.dtype)  # type: ignore[arg-type]
        if batch_idx == 0 or batch.targets.device.type == "cpu":  # looking at every batch would hold up a GPU
            check_labels("targets", batch.targets, self.num_classes)
            if isinstance(batch, PairedBatch):
                check_labels("targets of companions", batch.companion.targets, self.num_classes)
        terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        images = len(batch.targets) * (batch.weight > 0)  # none where an image only fills up an empty share
        for name, value in {**terms, "loss": loss}.items():
            self._mean_of(name, value.device).update(value.detach(), images)
        if self._trainer is not None and self._trainer.is_last_batch:
            self._log_means()
            self._means_are_logged = True
        return loss * batch.weight

    def on_train_epoch_end(self) -> None:
        if not self._means_are_logged:  # the epoch ended before its last batch
            self._log_means()
        self._means_are_logged = False

    def _log_means(self) -> None:
        """Log the means over the epoch's images on all devices, once, since logging takes longer than adding up.

        (Lightning's own mean rounds the number of images per device.)
        """
        for name, mean in self.train_means.items():
            if mean.update_called:  # not of an earlier stage
                self.log(f"train/{name}", mean, on_step=False, on_epoch=True, metric_attribute=f"train_means.{name}")  # type: ignore[arg-type]

    def _mean_of(self, name: str, device: torch.device) -> ImageMean:
        if name not in self.train_means:
            self.train_means[name] = ImageMean().to(device)
        return self.train_means[name]  # type: ignore[return-value]

    def epoch_sums(self) -> dict[str, Tensor]:
        """What this device has added up in the epoch so far, by name; a method with sums of its own adds them.

        A checkpoint within an epoch holds them, and `load_epoch_sums` gets them back, so that what is told of the epoch is of
        the whole of it. On another number of devices than they come from, the first gets their total.
        """
        begun = {name: mean for name, mean in self.train_means.items() if mean.update_called}  # not those of an earlier stage
        return {f"train/{name}": torch.stack([mean.total, mean.images]) for name, mean in begun.items()}  # type: ignore[list-item]

    def load_epoch_sums(self, sums: dict[str, Tensor]) -> None:
        """Let the sums of the epoch be those that `epoch_sums` gave, and nothing where it gave none."""
        for mean in self.train_means.values():
            mean.reset()  # type: ignore[operator]
        for name, pair in sums.items():
            if name.startswith("train/"):
                mean = self._mean_of(name.removeprefix("train/"), self.device)
                mean.update(pair[0].to(self.device), 1)
                mean.images = pair[1].to(self.device)

    def on_step_left_out(self) -> None:
        """The optimizer step that is under way is left out, its loss not being finite: forget what else it was to change."""

    def on_train_start(self) -> None:
        """See to it that training goes on where it stopped, also where something has asked for the number of steps early.

        Lightning makes the loader then, before it has read how far the epoch is, and does not come back to it.
        """
        loop = self.trainer.fit_loop
        if loop._combined_loader is not None and loop._combined_loader_states_to_load:
            loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
            loop._combined_loader_states_to_load = []

    def on_validation_epoch_start(self) -> None:
        self.evaluation.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.val_results = self.evaluation.compute()
        self._log_table("val", self.val_results)

    def on_test_start(self) -> None:
        """Say so when what is tested is not yet the whole method."""
        names = [stage.name for stage in self.stages()]
        if self.stage != names[-1]:
            rank_zero_warn(
                f"{self.method or type(self).__name__} has the stages {', '.join(names)}, and this model is of {self.stage!r}. "
                "mllt.fit_stages trains all of them."
            )

    def on_test_epoch_start(self) -> None:
        self.evaluation.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self.test_results = self.evaluation.compute()
        self._log_table("test", self.test_results)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The ensemble's compensated probabilities `(B, C)`, for a batch with targets or of images alone."""
        return self.probabilities(as_images(batch, self.dtype))  # type: ignore[arg-type]

    def _evaluate(self, batch: Any) -> None:
        batch = as_batch(batch, self.dtype)  # type: ignore[arg-type]
        logits, weights = self.judge(batch.images)
        counted = batch.weight > 0  # not an image that only fills up, so that every device takes as many steps
        offsets = torch.cat([self.compensation.unsqueeze(0), self.further])
        self.evaluation.update(logits.float(), batch.targets, offsets, weights, counted)

    def _log_table(self, split: str, table: dict[str, Any]) -> None:
        """The ensemble's whole rows, and each expert's accuracy over all; what is n/a is left out."""
        for kind in KINDS:
            scalars = {f"{split}/{kind}/{name}": value for name, value in table["ensemble"][kind].items()}
            if self.num_experts > 1:
                scalars.update(
                    {f"{split}/{kind}/all_expert{i + 1}": row[kind]["all"] for i, row in enumerate(table["experts"])}
                )
            known = {name: value for name, value in scalars.items() if value is not None}
            # Every rank has the same numbers; logged on all of them, or a checkpoint of the best one could not watch them.
            self.log_dict(known, sync_dist=True)

    def configure_optimizers(self) -> Any:
        hp, recipe = self.hparams, self.recipe()
        lr, decay = recipe.pop("lr"), recipe.pop("weight_decay")
        decay_all = hp["decay_norm_and_bias"]
        groups = parameter_groups(self, decay, decay_norm_and_bias=decay_all, lr=lr, lr_factor=self.lr_factor)
        # Lightning does not clip gradients of a fused optimizer under mixed precision
        clips = self.trainer.gradient_clip_val is not None and self.trainer.precision.endswith("-mixed")
        fused = False if clips or self.trainer.precision == "16-mixed" else None
        optimizer = sgd(groups, lr, hp["momentum"], nesterov=hp["nesterov"], fused=fused)
        scheduler = epoch_schedule(optimizer, self._max_epochs(), **recipe)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "name": "lr"}}

    def _max_epochs(self) -> int:
        max_epochs = self.trainer.max_epochs
        if max_epochs is None or max_epochs < 1:
            if self.hparams["schedule"] == "constant":
                return 1
            raise ArgumentError(
                f"Expected the Trainer to have `max_epochs`, from which the {self.hparams['schedule']} schedule follows, but "
                f"got {max_epochs}. Set Trainer(max_epochs=...), or schedule='constant'."
            )
        return max_epochs

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        whole: Any = self.trainer.strategy.model
        if gradient_clip_val is not None and hasattr(whole, "clip_grad_norm_"):  # sharded: no device has the whole gradient
            whole.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        decay = self.hparams["ema_decay"]
        return [] if decay is None else [AveragedWeights(avg_fn=MovingAverage(decay))]

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning's own type of hyper-parameters is a subclass of dict, which weights_only loading refuses.
        check_rebuildable(self)
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_values(self.hparams)
        checkpoint[KEY] = {
            "format": FORMAT,
            "version": __version__,
            "method": self.method,
            "subclass": subclass_name(type(self)),
            "stage": self.stage,
            "class_names": self.class_names,
            "preprocessing": self.preprocessing,
        }
        if self._trainer is not None and within_epoch(self._trainer):
            sums = {
                name: torch.as_tensor(self.all_gather(value.to(self.device))).cpu() for name, value in self.epoch_sums().items()
            }
            checkpoint[KEY]["epoch_sums"] = {
                name: value if self._trainer.world_size > 1 else value[None] for name, value in sums.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The trainer is about to load a checkpoint: method and network must be the same, and to go on training the recipe."""
        training = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        check_parts(checkpoint, "the checkpoint")
        self.check_checkpoint(checkpoint, training=training)  # before what follows from other settings is found out
        if training:
            check_continuable(checkpoint, *self._progress_made())
        theirs = checkpoint.get(KEY, {}).get("stage", self.stage)
        if not training and self._stage is None:
            self._enter(theirs)
        if theirs != self.stage:
            raise CheckpointError(
                f"Expected a checkpoint of stage {self.stage!r}, but it is of stage {theirs!r}. Call begin({theirs!r}) first."
            )
        if training:
            self._take_epoch_sums(checkpoint.get(KEY, {}).get("epoch_sums", {}))

    def _of_all_devices(self, value: Tensor) -> Tensor:
        """`(devices, ...)`, on the processor."""
        values = self.all_gather(value.to(self.device)) if self.trainer.world_size > 1 else value[None]
        return torch.as_tensor(values).cpu()

    def _take_epoch_sums(self, of_devices: dict[str, Tensor]) -> None:
        """This device's part of the sums `(devices, ...)` that a checkpoint holds."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sums = {name: parts[rank] if len(parts) == world else parts.sum(0) * (rank == 0) for name, parts in of_devices.items()}
        self.load_epoch_sums(sums)

    def _progress_made(self) -> tuple[dict[str, Any], list[Tensor]]:
        """What a checkpoint of this run would hold now of loops, optimizer and schedule; and the optimizer's parameters."""
        made: dict[str, Any] = {"loops": {"fit_loop": self.trainer.fit_loop.state_dict()}}
        configured = self.configure_optimizers()
        if not isinstance(configured, dict):  # what a subclass may give in its place
            return made, []
        optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        made["optimizer_states"] = [{"param_groups": optimizer.state_dict()["param_groups"]}]
        made["lr_schedulers"] = [scheduler.state_dict()]
        return made, [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def check_checkpoint(self, checkpoint: dict[str, Any], *, training: bool) -> None:
        """Raise `CheckpointError` unless a checkpoint is of this method and network, and to go on `training` of this recipe."""
        ours = checkpoint.get(KEY, {})
        stored = {**checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}), "method": ours.get("method")}
        check_same_settings(stored, {**plain_values(self.hparams), "method": self.method}, training=training)
        check_subclass(type(self), ours.get("subclass"), "the checkpoint")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: None = None,
        strict: bool | None = True,
        weights_only: bool | None = True,
        **overrides: Any,
    ) -> LongTailedModule:
        """The module of a checkpoint, with its weights; nothing else is needed, and no code of the file's can run.

        Args:
            checkpoint_path: a `.ckpt` file that one of our methods wrote.
            map_location: the device to load to.
            hparams_file: Lightning's; only None, since the checkpoint holds all settings.
            strict: whether the weights must fit exactly.
            weights_only: Lightning's; only True, which never runs code of the file's.
            overrides: arguments of the class to change, e.g. `test_prior="train"`.

        Raises:
            CheckpointError: the file is missing, damaged, not ours, of another method, or of another class of that method.
            ArgumentError: an override that the class does not take, or out of range.
        """
        if weights_only not in (True, None) or hparams_file is not None:
            raise ArgumentError(
                f"Expected weights_only=True and hparams_file=None, but got weights_only={weights_only!r} and "
                f"hparams_file={hparams_file!r}. Leave them out: our checkpoints hold all settings, as plain values."
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        found = cls._class_of(checkpoint[KEY], Path(checkpoint_path))
        return found._from_content(checkpoint, Path(checkpoint_path), strict is not False, overrides)

    @classmethod
    def _class_of(cls, ours: dict[str, Any], path: Path) -> type[LongTailedModule]:
        """The class to load a checkpoint with: this one, or for `LongTailedModule` the one of the checkpoint's method."""
        method, subclass = ours["method"], ours.get("subclass")
        found = cls.registry.get(method) if cls is LongTailedModule else cls
        if found is None:
            raise CheckpointError(
                f"Expected {path} to be of a known method, but it is of {method or subclass!r}. "
                f"{did_you_mean(method, cls.registry)} If the method is your own, import its class first "
                "(for the commands: method_class=my_package.MyMethod)"
                + ("." if method else f", and use {subclass}.load_from_checkpoint.")
            )
        if found.method != method:
            raise CheckpointError(
                f"Expected {path} to be of method {cls.method!r}, but it is of {method!r}. Use "
                "mllt.load_checkpoint, which finds the class by itself."
            )
        check_subclass(found, subclass, str(path))
        return found

    @classmethod
    def _from_content(cls, checkpoint: dict[str, Any], path: Path, strict: bool, overrides: dict[str, Any]) -> LongTailedModule:
        for name in overrides:
            if name not in (known := argument_names(cls)):
                raise ArgumentError(f"{cls.__name__} has no argument {name!r}. {did_you_mean(name, known)}")
        ours = checkpoint[KEY]
        # Weights come from the checkpoint: nothing pretrained is fetched, and no other file read.
        try:
            arguments = {**checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY], "pretrained": False}
            options = arguments.get("network_options") or {}
            arguments["network_options"] = {k: v for k, v in options.items() if k != "checkpoint_path"} or None
            arguments.update(class_names=ours.get("class_names"), preprocessing=ours.get("preprocessing"))
            with no_larger_than(checkpoint["state_dict"]):
                module = cls(**{**arguments, **overrides})
                module.restore(ours.get("stage"), checkpoint["state_dict"], strict=strict)
        except Exception as error:  # values that no run has may fail anywhere
            if isinstance(error, MlltError) and overrides:  # the caller's mistake, not the file's
                raise
            raise CheckpointError(f"Expected {path} to fit {cls.__name__}, but it does not: {error!s:.2000}") from error
        device = next(iter(checkpoint["state_dict"].values())).device
        return module.to(device).eval()


def within_epoch(trainer: L.Trainer) -> bool:
    """Whether a trainer has begun an epoch that is not over."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return trainer.state.fn == TrainerFn.FITTING and epoch.processed < epoch.started


def load_checkpoint(path: str | Path, map_location: Any = "cpu", **overrides: Any) -> LongTailedModule:
    """The module of a checkpoint, of whichever method it is; see `LongTailedModule.load_from_checkpoint`."""
    return LongTailedModule.load_from_checkpoint(path, map_location, **overrides)


def _portable_prior(prior: str | Sequence[float] | Tensor | None, counts: Tensor, factor: float) -> str | list[float] | None:
    """A test prior that means the same on every machine: its name, or its numbers (also those of a file)."""
    if prior is None or (isinstance(prior, str) and prior in TEST_PRIORS):
        return prior
    resolved = resolve_test_prior(prior, counts, factor)
    return None if resolved is None else resolved.tolist()


def check_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """C names as plain strings; the class numbers for None."""
    if isinstance(class_names, (str, Mapping)) or not isinstance(class_names, (Iterable, type(None))):
        raise ArgumentError(f"Expected `class_names` to be a list of {num_classes} names, but got {class_names!r:.100}.")
    names = [str(label) for label in range(num_classes)] if class_names is None else [str(name) for name in class_names]
    if len(names) != num_classes:
        raise ArgumentError(f"Expected `class_names` to hold {num_classes} names, one per class, but got {len(names)}.")
    return names


def check_preprocessing(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What `LongTailedDataModule.preprocessing` tells, as plain values; `ArgumentError` for what no picture can go through."""
    if not isinstance(preprocessing, Mapping):
        raise ArgumentError(
            f"Expected `preprocessing` to be a dictionary, as of a data module, but got {preprocessing!r:.100}."
        )
    plain = plain_values(preprocessing)
    eval_pipeline(plain)
    return plain
