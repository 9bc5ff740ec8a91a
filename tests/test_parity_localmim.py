"LocalMIM against the authors' code: each mistake below makes the comparison fail"
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from mimrepro import localmim, swin
from mimrepro.cases import localmim as cases
from mimrepro.localmim import LocalMIM
from mimrepro.masking import Masking
from mimrepro.method import Method
from mimrepro.parity import compare, read_case
from mimrepro.weights import load_pretrained

FOLDER = Path(__file__).parent / 'parity' / 'localmim'
VIT, SWIN = read_case(FOLDER / 'vit'), read_case(FOLDER / 'swin')


PARTS = cases.parts


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "Leave the auxiliary outputs and the trajectory out, except where a test asks for them"
    monkeypatch.setattr(cases, 'parts', {name: PARTS[name] for name in ('random.', 'state.')})


def failing(case) -> set[str]:
    got = cases.outputs(case)
    return {d.name for d in compare(case, got, cases.rules, cases.inputs) if not d.ok and d.name in got}


def test_nothing_fails_without_a_mistake():
    assert failing(VIT) == failing(SWIN) == set()


def test_the_other_order_of_the_angle_is_noticed(monkeypatch):
    right = torch.atan2
    monkeypatch.setattr(torch, 'atan2', lambda gx, gy: right(gy, gx))
    assert {'out.target.0', 'out.target.3', 'out.loss.1'} <= failing(VIT)


def test_histograms_normalised_over_all_colours_are_noticed(monkeypatch):
    pooled = lambda votes, factor: F.avg_pool3d(votes, (1, factor, factor)).flatten(1, 2)
    monkeypatch.setattr(localmim, 'histograms', lambda votes, factor=1: F.normalize(pooled(votes, factor), dim=1).flatten(2).mT)
    assert {f'out.target.{k}' for k in range(4)} <= failing(VIT)


def test_coarse_cells_that_count_in_full_are_noticed(monkeypatch):
    right = localmim.at_scale
    monkeypatch.setattr(localmim, 'at_scale', lambda mask, grid, scale: right(mask, grid, scale).ceil())
    found = failing(VIT)
    assert {'out.loss_mask.3', 'out.loss.3', 'out.loss'} <= found and 'out.loss.2' not in found


def walk(self, x, m, shared_norm=False, cut=False):
    "`LocalMIM.tapped` of a ViT with a mistake, or without"
    z = torch.cat([self.encoder.cls_token.expand(len(x), -1, -1), self.encoder.embed(x, m.keep)], dim=1)
    for i, block in enumerate(self.encoder.blocks):
        z = block(z)
        if i in self.taps:
            yield (self.encoder.norm if shared_norm or i == self.taps[-1] else self.norms[self.taps.index(i)])(z)
            z = z.detach() if cut else z


def test_one_norm_for_all_tasks_is_noticed(monkeypatch):
    monkeypatch.setattr(LocalMIM, 'tapped', lambda self, x, m: walk(self, x, m, shared_norm=True))
    assert {'out.latent.0', 'out.latent.1', 'out.latent.2', 'out.loss.0'} <= failing(VIT)


def test_gradients_that_leak_between_isolated_tasks_are_noticed(monkeypatch):
    monkeypatch.setattr(cases, 'parts', {name: PARTS[name] for name in ('random.', 'aux.isolated.')})
    assert not failing(VIT)
    monkeypatch.setattr(LocalMIM, 'tapped', walk)
    found = failing(VIT)
    assert 'aux.isolated.gradnorm.blocks.0.mlp.fc1.weight' in found and not any(name.startswith(('out.', 'gradnorm')) for name in found)


def test_another_rule_of_weight_decay_is_noticed(monkeypatch):
    monkeypatch.setattr(cases, 'parts', PARTS)
    monkeypatch.setattr(LocalMIM, 'decays', Method.decays)
    assert any('mask_token' in name for name in failing(SWIN)) and not failing(VIT)
    monkeypatch.setattr(LocalMIM, 'decays', lambda self, name, p: Method.decays(self, name, p) and 'token' not in name)
    assert 'traj.final_norm.cls_token' in failing(VIT)


def test_a_unit_too_few_is_noticed(monkeypatch):
    right = localmim.shared_mask
    monkeypatch.setattr(localmim, 'shared_mask', lambda noise, ratio: right(noise, ratio - 1 / noise.shape[1]))
    assert {'out.mask', 'out.latent.0', 'out.ids_restore.0', 'out.loss'} <= failing(SWIN)


def test_true_places_are_noticed(monkeypatch):
    monkeypatch.setattr(cases, 'parts', {name: PARTS[name] for name in ('random.', 'aux.corrected')})
    right = swin.SwinEncoder.cells
    monkeypatch.setattr(swin.SwinEncoder, 'cells', lambda self, keep, stage, correct=True: right(self, keep, stage))
    found = failing(SWIN)
    assert {'out.latent.1', 'out.latent.3', 'out.loss.2'} <= found
    assert not {'out.latent.0', 'out.loss.0', 'aux.corrected_coords.loss', 'aux.corrected_coords.latent.2'} & found


def test_another_order_of_merging_is_noticed(monkeypatch):
    def by_columns(self, z, side):
        quads = rearrange(z, 'b (u r i c j) d -> b (u r c) (j i d)', r=side // 2, i=2, c=side // 2, j=2)
        return self.reduction(self.norm(quads))
    monkeypatch.setattr(swin.PatchMerging, 'forward', by_columns)
    monkeypatch.setattr(cases, 'parts', {name: PARTS[name] for name in ('random.', 'aux.merge.')})
    assert {'aux.merge.out', 'out.latent.0', 'out.loss'} <= failing(SWIN)


def test_hidden_tokens_that_attend_are_noticed(monkeypatch):
    monkeypatch.setattr(swin, 'BARRIER', 0.)
    assert {'out.latent.0', 'out.loss'} <= failing(SWIN)


def test_predictions_left_unit_by_unit_are_noticed(monkeypatch):
    def unit_by_unit(self, m: Masking, k: int):
        size = self.scales[k]**2
        return (m.restore[..., None] * size + torch.arange(size)).flatten(1)
    monkeypatch.setattr(LocalMIM, 'restore', unit_by_unit)
    assert {'out.pred.1', 'out.loss.1'} <= failing(SWIN)


@pytest.mark.parametrize('case', [VIT, SWIN], ids=['vit', 'swin'])
def test_a_released_file_is_read_whole(case, tmp_path):
    wanted, theirs = cases.loaded(case), {}
    for name, tensor in wanted.state_dict().items():
        name = name.replace('hog.', 'hog_enc.').replace('decoders.', 'decoder.')
        if case is SWIN:
            name = name.replace('encoder.norm.', 'encoder.norm.3.').replace('norms.', 'encoder.norm.')
            name = ''.join([name[:7 + len('encoder.')], str(int(name[15]) - 1), name[16:]]) if '.downsample.' in name else name
        else:
            name = name.replace('encoder.norm.', 'norm.3.').replace('norms.', 'norm.').replace('encoder.', '')
        theirs[name] = tensor
    torch.save({'model': theirs}, tmp_path / 'released.pth')
    heads = {} if case is SWIN else dict(num_heads=4)
    model = load_pretrained(tmp_path / 'released.pth', method='localmim', decoder_num_heads=2, **heads)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    x = cases.images(case)
    assert torch.equal(model.encoder(x), wanted.encoder(x))
