"""`LWSModule`: the second stage learns one scale per class, and nothing else."""

import torch
from torch.testing import assert_close

from mllt import LWSModule, load_checkpoint


def test_scales_begin_at_one_and_are_all_that_learns(small, loader, make_trainer, tmp_path, problem):
    module = LWSModule(**small)
    module.begin("features")
    make_trainer(2).fit(module, loader)
    assert torch.equal(module.scales, torch.ones(1, 1, 3)), "not in the first stage"
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    module.begin("head")
    trainer = make_trainer(3)
    trainer.fit(module, loader)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(module.scales, torch.ones(1, 1, 3))
    trainer.save_checkpoint(tmp_path / "lws.ckpt")
    again = load_checkpoint(tmp_path / "lws.ckpt")
    assert torch.equal(again.scales, module.scales)
    assert again.stage == "head"


def test_logits_are_scaled_class_by_class(small, problem):
    module = LWSModule(**small, num_experts=2).eval()
    with torch.no_grad():
        module.scales.copy_(torch.tensor([[[1.0, 2.0, 3.0]], [[0.5, 1.0, 0.0]]]))
        plain, scaled = module.network(problem[0][:4]), module(problem[0][:4])
    for expert in range(2):
        for label in range(3):
            assert_close(scaled[expert, :, label], plain[expert, :, label] * module.scales[expert, 0, label])


def test_features_by_path_give_the_head_that_the_same_first_stage_gives(small, loader, make_trainer, tmp_path):
    whole = LWSModule(**small)
    whole.begin("features")
    trainer = make_trainer(2)
    trainer.fit(whole, loader)
    trainer.save_checkpoint(tmp_path / "features.ckpt")
    whole.begin("head")
    make_trainer(2).fit(whole, loader)
    by_path = LWSModule(**small, features=tmp_path / "features.ckpt")
    make_trainer(2).fit(by_path, loader)
    assert not torch.equal(whole.scales, torch.ones(1, 1, 3))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, by_path.state_dict()[name]), name
