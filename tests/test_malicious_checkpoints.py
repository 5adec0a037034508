"""Checkpoints that mean harm: nothing of theirs runs, nothing they ask for fills memory, and the answer is one clear error."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from tests import hostile
from torch.utils.data import DataLoader, TensorDataset

from mllt import LongTailedModule, MutualLTModule, checkpoint, checkpoint_parts, load_checkpoint
from mllt.checkpoint import glance, read_checkpoint
from mllt.errors import CheckpointError, MlltError

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
]
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def small_module():
    return MutualLTModule(class_counts=[4, 4, 4], network="resnet20", shared="none", width=0.25, num_experts=2)


def batches():
    return DataLoader(TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3), batch_size=6)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of a real checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    L.Trainer(max_epochs=1, default_root_dir=folder, **QUIET).fit(small_module(), batches())
    (path,) = folder.rglob("*.ckpt")
    return torch.load(path, weights_only=True)


#: Every way from a file to its content in Python.
DOORS = {
    "read_checkpoint": read_checkpoint,
    "glance": glance,
    "load_checkpoint": load_checkpoint,
    "load_from_checkpoint": MutualLTModule.load_from_checkpoint,
}


def refused(path, doors=DOORS):
    """No door opens; returns the messages."""
    messages = []
    for name in doors:
        with pytest.raises(CheckpointError) as caught:
            DOORS[name](path)
        message = str(caught.value)
        assert path.name in message
        assert len(message) < 2000
        assert message.isprintable()
        for advice in ("weights_only", "add_safe_globals", "you trust"):
            assert advice not in message
        messages.append(message)
    return messages


# ---------------------------------------------------------------------------------------------------------------
# Code


@pytest.mark.parametrize("gadget", hostile.GADGETS)
def test_each_payload_does_run_where_there_is_no_protection(tmp_path, gadget):
    torch.save({"x": hostile.GADGETS[gadget](tmp_path / "canary")}, tmp_path / "control.pt")
    torch.load(tmp_path / "control.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


PLACES = (
    "",
    "extra",
    "state_dict.extra",
    "hyper_parameters.lr",
    "hyper_parameters.network_options",
    "optimizer_states.0.param_groups",
    "lr_schedulers.0",
    "callbacks.Extra",
    "loops.fit_loop",
    "mllt.method",
    "mllt.class_names",
)


@pytest.mark.parametrize("form", hostile.FORMS)
@pytest.mark.parametrize("gadget", hostile.GADGETS)
def test_no_payload_runs_wherever_it_stands_and_however_it_is_written(good, tmp_path, gadget, form):
    canary, path = tmp_path / "canary", tmp_path / "attack.ckpt"
    for place in PLACES if form == "archive" else PLACES[1:2]:
        hostile.FORMS[form](hostile.put(good, place, hostile.GADGETS[gadget](canary)), path)
        refused(path)
        assert not canary.exists(), place


def test_the_error_names_what_was_found(good, tmp_path):
    torch.save({**good, "extra": hostile.GADGETS["os.system"](tmp_path / "canary")}, tmp_path / "attack.ckpt")
    for message in refused(tmp_path / "attack.ckpt"):
        assert "posix.system" in message
        assert "was not loaded" in message


@pytest.mark.parametrize(
    "value",
    [
        hostile.Payload(torch.FloatTensor, 2**20),
        hostile.Payload(bytearray, 2**20),
        hostile.Payload(Counter, "a"),
        torch.nn.Linear(2, 2),
        hostile.Payload(torch.sparse_coo_tensor, torch.zeros(1, 0), torch.zeros(0), (2**40,)),
        b"bytes",
        1j,
        2**200,
        "\ud800",
        hostile.nested(100),
        {(1, 2): 3},
        frozenset([1]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, hostile.Payload) else value.call[0].__name__,
)
def test_only_plain_tensors_and_values_are_taken(good, tmp_path, value):
    torch.save({**good, "extra": value}, tmp_path / "other.ckpt")
    if isinstance(value, dict):  # a key of several parts is no harm where nothing reads it
        assert read_checkpoint(tmp_path / "other.ckpt")["extra"] == value
    else:
        refused(tmp_path / "other.ckpt")


def test_a_checkpoint_with_all_that_callbacks_may_keep_is_taken(good, tmp_path):
    kept = {
        "text": "naïve 鳥 \udce9",
        "numbers": [1, 2.5, float("nan"), float("inf"), -(2**63), True, None],
        "tensors": (torch.tensor(3.0), torch.zeros(2, 3).t(), torch.zeros(0), torch.zeros(2, dtype=torch.bfloat16)),
        "others": {"set": {1, 2}, "dtype": torch.float16, "size": torch.Size([1]), "weight": torch.nn.Parameter(torch.ones(1))},
    }
    torch.save(hostile.put(good, "callbacks.Mine", kept), tmp_path / "kept.ckpt")
    found = read_checkpoint(tmp_path / "kept.ckpt")["callbacks"]["Mine"]
    assert found["text"] == kept["text"]
    assert found["others"]["set"] == {1, 2}
    assert torch.equal(found["tensors"][1], kept["tensors"][1])


# ---------------------------------------------------------------------------------------------------------------
# Memory


def bombs(good, folder: Path, values: int) -> list[Path]:
    """Small files that ask for a great deal of memory, each in another way; some hold more than so many values."""

    def made(name, changes):
        content = good
        for place, value in changes.items():
            content = hostile.put(content, place, value)
        torch.save(content, folder / f"{name}.ckpt")

    weight = f"state_dict.{next(iter(good['state_dict']))}"
    huge, one = torch.zeros(1).expand(2**20, 2**20), torch.zeros(2**18)
    made("expanded weight", {weight: huge})
    made("expanded momentum", {"optimizer_states.0.state.0": huge})
    made("expanded class counts", {"hyper_parameters.class_counts": torch.ones(1, dtype=torch.int64).expand(10**9)})
    made("one tensor many times", {"extra": [one[:] for _ in range(200)]})
    made("sparse weight", {weight: torch.sparse_coo_tensor(size=(2**40,))})
    made("tensor class", {"extra": hostile.Payload(torch.FloatTensor, 2**33)})
    made("bytes", {"extra": hostile.Payload(bytearray, 2**33)})
    made("laughs", {"hyper_parameters.milestones": hostile.laughs()})
    made("circle", {"hyper_parameters.milestones": hostile.circle()})
    made("experts", {"hyper_parameters.num_experts": 10**9})
    made("wide", {"hyper_parameters.num_experts": 100, "hyper_parameters.width": 8})
    made("large", {"hyper_parameters.num_experts": 100, "hyper_parameters.network": "resnext101"})
    made("classes", {"hyper_parameters.class_counts": [1] * (values // 4)})
    hostile.claim_more_numbers(good, folder / "claims.ckpt")
    hostile.overlapping(good, folder / "overlapping.ckpt")
    torch.save(good, folder / "good")
    hostile.rezip(folder / "good", folder / "deep.ckpt", lambda _: hostile.deep_pickle(values // 4))
    hostile.rezip(folder / "good", folder / "many.ckpt", lambda _: b"\x80\x02(" + b"}" * (values + 9) + b"l.")
    return sorted(folder.glob("*.ckpt"))


SAID = {
    "is not as torch.save writes it": ("zip bomb", "overlapping"),
    "which it does not hold": ("expanded weight", "expanded momentum", "expanded class counts", "one tensor many times"),
    "refer to each other without end": ("laughs", "circle", "deep"),
    "which was not loaded": ("sparse weight", "tensor class", "bytes"),
    "ask for a far larger network": ("wide", "large"),
    "more than 50,000 values": ("many",),
}


def test_small_files_that_ask_for_much_memory_are_refused(good, tmp_path, monkeypatch):
    for module in (checkpoint, checkpoint_parts):
        monkeypatch.setattr(module, "MOST_VALUES", 50_000)  # sooner, to be quick
    hostile.zip_bomb(good, tmp_path / "zip bomb.ckpt", 2**20)
    for path in bombs(good, tmp_path, 50_000):
        (message,) = refused(path, ["load_checkpoint"])
        assert "MemoryError" not in message
        for said, names in SAID.items():
            assert said in message or path.stem not in names, path.stem


@pytest.mark.slow
def test_no_file_takes_memory_beyond_its_size(good, tmp_path):
    """In a process that may not have more than half a gigabyte beyond what it has after loading a good one."""
    hostile.zip_bomb(good, tmp_path / "zip bomb.ckpt", 2**30)
    paths = bombs(good, tmp_path, checkpoint_parts.MOST_VALUES)
    program = """
        import resource, sys
        from pathlib import Path
        from mllt import load_checkpoint
        from mllt.checkpoint import glance
        from mllt.errors import CheckpointError

        load_checkpoint(sys.argv[1])  # what loading takes at first, such as threads
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, resource.RLIM_INFINITY))
        for path in sys.argv[2:]:
            for door in (glance, load_checkpoint):
                try:
                    door(Path(path))
                except CheckpointError as error:
                    assert "MemoryError" not in str(error) and "allocate" not in str(error), (path, str(error)[:300])
                    if door is load_checkpoint:
                        print("refused", path)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), tmp_path / "good", *paths]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("refused") == len(paths), done.stdout


