"CMAE: mistakes that are easily made, and proof that the comparison with the authors' numbers notices each"
from pathlib import Path

import pytest
import torch

from mimrepro import cmae, masking, twins
from mimrepro.cases import cmae as case_of
from mimrepro.checks import check_parity
from mimrepro.parity import read_case

CASE = Path(__file__).parent / 'parity' / 'cmae'


@pytest.fixture(autouse=True)
def without_full_size_models(monkeypatch):
    "Key lists of the full-size models are compared in test_parity; they take no part in a mistake"
    monkeypatch.setattr('mimrepro.checks.key_mismatches', lambda file, key: [])


def failing() -> set[str]:
    return {d.name for d in check_parity(CASE) if not d.ok}


def test_positions_in_the_order_of_mae_are_noticed(monkeypatch):
    for module in (cmae, case_of):
        monkeypatch.setattr(module, 'rows_first', lambda table: None)
    assert 'aux.pos_embed' in failing()


def test_a_plain_contrast_is_noticed(monkeypatch):
    monkeypatch.setattr(cmae.CMAE, 'compare', lambda self, q, k: twins.info_nce(q, k, self.temperature))
    found = failing()
    assert {'out.loss_ct', 'out.loss_total', 'traj.loss'} <= found and 'out.loss_rc' not in found


def test_a_class_token_in_the_target_is_noticed(monkeypatch):
    @torch.no_grad()
    def key(self, x, draws):
        return self.target['projector'](self.target['encoder'](x).mean(1))
    monkeypatch.setattr(cmae.CMAE, 'key', key)
    assert {'out.proj_t', 'out.logits', 'out.loss_ct'} <= failing()


def test_a_feature_of_hidden_patches_alone_is_noticed(monkeypatch):
    monkeypatch.setattr(cmae.CMAE, 'feature', lambda self, z, m: self.feature_decoder(z, m, hidden_only=True).mean(1))
    found = failing()
    assert {'out.proj_s', 'out.pred_s', 'out.loss_ct', 'gradnorm.projector.fc1.weight'} <= found and 'out.loss_rc' not in found


def test_single_patches_in_place_of_cells_are_noticed(monkeypatch):
    def spread_out(noise, ratio, grid, side):
        cells = masking.mask_from_cells(noise, ratio, grid, side)
        count = cells.keep.shape[1] / (grid[0] * grid[1])
        return masking.mask_from_noise(torch.rand(len(noise), grid[0] * grid[1], generator=torch.Generator().manual_seed(0)), 1 - count - 1e-9)
    monkeypatch.setattr(case_of, 'mask_from_cells', spread_out)
    with pytest.raises(ValueError, match='keeps other patches'):
        failing()


def test_a_momentum_copy_that_moves_too_early_is_noticed(monkeypatch):
    right = cmae.CMAE.after_step
    monkeypatch.setattr(cmae.CMAE, 'after_step', lambda self, t: right(self, min(1, t + .2)))
    assert any(name.startswith('traj.final_norm.target_backbone') for name in failing())


def test_batch_norms_that_do_not_decay_are_noticed(monkeypatch):
    monkeypatch.setattr(cmae.CMAE, 'decays', lambda self, name, p: p.ndim > 1 and not name.endswith(('cls_token', 'mask_token')))
    assert 'traj.final_norm.projector.bn0.weight' in failing()


def test_a_target_with_the_final_norm_cannot_read_the_authors_file():
    state = case_of.rename(read_case(CASE).group('state'), cmae.released)
    arguments = cmae.released_arguments(state) | dict(num_heads=4, decoder_num_heads=4)
    with pytest.raises(ValueError, match='Missing: target.encoder.norm'):
        case_of.load_exactly(cmae.CMAE(**arguments, target_norm=True), state, 'the case')


