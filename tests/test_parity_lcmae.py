"LC-MAE: mistakes that are easily made, and proof that the comparison with the authors' numbers notices each"
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from mimrepro import lcmae, masking, twins
from mimrepro.cases import lcmae as case_of
from mimrepro.checks import check_parity
from mimrepro.parity import read_case
from mimrepro.weights import load_encoder, load_exactly, load_pretrained, rename

CASE = Path(__file__).parent / 'parity' / 'lcmae'


def failing() -> set[str]:
    return {d.name for d in check_parity(CASE) if not d.ok}


@pytest.fixture(autouse=True)
def without_full_size_models(monkeypatch):
    "Key lists of the full-size models are compared in test_parity; they take no part in a mistake"
    monkeypatch.setattr('mimrepro.checks.key_mismatches', lambda file, key: [])


def test_guidance_by_the_same_view_is_noticed(monkeypatch):
    right = lcmae.LCMAE.guides
    monkeypatch.setattr(lcmae.LCMAE, 'guides', lambda self, x: right(self, torch.cat(x.chunk(2)[::-1])))
    assert {'out.k1', 'out.k2', 'out.bc_loss', 'out.total_loss', 'gradnorm.predictor.3.weight', 'traj.bc_loss'} <= failing()


def test_two_independent_masks_are_noticed(monkeypatch):
    monkeypatch.setattr(lcmae, 'disjoint_masks', lambda noise, ratio: (masking.mask_from_noise(noise, ratio), masking.mask_from_noise(noise.flip(1), ratio)))
    found = failing()
    assert {'out.mask2', 'out.latent2', 'out.q2', 'traj.bc_loss'} <= found and not {'out.mask1', 'out.mae_loss'} & found


def test_a_class_token_in_the_mean_is_noticed(monkeypatch):
    monkeypatch.setattr(lcmae.LCMAE, 'guided', lambda self, z: z.mean(1, keepdim=True))
    assert {'out.pooled1', 'out.pooled2', 'out.proj1', 'out.bc_loss', 'gradnorm.head.0.weight'} <= failing()


def test_a_target_that_trains_is_noticed(monkeypatch):
    "With `train` left to torch, the target's batch norms read the batch"
    monkeypatch.setattr(lcmae.LCMAE, 'train', nn.Module.train)
    right = case_of.model_of
    monkeypatch.setattr(case_of, 'model_of', lambda case: right(case).train())
    assert {'out.k1', 'out.k2', 'out.bc_q1_k2', 'out.bc_loss'} <= failing()


def test_running_statistics_that_stay_behind_are_noticed(monkeypatch):
    right = twins.follow
    monkeypatch.setattr(lcmae, 'follow', lambda target, online, momentum, buffers: right(target, online, momentum))
    found = failing()
    assert {f'traj.final_norm.model_ema.ema.head.1.running_{name}' for name in ('mean', 'var')} <= found
    assert 'out.bc_loss' not in found


def test_a_target_that_pools_as_few_tokens_as_are_seen_is_noticed(monkeypatch):
    monkeypatch.setattr(lcmae.LCMAE, 'guides', lambda self, x: self.target['projector'](self.guided(self.target['encoder'](x))[:, 0]))
    found = failing()
    assert {'out.k1', 'out.k2', 'out.bc_loss'} <= found and 'out.teacher_latent1' not in found


def test_a_momentum_of_the_next_step_is_noticed(monkeypatch):
    monkeypatch.setattr(lcmae.LCMAE, 'after_step', lambda self, t: twins.follow(self.target, self, twins.cosine_momentum(t + .1, self.momentum), buffers=True))
    found = failing()
    assert any(name.startswith('traj.final_norm.model_ema.ema.') for name in found) and 'traj.mae_loss' not in found


def test_a_solarisation_at_another_level_is_noticed(monkeypatch):
    case = read_case(CASE)
    assert all(torch.equal(t, case.tensors[name]) for name, t in case_of.pictures(case).items())
    monkeypatch.setattr(lcmae, 'solarise', lambda x, which: torch.where(which[:, None, None, None] & (x > 128), 255 - x, x))
    assert not torch.equal(case_of.pictures(case)['input.view2'], case.tensors['input.view2'])


def authors_name(ours: str) -> str:
    "Our name of a tensor as the authors' code would write it, behind 'ema.' for the target's"
    if ours.startswith('target.'):
        return 'ema.' + authors_name(ours.removeprefix('target.'))
    theirs = [('decoder.mask_token', 'mask_token'), ('encoder.', ''), ('decoder.', 'decoder_'), ('projector.', 'head.')]
    return next((new + ours.removeprefix(old) for old, new in theirs if ours.startswith(old)), ours)


small = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1, head_dim=48)


@pytest.mark.parametrize('options', [dict(head_norm='layer'), dict(head_norm=None, projector_depth=3), dict(projector_depth=1, predictor_depth=0), dict(head_activation='gelu')])
def test_checkpoints_of_other_heads_find_their_places(options):
    "Heads of any depth and norm; online network and target"
    model = lcmae.LCMAE(**small, **options)
    state = rename({authors_name(name): t for name, t in model.state_dict().items()}, lcmae.released)
    read = lcmae.LCMAE(**lcmae.released_arguments(state) | {k: v for k, v in options.items() if k == 'head_activation'})  # no tensor tells an activation
    load_exactly(read, state, 'the file')
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in read.state_dict().items())


def test_a_file_of_the_authors_code_is_read(tmp_path):
    model = lcmae.LCMAE(**small)
    state = {authors_name(name): t for name, t in model.state_dict().items()}
    torch.save(dict(model={n: t for n, t in state.items() if not n.startswith('ema.')}, model_ema={n: t for n, t in state.items() if n.startswith('ema.')}), tmp_path / 'lut.pth')
    read = load_pretrained(tmp_path / 'lut.pth', method='lcmae')
    assert read.target is not None and all(torch.equal(t, model.state_dict()[name]) for name, t in read.state_dict().items())
    assert torch.equal(load_encoder(tmp_path / 'lut.pth').pos_embed, model.encoder.pos_embed)