# ---------------------------------------------------------------------------------------------------------------
# Archives that are not what they seem


@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_an_archive_with_an_entry_twice_is_refused(good, tmp_path, name):
    torch.save(good, tmp_path / "good")
    evil = {**good, "extra": hostile.GADGETS["os.system"](tmp_path / "canary")}
    torch.save(evil, tmp_path / "evil")
    with zipfile.ZipFile(tmp_path / "evil") as archive:
        (other,) = (archive.read(entry) for entry in archive.namelist() if entry.endswith(name))
    with pytest.warns(UserWarning, match="Duplicate"):
        (second,) = [hostile.rezip(tmp_path / "good", tmp_path / "twice.ckpt", **{name: other})]
    for message in refused(second):
        assert "not as torch.save writes it" in message


@pytest.mark.parametrize("change", ["a comment", "another root", "compressed", "no pickle"])
def test_an_archive_that_torch_does_not_write_is_refused(good, tmp_path, change):
    torch.save(good, tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as old, zipfile.ZipFile(tmp_path / "odd.ckpt", "w") as new:
        for entry in old.infolist():
            if not (change == "no pickle" and entry.filename.endswith("data.pkl")):
                small = change == "compressed" and entry.filename.endswith("/version")
                kind = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
                new.writestr(entry.filename, old.read(entry.filename), kind)
        new.comment = b"a note" if change == "a comment" else b""
        if change == "another root":
            new.writestr("../../escape", b"")
    for message in refused(tmp_path / "odd.ckpt"):
        assert "is not as torch.save writes it" in message
    assert not (tmp_path.parent.parent / "escape").exists()


def test_a_program_of_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "program.ckpt")
    refused(tmp_path / "program.ckpt")


