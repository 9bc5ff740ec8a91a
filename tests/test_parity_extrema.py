"Proof that the comparison with ExtreMA's authors would notice: each mistake below makes it fail"
from pathlib import Path

import pytest
import torch

from mimrepro import extrema, masking, vit
from mimrepro.cases import extrema as case_module
from mimrepro.checks import check_parity
from mimrepro.method import Method
from mimrepro.patches import sincos_positions
from mimrepro.twins import cosine_momentum, follow, info_nce
from mimrepro.weights import load_pretrained, rename

CASE = Path(__file__).parent / 'parity' / 'extrema'


def failing() -> set[str]:
    return {d.name for d in check_parity(CASE) if not d.ok}


def test_a_target_that_moves_after_its_answer_is_noticed(monkeypatch):
    monkeypatch.setattr(extrema.ExtreMA, 'before_step', lambda self, t: None)
    found = failing()
    assert {'out.teacher.projection', 'out.loss', 'out.ema_sample.cls_token', 'traj.loss'} <= found and 'out.student.prediction' not in found


def test_a_projector_that_does_not_follow_is_noticed(monkeypatch):
    monkeypatch.setattr(extrema.ExtreMA, 'before_step', lambda self, t: follow(self.target['encoder'], self.encoder, cosine_momentum(t, self.momentum)))
    found = failing()
    assert 'out.ema_norm.momentum_encoder.head.6.weight' in found and 'out.teacher.feature' not in found


def test_more_patches_than_the_authors_keep_is_noticed(monkeypatch):
    for module in (extrema, masking):
        monkeypatch.setattr(module, 'kept', lambda patches, ratio: round(patches * (1 - ratio)))
    assert {'aux.mask.disjoint_r0.9_n1', 'aux.mask.disjoint_r0.9_n8'} <= failing()     # 19.6 patches are 19


def test_images_before_masks_are_noticed(monkeypatch):
    right = extrema.rearrange
    monkeypatch.setattr(extrema, 'rearrange', lambda x, rule, **sizes: right(x, rule.replace('(m b) k d', '(b m) k d'), **sizes))
    found = failing()
    assert {'out.student.block0', 'out.loss', 'out.loss_per_mask'} <= found and 'out.mask_ids' not in found


def test_patches_in_image_order_are_noticed(monkeypatch):
    right = extrema.masks_from_noise
    monkeypatch.setattr(extrema, 'masks_from_noise', lambda *args: right(*args).sort(-1).values)
    assert {'out.mask_ids', 'out.student.block0'} <= failing()


def test_another_epsilon_is_noticed(monkeypatch):
    monkeypatch.setattr(extrema, 'LN_EPS', 1e-5)     # of the class-attention blocks alone
    found = failing()
    assert 'out.student.cls_after_ca0' in found and 'out.student.block2' not in found


def test_swapped_halves_of_the_positions_are_noticed(monkeypatch):
    monkeypatch.setattr(vit, 'sincos_positions', lambda dim, grid: sincos_positions(dim, grid).roll(dim // 2, dims=-1))
    assert {'state.base_encoder.pos_embed', 'state.momentum_encoder.pos_embed'} <= failing()


def test_branches_that_are_skipped_without_scaling_up_are_noticed(monkeypatch):
    right = extrema.block_with_drop

    monkeypatch.setattr(extrema, 'block_with_drop', lambda block, z, paths, chance: right(block, z, (paths - chance).floor(), 0.))
    assert failing() == {'out.droppath.prediction', 'out.droppath.loss'}


def test_info_nce_without_its_factor_is_noticed(monkeypatch):
    monkeypatch.setattr(extrema.ExtreMA, 'compare', lambda self, q, k: extrema.cosine_loss(q, k) if self.loss == 'byol' else info_nce(q, k, self.temperature))
    assert failing() == {'out.infonce.loss'}


def test_a_class_token_that_decays_is_noticed(monkeypatch):
    monkeypatch.setattr(extrema.ExtreMA, 'decays', Method.decays)
    assert 'traj.final_norm.base_encoder.cls_token' in failing()


@pytest.mark.parametrize('wrong', ['after the norm', 'of the student'])
def test_another_feature_of_the_probe_is_noticed(monkeypatch, wrong):
    def feature(model, x, convention):
        encoder = model.target['encoder'] if wrong == 'after the norm' else model.encoder
        return (encoder(x) if wrong == 'after the norm' else encoder.attend(encoder.embed(x)))[:, 0]
    monkeypatch.setattr(case_module, 'released_features', feature)
    found = failing()
    assert 'out.linprobe.feature' in found and all(name.startswith('out.linprobe') for name in found)


def test_patches_that_attend_to_the_class_token_are_noticed(monkeypatch):
    def ordinary(self, z, paths=None):
        z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], dim=1)
        for block in self.blocks:
            z = block(z)
        token = z[:, :1]
        for block in self.blocks_token:
            token = block(z[:, 1:], token)
        return torch.cat([token, z[:, 1:]], dim=1)
    monkeypatch.setattr(extrema.ExtremaEncoder, 'attend', ordinary)
    assert {'out.student.feature', 'out.loss'} <= failing()


def test_a_released_file_is_read_whole(tmp_path):
    torch.manual_seed(0)
    model = extrema.ExtreMA(img_size=48, patch_size=8, embed_dim=64, depth=2, num_heads=1, class_blocks=1, proj_hidden=48, proj_dim=16)
    back = [(r'^target\.projector', 'momentum_encoder.head'), (r'^target\.encoder', 'momentum_encoder'), (r'^encoder', 'base_encoder'),
            (r'^projector', 'base_encoder.head'), (r'^', 'module.')]
    torch.save({'epoch': 300, 'arch': 'vit_base', 'state_dict': rename(model.state_dict(), back), 'optimizer': {}}, tmp_path / 'extrema_mask08x5.pth')
    loaded = load_pretrained(tmp_path / 'extrema_mask08x5.pth', method='extrema')
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
