"Robustness through the one door: protocols found by name, on built-in scenes, on Tiny-ImageNet, and what is said to wrong inputs"
import os
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer

from mimrepro.data import Source, open_source
from mimrepro.method import build, load_method, method_names
from mimrepro.protocols import find_protocols
from mimrepro.robust import as_classifier, head_classes
from mimrepro.vit import Encoder

QUICK = {'scene-shifts': {}, 'corruptions': dict(types=('gaussian_noise', 'contrast'), severities=(1, 5)), 'occlusion': {}, 'occlusion-salient': {}, 'occlusion-tokens': {},
         'shuffle': {}, 'attack-fgsm': {}, 'attack-pgd': dict(steps=3, epsilons=(2,)), 'calibration': {}}
FOLDERS = 'imagenet-a', 'imagenet-r', 'imagenet-sketch', 'imagenet-v2', 'imagenet-c', 'background', 'si-score'
needs_data = pytest.mark.skipif('MIMREPRO_DATA' not in os.environ, reason='MIMREPRO_DATA does not name a folder with tiny-imagenet-50a')


@pytest.fixture(scope='module')
def judged():
    "An untrained encoder, and scenes to fit a head on and to judge on"
    torch.manual_seed(0)
    return Encoder(32, 8, embed_dim=32, depth=2, num_heads=2), open_source('scenes:32', 'train', n=200), open_source('scenes:32', 'test', n=60)


@pytest.mark.parametrize('name', QUICK)
def test_a_protocol_on_scenes(name, judged):
    encoder, train, test = judged
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    if name == 'corruptions':
        pytest.importorskip('imagecorruptions')
    found = find_protocols()[name](encoder, train, test, device='cpu', images=40, **QUICK[name])
    assert found and all(isinstance(value, float) for value in found.values())
    assert all(0 <= value <= 100 for key, value in found.items() if key.startswith('acc'))
    assert encoder.training and all(value.equal(before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize('name', method_names())
def test_the_encoder_of_every_method_can_be_judged(name, judged):
    torch.manual_seed(0)
    encoder = build(load_method(name).recipes['demo']).encoder
    classifier = as_classifier(encoder, judged[1], train_images=40)
    for protocol in ('occlusion', 'attack-fgsm', 'occlusion-tokens')[:3 if isinstance(encoder, Encoder) else 2]:
        found = find_protocols()[protocol](classifier, None, judged[2], device='cpu', images=20, **(dict(shares=(0., .5)) if 'occlusion' in protocol else dict(epsilons=(2,))))
        assert all(0 <= value <= 100 for value in found.values())


def test_a_fine_tuned_network_is_taken_as_it_is(judged):
    _, train, test = judged
    torch.manual_seed(0)
    network = VisionTransformer(32, 8, num_classes=10, embed_dim=32, depth=1, num_heads=2, global_pool='avg')
    assert head_classes(network, train) == train.classes and head_classes(network, None) is None
    found = find_protocols()['calibration'](network, train, test, device='cpu', images=40)
    again = find_protocols()['calibration'](as_classifier(network, train), None, test, device='cpu', images=40)
    assert found == again


def test_a_head_for_other_classes_is_refused(judged):
    encoder, train, test = judged
    nine = VisionTransformer(32, 8, num_classes=9, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match='9 outputs of unknown meaning, the images have 10 classes'):
        find_protocols()['shuffle'](nine, train, test, device='cpu')
    with pytest.raises(ValueError, match='needs images with classes'):
        find_protocols()['shuffle'](encoder, None, test, device='cpu')
    with pytest.raises(ValueError, match='no classes to judge by'):
        find_protocols()['occlusion'](as_classifier(encoder, train), None, Source('unlabelled', None, ['a.png']), device='cpu')


@pytest.mark.parametrize('name', FOLDERS)
def test_a_set_that_is_not_there_is_answered_with_where_to_get_it(name, judged):
    encoder, train, test = judged
    with pytest.raises(ValueError, match='https://'):
        find_protocols()[name](encoder, train, test, device='cpu')


@needs_data
def test_tiny_imagenet_and_a_set_that_shares_some_classes(judged, tmp_path):
    data = Path(os.environ['MIMREPRO_DATA'])
    train, test = open_source(data / 'tiny-imagenet-50a-val.tar.gz'), open_source(data / 'tiny-imagenet-50a-val.tar.gz')
    torch.manual_seed(0)
    classifier = as_classifier(Encoder(64, 16, embed_dim=32, depth=1, num_heads=2), train, train_images=500)
    for name, settings in (('occlusion', dict(shares=(0., .5))), ('calibration', {}), ('attack-fgsm', dict(epsilons=(1,)))):
        found = find_protocols()[name](classifier, None, test, device='cpu', images=100, **settings)
        assert all(value == value for value in found.values())
    from PIL import Image
    from mimrepro.shifts import synsets
    shared = set(synsets('imagenet_r')) & set(train.classes)
    for wnid in synsets('imagenet_r'):
        (tmp_path / wnid).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / wnid / 'a.png')
    renditions = open_source(tmp_path, 'test')
    with pytest.raises(ValueError, match='common=True'):
        find_protocols()['imagenet-r'](classifier, None, renditions, device='cpu')
    assert find_protocols()['imagenet-r'](classifier, None, renditions, device='cpu', common=True)['classes'] == len(shared) > 0