# ---------------------------------------------------------------------------------------------------------------
# Values of other types

WRONG = [
    ("mllt", "mutual"),
    ("mllt.format", "1"),
    ("mllt.format", [1]),
    ("mllt.format", hostile.laughs(3)),
    ("mllt.method", 3),
    ("mllt.method", ["mutual"]),
    ("mllt.method", "\x1b[31mmutual"),
    ("mllt.method", "os.system"),
    ("mllt.subclass", 3),
    ("mllt.subclass", "os.system"),
    ("mllt.stage", 3),
    ("mllt.stage", "nowhere"),
    ("mllt.class_names", [1, 2, 3]),
    ("mllt.class_names", "abc"),
    ("mllt.class_names", ["a", "b"]),
    ("mllt.class_names", ["a", "b", ["c"]]),
    ("mllt.class_names", ["a", "b", "\udc80"]),
    ("mllt.preprocessing", "text"),
    ("mllt.preprocessing", {"size": "8", "resize": None, "mean": [0.5] * 3, "std": [0.5] * 3}),
    ("mllt.preprocessing", {"size": 10**6, "resize": None, "mean": [0.5] * 3, "std": [0.5] * 3}),
    ("mllt.preprocessing", {"size": 8, "resize": 10**9, "mean": [0.5] * 3, "std": [0.5] * 3}),
    ("mllt.preprocessing", {"size": 8, "resize": None, "mean": [0.5] * 3, "std": [0.0] * 3}),
    ("mllt.preprocessing", {"_target_": "os.system"}),
    ("mllt.version", 3),
    ("epoch", "1"),
    ("epoch", -1),
    ("epoch", 2**60),
    ("epoch", None),
    ("epoch", True),
    ("global_step", [1]),
    ("pytorch-lightning_version", 2),
    ("pytorch-lightning_version", "0.0.1"),
    ("pytorch-lightning_version", "newest"),
    ("state_dict", {}),
    ("state_dict", [torch.zeros(1)]),
    ("state_dict", {"weight": [1.0]}),
    ("state_dict", {3: torch.zeros(1)}),
    ("optimizer_states", {"state": {}}),
    ("optimizer_states.0", "text"),
    ("optimizer_states.0.state", [1]),
    ("optimizer_states.0.param_groups", {}),
    ("optimizer_states.0.param_groups.0.lr", "fast"),
    ("lr_schedulers", "text"),
    ("lr_schedulers.0", [1]),
    ("loops", "text"),
    ("loops.fit_loop", "text"),
    ("callbacks", []),
    ("callbacks.Extra", "text"),
    ("callbacks.Provenance", {"commits": 3}),
    ("callbacks.Provenance", {"settings": "x"}),
    ("callbacks.RunProgress", {"train_seconds": "x", "images": 1}),
    ("hyper_parameters", [1]),
    ("hyper_parameters.class_counts", torch.tensor([4, 4, 4])),
    ("hyper_parameters.class_counts", [4.5, 4, 4]),
    ("hyper_parameters.class_counts", ["a", "b", "c"]),
    ("hyper_parameters.class_counts", [[4], [4], [4]]),
    ("hyper_parameters.class_counts", []),
    ("hyper_parameters.class_counts", [2**63, 1, 1]),
    ("hyper_parameters.class_counts", 10**9),
    ("hyper_parameters.class_counts", {"_target_": "os.system"}),
    ("hyper_parameters.network", 20),
    ("hyper_parameters.network", "../../resnet20"),
    ("hyper_parameters.network", "timm/hf-hub:attacker/model"),
    ("hyper_parameters.network", "timm/local-dir:/tmp"),
    ("hyper_parameters.network", ["resnet20"]),
    ("hyper_parameters.network_options", "text"),
    ("hyper_parameters.network_options", {"_target_": "os.system"}),
    ("hyper_parameters.num_experts", "2"),
    ("hyper_parameters.num_experts", 2.5),
    ("hyper_parameters.num_experts", -1),
    ("hyper_parameters.width", float("nan")),
    ("hyper_parameters.head", {"_target_": "os.system"}),
    ("hyper_parameters.lr", "0.1"),
    ("hyper_parameters.lr", float("inf")),
    ("hyper_parameters.milestones", "all"),
    ("hyper_parameters.milestones", hostile.nested(40)),
    ("hyper_parameters.milestones", hostile.nested(100)),
    ("hyper_parameters.schedule", ["cosine"]),
    ("hyper_parameters.test_prior", "/etc/passwd"),
    ("hyper_parameters.test_prior", ["a"]),
    ("hyper_parameters.test_prior", {"uniform": 1}),
    ("hyper_parameters.test_prior_factor", "100"),
    ("hyper_parameters.many_above", 10**30),
    ("hyper_parameters.ensemble", {"_target_": "os.system"}),
    ("hyper_parameters.temperature", None),
    ("hyper_parameters._target_", "os.system"),
    ("hyper_parameters.cls", "os.system"),
    ("hyper_parameters._instantiator", "os.system"),
    ("hyper_parameters.self", 1),
]


