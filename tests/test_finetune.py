"Fine-tuning from end to end: interrupted runs, every preset, Swins, real images"
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from mimrepro import tune
from mimrepro.data import open_source
from mimrepro.finetune import FinetuneSettings, finetune_settings
from mimrepro.protocols import find_protocols
from mimrepro.swin import SwinEncoder
from mimrepro.tune import Tuner
from mimrepro.vit import Encoder

QUICK = FinetuneSettings(epochs=2, warmup_epochs=.5, batch=16, precision='fp32', ema=.9)


@pytest.fixture(scope='module')
def scenes():
    return open_source('scenes:32', 'train', n=64), open_source('scenes:32', 'test', n=40)


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(0)
    return Encoder(32, 8, embed_dim=32, depth=2, num_heads=4)


def test_a_signal_in_the_middle_of_an_epoch_loses_nothing(scenes, encoder, tmp_path, monkeypatch):
    tuner = lambda folder: Tuner(encoder, *scenes, QUICK, 'cpu', folder, workers=0, progress=False)
    whole = tuner(None)
    weights = whole.fit().state_dict()
    step, count = tune.tune_step, []

    def stops(*args):
        count.append(1)
        if len(count) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(tune, 'tune_step', stops)
    with pytest.raises(KeyboardInterrupt):
        tuner(tmp_path).fit()
    second = tuner(tmp_path)
    ended = second.fit().state_dict()
    assert len(count) == 8 and second.history == whole.history
    assert all(torch.equal(value, ended[name]) for name, value in weights.items())
    assert all(torch.equal(value, second.ema.module.state_dict()[name]) for name, value in whole.ema.module.state_dict().items())


@pytest.mark.parametrize('name', [name for name in find_protocols() if name.startswith(('finetune-', 'scratch', 'partial-', 'semi-'))])
def test_every_preset_takes_a_step(encoder, name, tmp_path):
    scenes = open_source('scenes:32', 'train', n=12), open_source('scenes:32', 'test', n=8)
    protocol = find_protocols()[name]
    swin = SwinEncoder(32, 2, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4) if 'swin' in name else encoder
    changes = dict(epochs=1, warmup_epochs=.5, batch=12, precision='fp32') | (dict(tuned=2) if protocol.settings['tuned'] > 2 else {}) | (dict(share=.5) if name.startswith('semi') else {})
    found = protocol(swin, *scenes, 'cpu', tmp_path, **changes)
    assert 0 <= found['top1'] <= 100 and load_file(tmp_path / 'classifier' / 'model.safetensors')
    assert ('top1_ema' in found) == name.startswith('scratch') * (name != 'scratch-small')


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224', 'deit3_small_patch16_224'])
def test_any_timm_model_can_be_fine_tuned(scenes, name):
    sizes = dict(img_size=32, embed_dim=32, num_heads=2, depth=2) if 'swin' not in name else dict(img_size=32, patch_size=2, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4)
    encoder = timm.create_model(name, **sizes)
    tuner = Tuner(encoder, *scenes, replace(QUICK, epochs=1, ema=0., img_size=0), 'cpu', workers=0, progress=False)
    assert tuner.fit().num_classes == 10 and len(tuner.history) == 1


def test_the_number_is_the_last_epochs(scenes, encoder, monkeypatch):
    accuracies = iter([(90., 99.), (40., 50.), (41., 51.), (42., 52.)])
    monkeypatch.setattr(tune, 'right', lambda *args: next(accuracies))
    found = find_protocols()['finetune-small'](encoder, *scenes, 'cpu', **{**asdict(finetune_settings['small']), 'batch': 32, 'epochs': 2})
    assert found['top1'] == 41., 'not the best epoch on the test images'


@pytest.mark.skipif(not os.environ.get('MIMREPRO_DATA'), reason='set MIMREPRO_DATA to the folder of the real images')
def test_real_images_stream_through_workers(encoder):
    source = open_source(Path(os.environ['MIMREPRO_DATA']) / 'imagenet-sample-100.tar.gz')
    source.labels = torch.arange(len(source)) % 4
    tuner = Tuner(encoder, source, source, replace(QUICK, epochs=1, ema=0., batch=50), 'cpu', workers=1, progress=False)
    tuner.fit()
    assert tuner.history[0]['loss'] > 0
