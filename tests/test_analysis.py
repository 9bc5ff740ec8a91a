"Analysis on what users have: any timm ViT, every encoder of this package, saved states, and, where it is there, real data"
import math
import os
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

import mimrepro.factors
from mimrepro.analysis import attention, attention_distance, attention_rollout, draw_attention, fitted_head, grad_cam, looks, patch_grid
from mimrepro.data import open_source
from mimrepro.extrema import ExtremaEncoder, instance_attention
from mimrepro.factors import fit_decoder
from mimrepro.features import image_size, in_memory
from mimrepro.geometry import block_features, cka
from mimrepro.protocols import find_protocols, protocol_named
from mimrepro.scenes import render
from mimrepro.swin import SwinEncoder
from mimrepro.views import normalise
from mimrepro.vit import Encoder, set_fused_attention

OURS = ('attention-distance', 'attention-nmi', 'spectrum', 'uniformity', 'cka', 'separation', 'factors', 'invariance', 'reconstruct')
small = dict(embed_dim=32, depth=2, num_heads=2)
encoders = {
    'vit': lambda: Encoder(32, 8, **small),
    'extrema': lambda: ExtremaEncoder(32, 8, **small),
    'swin': lambda: SwinEncoder(32, embed_dim=8, depths=(1, 2), num_heads=(1, 2)),
    'timm': lambda: timm.models.VisionTransformer(32, 8, **small, num_classes=0),
    'timm with registers': lambda: timm.models.VisionTransformer(32, 8, **small, reg_tokens=3, num_classes=0, global_pool='avg'),
    'timm without class token': lambda: timm.models.VisionTransformer(32, 8, **small, class_token=False, global_pool='avg', num_classes=0),
}
fewer = {'images': 24, 'batch': 8, 'steps': 3, 'test_images': 6, 'width': 32, 'depth': 1}


def snapshot(encoder):
    return [(m.training, getattr(m, 'fused_attn', None), len(m._forward_hooks)) for m in encoder.modules()], {k: v.clone() for k, v in encoder.state_dict().items()}


@pytest.mark.parametrize('name', encoders)
def test_every_protocol_judges_every_encoder_and_leaves_it_alone(name):
    torch.manual_seed(0)
    encoder = encoders[name]().train()
    train, test = (open_source('scenes:32', split, n=30) for split in ('train', 'test'))
    modes, weights = snapshot(encoder)
    for key in OURS:
        protocol = protocol_named(key)
        found = protocol(encoder, train, test, device='cpu', **{k: v for k, v in fewer.items() if k in protocol.settings})
        assert found and all(isinstance(value, float) and math.isfinite(value) for value in found.values()), key
    now, same = snapshot(encoder)
    assert now == modes and all(torch.equal(weights[k], same[k]) for k in weights)
    assert all(p.grad is None for p in encoder.parameters())


def test_protocols_are_found():
    assert set(OURS) <= set(find_protocols())