def sign(value):
    return f"{value!r:.40}".encode("ascii", "backslashreplace").decode() if not isinstance(value, list) else "a list"


@pytest.mark.parametrize(("place", "value"), WRONG, ids=[f"{place}={sign(value)}" for place, value in WRONG])
def test_a_part_of_another_type_is_one_clear_error(good, tmp_path, place, value):
    torch.save(hostile.put(good, place, value), tmp_path / "wrong.ckpt")
    refused(tmp_path / "wrong.ckpt", ["load_checkpoint"])


@pytest.mark.parametrize("name", ["teacher", "features"])
def test_a_checkpoint_cannot_have_another_file_read(good, tmp_path, name):
    torch.save(good, tmp_path / "other.ckpt")
    torch.save(hostile.put(good, f"hyper_parameters.{name}", str(tmp_path / "other.ckpt")), tmp_path / "wrong.ckpt")
    for message in refused(tmp_path / "wrong.ckpt"):
        assert "to be no file" in message


def test_weights_of_another_file_that_an_option_names_are_not_read(good, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    module = MutualLTModule(class_counts=[4, 4], network="timm/resnet18", num_experts=1)
    kept = {**good, "state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    kept["mllt"] = {**good["mllt"], "class_names": ["a", "b"]}
    kept["hyper_parameters"]["network_options"] = {"checkpoint_path": str(tmp_path / "bait.pth")}
    torch.save(kept, tmp_path / "baited.ckpt")
    opened = []
    monkeypatch.setattr(timm.models._helpers, "load_state_dict", lambda path, *_, **__: opened.append(path))
    loaded = load_checkpoint(tmp_path / "baited.ckpt")
    assert opened == []
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_options_that_fail_in_timm_are_one_clear_error(good, tmp_path):
    pytest.importorskip("timm")
    content = hostile.put(good, "hyper_parameters.network", "timm/vit_tiny_patch16_224")
    content = hostile.put(hostile.put(content, "hyper_parameters.width", None), "hyper_parameters.shared", None)
    torch.save(hostile.put(content, "hyper_parameters.network_options", {"patch_size": 0}), tmp_path / "wrong.ckpt")
    refused(tmp_path / "wrong.ckpt", ["load_checkpoint"])


def test_a_message_does_not_grow_with_what_a_file_says(good, tmp_path):
    weights = {f"{'x' * 1000}{number}": torch.zeros(1) for number in range(100)}
    torch.save({**good, "state_dict": weights}, tmp_path / "long.ckpt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "long.ckpt")
    assert len(str(caught.value)) < 2500


# ---------------------------------------------------------------------------------------------------------------
# Going on with a trainer

RESUME = [
    ("loops.fit_loop", {}),
    ("loops.fit_loop.epoch_progress", "text"),
    ("loops.fit_loop.epoch_progress", {"total": {}, "current": {}}),
    ("loops.fit_loop.epoch_loop.batch_progress", {"total": {"ready": "2"}, "current": {}}),
    ("optimizer_states", []),
    ("optimizer_states.0.param_groups", []),
    ("optimizer_states.0.param_groups.0.params", [0]),
    ("optimizer_states.0.param_groups.0.momentum", None),
    ("optimizer_states.0.param_groups.0.nesterov", 2.5),
    ("optimizer_states.0.state.0", {"momentum_buffer": torch.zeros(7)}),
    ("optimizer_states.0.state.0", "text"),
    ("lr_schedulers.0.base_lrs", [0.1] * 7),
    ("lr_schedulers.0.last_epoch", "3"),
    ("lr_schedulers.0.last_epoch", None),
    ("lr_schedulers", []),
]


def put_dotted(content, place, value):
    """As `put`, for the keys of Lightning's loops, which have dots in them."""
    _, dotted, tail = place.partition("epoch_loop.")
    if not dotted:
        return hostile.put(content, place, value)
    fit_loop = {**content["loops"]["fit_loop"], f"epoch_loop.{tail}": value}
    return {**content, "loops": {**content["loops"], "fit_loop": fit_loop}}


def go_on(path, folder, epochs=2):
    trainer = L.Trainer(max_epochs=epochs, default_root_dir=folder, **QUIET)
    trainer.fit(small_module(), batches(), ckpt_path=path, weights_only=True)
    return trainer


def test_a_good_checkpoint_is_gone_on_from(good, tmp_path):
    torch.save(good, tmp_path / "good.ckpt")
    assert go_on(tmp_path / "good.ckpt", tmp_path).global_step == 4


@pytest.mark.parametrize(("place", "value"), RESUME, ids=[f"{place}={sign(value)}" for place, value in RESUME])
def test_a_trainer_does_not_go_on_from_what_the_run_would_not_write(good, tmp_path, place, value):
    torch.save(put_dotted(good, place, value), tmp_path / "wrong.ckpt")
    with pytest.raises(CheckpointError):
        go_on(tmp_path / "wrong.ckpt", tmp_path)


@pytest.mark.parametrize("key", ["best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"])
@pytest.mark.parametrize("path", ["{folder}/../../precious", "memory://precious", "zip::/precious", "/precious", 3])
def test_a_checkpoint_cannot_have_files_deleted(good, tmp_path, key, path):
    """Lightning removes the checkpoint that a better one replaces, by the path that it finds in what it goes on from."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years of work")
    folder = tmp_path / "run" / "checkpoints"
    value = path.format(folder=folder) if isinstance(path, str) else path
    ((name, state),) = good["callbacks"].items()
    state = {**state, "dirpath": str(folder), key: {value: torch.tensor(1.0)} if key == "best_k_models" else value}
    torch.save({**good, "callbacks": {name: state}}, tmp_path / "wrong.ckpt")
    saver = L.pytorch.callbacks.ModelCheckpoint(dirpath=folder)
    trainer = L.Trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=[saver], **QUIET)
    with pytest.raises(CheckpointError, match="could delete"):
        trainer.fit(small_module(), batches(), ckpt_path=tmp_path / "wrong.ckpt", weights_only=True)
    assert (precious / "thesis").read_text() == "years of work"


def test_a_run_that_moved_and_one_that_sorts_its_checkpoints_go_on(good, tmp_path):
    ((name, state),) = good["callbacks"].items()
    state = {**state, "dirpath": "/elsewhere/checkpoints", "best_model_path": "/elsewhere/checkpoints/of/epoch=1.ckpt"}
    torch.save({**good, "callbacks": {name: state}}, tmp_path / "moved.ckpt")
    assert go_on(tmp_path / "moved.ckpt", tmp_path).global_step == 4


def test_every_method_is_loaded_within_what_its_weights_warrant():
    """The bound on what settings may ask for is far from what any method needs: the most is asked for by those of stages."""
    for name, cls in sorted(LongTailedModule.registry.items()):
        if not cls.__module__.startswith("mllt."):
            continue
        settings = {"class_counts": [9, 6, 3], "network": "resnet20", "num_experts": 3, "shared": "stage3", "width": 1}
        try:
            module = cls(**settings)
        except MlltError:  # of one expert only
            module = cls(**{**settings, "num_experts": 1})
        bound = checkpoint_parts.no_larger_than(module.state_dict())
        before = bound.bytes_left, bound.tensors_left
        bound.bytes_left -= 2**27  # without what is free for all
        with bound:
            again = cls(**module.hparams)
            again.restore(module.stages()[-1].name, again.state_dict(), strict=False)
        assert before[0] > bound.bytes_left > 0, name
        assert before[1] - bound.tensors_left < before[1] / 4, name
