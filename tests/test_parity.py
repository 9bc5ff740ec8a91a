"Parity with the authors' code, and proof that it would notice: each mistake below makes the comparison fail"
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimrepro import mae, masking, patches, targets, vit
from mimrepro.cases import mae as mae_case
from mimrepro.checks import check_parity, key_mismatches
from mimrepro.method import load_method
from mimrepro.parity import read_case
from mimrepro.weights import load_encoder, load_exactly, load_pretrained, rename

CASES = sorted(f.parent for f in (Path(__file__).parent / 'parity').rglob('config.json'))
MAE_CASE = Path(__file__).parent / 'parity' / 'mae'


@pytest.mark.parametrize('folder', CASES, ids=lambda f: f.name)
def test_every_output_is_within_its_bound(folder):
    found = check_parity(folder)
    assert len(found) > 50
    assert [d for d in found if not d.ok] == []


@pytest.mark.parametrize('folder', CASES, ids=lambda f: f.name)
def test_a_case_may_hold_less(folder, tmp_path):
    "Only a forward pass, its tensors in another order"
    case = read_case(folder)
    kept = {n: t for n, t in reversed(case.tensors.items()) if n.startswith(('state.', 'input.', 'random.', 'out.loss', 'out.total', 'out.latent', 'out.ids_'))}
    save_file(kept, tmp_path / 'tensors.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({name: part for name, part in case.config.items() if name not in ('aux', 'trajectory')}))
    found = check_parity(tmp_path)
    assert found and all(d.ok for d in found)
    assert {d.name for d in found} >= {n for n in kept if n.startswith('out.') and 'ids_' not in n}


def test_a_setting_that_we_do_not_have_is_refused(tmp_path):
    case = read_case(MAE_CASE)
    save_file(case.tensors, tmp_path / 'tensors.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({**case.config, 'model': {**case.config['model'], 'norm_eps': 1e-5}}))
    with pytest.raises(ValueError, match='the case was made with norm_eps=1e-05, and our code has 1e-06 fixed'):
        check_parity(tmp_path)


def failing() -> set[str]:
    return {d.name for d in check_parity(MAE_CASE) if not d.ok}


def replace_everywhere(monkeypatch, name, function):
    "In the method and in what compares it"
    for module in (mae, mae_case):
        monkeypatch.setattr(module, name, function)


def test_another_epsilon_of_layer_norm_is_noticed(monkeypatch):
    monkeypatch.setattr(vit, 'LN_EPS', 1e-5)
    assert {'out.latent', 'out.pred'} <= failing()


def test_swapped_halves_of_the_positions_are_noticed(monkeypatch):
    right = patches.sincos_positions
    monkeypatch.setattr(vit, 'sincos_positions', lambda dim, grid: right(dim, grid).roll(dim // 2, dims=-1))
    assert {'state.pos_embed', 'state.decoder_pos_embed'} <= failing()


def test_a_biased_variance_is_noticed(monkeypatch):
    def biased(t):
        variance, mean = torch.var_mean(t, dim=-1, keepdim=True, correction=0)
        return (t - mean) / (variance + targets.NORM_EPS).sqrt()
    replace_everywhere(monkeypatch, 'norm_pixels', biased)
    assert {'out.target_norm', 'out.loss', 'out.loss_norm_pix', 'traj.loss'} <= failing()


def test_another_order_of_tokens_is_noticed(monkeypatch):
    right = masking.mask_from_noise

    def in_image_order(noise, ratio):
        m = right(noise, ratio)
        keep, hide = m.keep.sort(1).values, m.hide.sort(1).values
        return m._replace(keep=keep, hide=hide, restore=torch.cat([keep, hide], 1).argsort(1))
    replace_everywhere(monkeypatch, 'mask_from_noise', in_image_order)
    assert {'out.ids_keep', 'out.latent', 'out.tokens_visible'} <= failing()


def test_another_order_of_pixels_in_a_patch_is_noticed(monkeypatch):
    right = patches.patchify
    replace_everywhere(monkeypatch, 'patchify', lambda x, p: right(x, p).unflatten(-1, (p * p, -1)).mT.flatten(-2))
    assert {'out.patchify', 'out.loss'} <= failing()


def test_an_output_nobody_makes_is_noticed(monkeypatch):
    right = mae_case.outputs
    monkeypatch.setattr(mae_case, 'outputs', lambda case: {n: t for n, t in right(case).items() if n != 'out.latent'})
    assert failing() == {'out.latent'}


def test_a_key_without_a_place_is_noticed(tmp_path):
    keys = json.loads((MAE_CASE / 'state_keys_mae_vit_base_patch16.json').read_text())
    keys[5][0] += '_ema'
    (tmp_path / 'keys.json').write_text(json.dumps(keys))
    assert len(key_mismatches(tmp_path / 'keys.json', 'mae')) == 2


def released_like(path, encoder_only=False):
    "A small file with the names of the authors' checkpoints, and the model whose weights it holds"
    torch.manual_seed(0)
    model = mae.MAE(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1)
    theirs = {'decoder.mask_token': 'mask_token'}
    state = {theirs.get(n) or (n.removeprefix('encoder.') if n.startswith('encoder.') else n.replace('decoder.', 'decoder_')): t for n, t in model.state_dict().items()}
    if encoder_only:
        state = {n: t for n, t in state.items() if not n.startswith('decoder') and n != 'mask_token'}
    torch.save({'model': state}, path)
    return model


def test_a_released_file_is_read_whole(tmp_path):
    model = released_like(tmp_path / 'mae_full.pth')
    loaded = load_pretrained(tmp_path / 'mae_full.pth', method='mae')
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
    encoder = load_encoder(tmp_path / 'mae_full.pth')
    assert all(torch.equal(t, encoder.state_dict()[n]) for n, t in model.encoder.state_dict().items())


def test_an_encoder_only_file_is_an_encoder_and_nothing_else(tmp_path):
    model = released_like(tmp_path / 'mae_pretrain.pth', encoder_only=True)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_encoder(tmp_path / 'mae_pretrain.pth')(x), model.encoder(x))
    with pytest.raises(ValueError, match='hold no MAE decoder: for an encoder alone use mimrepro.weights.load_encoder'):
        load_pretrained(tmp_path / 'mae_pretrain.pth', method='mae')


def test_a_checkpoint_of_another_size_or_method_is_refused(tmp_path):
    released_like(tmp_path / 'small.pth')
    state = torch.load(tmp_path / 'small.pth', weights_only=True)['model']
    larger = mae.MAE(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1)
    with pytest.raises(ValueError, match=r'not a checkpoint of this MAE \(another method or size\?\).*encoder.cls_token: \(1, 1, 64\) in the checkpoint, \(1, 1, 128\)'):
        load_exactly(larger, rename(state, load_method('mae').released), 'small.pth')
    torch.save({'projector.0.weight': torch.zeros(2, 2)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='no MAE decoder'):
        load_pretrained(tmp_path / 'other.pth', method='mae')
    with pytest.raises(ValueError, match="'patch_embed.proj.weight' is missing"):
        load_encoder(tmp_path / 'other.pth')


def test_hugging_face_names_give_the_same_model(tmp_path):
    transformers = pytest.importorskip('transformers', reason='needs the bench extra')
    config = transformers.ViTMAEConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=256, image_size=32, patch_size=8,
                                       decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=128, norm_pix_loss=True,
                                       layer_norm_eps=1e-6)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, method='mae')
    x, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.allclose(ours(dict(x=x), dict(noise=noise)).loss, theirs(x, noise=noise).loss, rtol=1e-5)