def test_the_same_weights_in_timm_give_the_same_analysis():
    torch.manual_seed(0)
    ours, x = Encoder(32, 8, **small), torch.randn(3, 3, 32, 32)
    theirs = timm.models.VisionTransformer(32, 8, **small, num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(attention(ours, x), attention(theirs, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    head = lambda z: z[:, 1:].mean(1)
    classes = torch.tensor([3, 1, 0])
    torch.testing.assert_close(grad_cam(ours, x, classes, head), grad_cam(theirs, x, classes, head), atol=1e-6, rtol=1e-3)


def test_encoders_of_timm_see_images_as_they_were_trained_to():
    torch.manual_seed(0)
    theirs, images = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, **small, num_classes=0).eval(), render(torch.arange(8)).images
    assert theirs.pretrained_cfg['mean'] == (.5, .5, .5)
    x = images / 127.5 - 1
    with torch.no_grad():
        expected = theirs.forward_features(x)[:, 1:].mean(1)
    torch.testing.assert_close(block_features(theirs, images)[-1], expected, atol=1e-4, rtol=1e-4)
    found = protocol_named('attention-distance')(theirs, None, in_memory(images, torch.zeros(8, dtype=torch.long)), device='cpu')
    for block, look in enumerate(looks(theirs, x)):
        torch.testing.assert_close(found[f'distance_b{block}'], attention_distance(look).mean().item(), atol=1e-4, rtol=1e-4)


def test_class_attention_is_that_of_the_method():
    torch.manual_seed(0)
    encoder, x = ExtremaEncoder(32, 8, **small), torch.randn(2, 3, 32, 32)
    maps = attention(encoder, x)
    assert [m.shape[-2] for m in maps] == [16, 16, 1, 1] and len(looks(encoder, x)) == 2
    for a, b in zip(maps[2:], instance_attention(encoder, x), strict=True):
        torch.testing.assert_close(a, b)
    rolled = attention_rollout(maps)
    assert rolled.shape == (2, 17, 17)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, 17))
    patches = attention_rollout(maps[:2])                    # what the class token adds must not change the patches'
    torch.testing.assert_close(rolled[:, 1:, 1:], patches)
    expected = torch.eye(17)[:1].repeat(2, 1, 1)
    for m in maps[2:]:                                       # the class token by hand
        mix = m.mean(1)
        below = torch.cat([expected, torch.cat([torch.zeros(2, 16, 1), patches], 2)], 1)
        expected = expected / 2 + mix @ below / 2
    torch.testing.assert_close(rolled[:, :1], expected)


@pytest.mark.parametrize('name', encoders)
def test_grad_cam_and_pictures(name):
    torch.manual_seed(0)
    encoder, scenes = encoders[name](), render(torch.arange(40))
    head = fitted_head(encoder, scenes.images, scenes.labels)
    cam = grad_cam(encoder, normalise(scenes.images[:4]), scenes.labels[:4], head)
    assert cam.shape == (4, *patch_grid(encoder)) and cam.min() >= 0 and cam.isfinite().all()
    if name != 'swin':
        assert len(draw_attention(encoder, scenes.images[:2], queries=(5,), heads=2).axes) == 6
        with pytest.raises(ValueError, match='no attention'):
            attention(encoders['swin'](), normalise(scenes.images[:1]))
    if name in ('vit', 'extrema', 'timm'):
        assert len(draw_attention(encoder, scenes.images[:2], heads=0).axes) == 4


def test_blocks_of_fused_and_explicit_attention_agree():
    torch.manual_seed(0)
    encoder, images = encoders['vit'](), render(torch.arange(20)).images
    fused = block_features(encoder, images)
    set_fused_attention(encoder, False)
    for a, b in zip(fused, block_features(encoder, images)):
        assert abs(cka(a, b) - 1) < 1e-5


def test_a_decoder_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder, images = encoders['vit'](), render(torch.arange(20)).images
    options = dict(visible=.5, width=32, depth=1, steps=6, batch=4, every=2)
    whole = fit_decoder(encoder, images, **options)
    save = mimrepro.factors.write_whole

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt
    monkeypatch.setattr(mimrepro.factors, 'write_whole', save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit_decoder(encoder, images, **options, state=tmp_path / 'decoder.pt')
    assert torch.load(tmp_path / 'decoder.pt')['step'] == 2
    monkeypatch.setattr(mimrepro.factors, 'write_whole', save)
    resumed = fit_decoder(encoder, images, **options, state=tmp_path / 'decoder.pt')
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_real_images():
    path = Path(os.environ.get('MIMREPRO_DATA', '')) / 'tiny-imagenet-50a-val.tar.gz'
    if not path.is_file():
        pytest.skip('set MIMREPRO_DATA to the folder of tiny-imagenet-50a-val.tar.gz')
    torch.manual_seed(0)
    encoder, test = Encoder(64, 8, embed_dim=48, depth=2, num_heads=3), open_source(path, 'val')
    assert image_size(encoder) == (64, 64)
    found = protocol_named('attention-distance')(encoder, None, test, device='cpu', images=8)
    assert 0 < found['distance_b0'] < 64
    assert protocol_named('separation')(encoder, None, test, device='cpu', images=100)['same_class'] > -1
