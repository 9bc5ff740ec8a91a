"Dense tasks across modules and processes: protocols by name, other people's encoders, folders on disk, runs that go on"
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mimrepro.dense import Training
from mimrepro.detect import DetectSettings, coco, described, open_boxes
from mimrepro.protocols import find_protocols, protocol_named
from mimrepro.pyramid import Backbone, Rescaled, SimplePyramid
from mimrepro.segment import IGNORE, SegmentSettings, ade20k, open_masks
from mimrepro.swin import SwinEncoder
from mimrepro.vit import Encoder

pytest.importorskip('torchmetrics')
pytest.importorskip('pycocotools')

SHORT = dict(iterations=2, batch=2, warmup=0, workers=0, precision='fp32', progress=False, channels=8)
SEGMENT = dict(SHORT, auxiliary=8)
DETECT = dict(SHORT, hidden=8, regions=8, proposals=20)


def small_vit(**changes):
    torch.manual_seed(0)
    return Encoder(**{**dict(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2), **changes})


def longer(sources, folder):
    return protocol_named('segment-scenes')(small_vit(), *sources, 'cpu', folder, **{**SEGMENT, 'iterations': 6, 'save_every': 2, 'drop_path': .3})


@pytest.fixture(scope='module')
def masks():
    return open_masks('scenes', n=12), open_masks('scenes', 'test', n=4)


@pytest.fixture(scope='module')
def boxes():
    return open_boxes('scenes', n=12), open_boxes('scenes', 'test', n=4)


@pytest.mark.parametrize('name,settings', [('segment-scenes', SegmentSettings), ('segment-ade20k', SegmentSettings), ('segment-ade20k-localmim', SegmentSettings),
                                           ('segment-ade20k-localmim-swin', SegmentSettings), ('segment-ade20k-extrema', SegmentSettings), ('detect-scenes', DetectSettings),
                                           ('detect-coco', DetectSettings), ('detect-coco-splits', DetectSettings), ('detect-coco-extrema', DetectSettings)])
def test_protocols_are_found_and_their_presets_are_whole(name, settings):
    protocol = protocol_named(name)
    assert asdict(settings(**protocol.settings)) == protocol.settings
    assert protocol.labels == ('masks' if 'segment' in name else 'boxes')


@pytest.mark.parametrize('name', [name for name, protocol in find_protocols().items() if protocol.labels in ('masks', 'boxes')])
def test_every_preset_takes_a_step(name, masks, boxes):
    "At the size of scenes, everything else as it is"
    encoder = SwinEncoder(32, 2, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), window_size=2) if 'swin' in name else small_vit()
    changes, data = (dict(SEGMENT, taps=None), masks) if 'segment' in name else (dict(DETECT, window=4), boxes)
    found = protocol_named(name)(encoder, *data, 'cpu', **dict(changes, crop=32, iterations=1))
    assert all(0 <= value <= 100 for value in found.values())


@pytest.mark.parametrize('architecture,arguments', [
    ('vit_tiny_patch16_224', dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=2)),
    ('vit_base_patch16_224', dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, class_token=False, global_pool='avg')),
    ('vit_base_patch16_224', dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, reg_tokens=3, no_embed_class=True)),
    ('swin_tiny_patch4_window7_224', dict(img_size=32, patch_size=2, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4), window_size=4))])
def test_encoders_of_timm_are_judged_and_left_as_they_are(architecture, arguments, masks, boxes):
    torch.manual_seed(0)
    encoder = timm.create_model(architecture, **arguments).eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    found = protocol_named('segment-scenes')(encoder, *masks, 'cpu', **SEGMENT) | protocol_named('detect-scenes')(encoder, *boxes, 'cpu', **DETECT)
    assert all(0 <= value <= 100 for value in found.values())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items()) and not encoder.training


@pytest.mark.parametrize('size', [(512, 512), (1024, 1024), (512, 672)])
def test_positions_reach_the_papers_sizes(size):
    backbone = Backbone(small_vit(img_size=224, patch_size=16, embed_dim=16, depth=4), size, window=14 if size[0] == 1024 else 0)
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, *size))
        shapes = [[tuple(level.shape[2:]) for level in neck(maps)] for neck in (Rescaled(backbone.widths), SimplePyramid(16, 8))]
    assert backbone.body.pos_embed.shape[1] == size[0] * size[1] // 256 + (size[0] != 1024)
    assert shapes == [[(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]] * 2


def test_a_killed_process_goes_on_and_ends_where_an_unbroken_one_does(tmp_path, masks):
    script = '''
import os, sys
from mimrepro.dense import DenseRun
from test_dense import longer, open_masks
advance = DenseRun.advance
DenseRun.advance = lambda run, batch: os._exit(9) if run.step == 5 else advance(run, batch)
longer((open_masks('scenes', n=12), open_masks('scenes', 'test', n=4)), sys.argv[1])
'''
    killed = subprocess.run([sys.executable, '-c', script, str(tmp_path / 'broken')], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert killed.returncode == 9, killed.stderr
    assert torch.load(tmp_path / 'broken' / 'dense.pt')['step'] == 4
    assert longer(masks, tmp_path / 'broken') == longer(masks, tmp_path / 'whole')
    states = [torch.load(tmp_path / folder / 'dense.pt')['model'] for folder in ('broken', 'whole')]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_folder_of_another_run_is_refused(tmp_path, masks):
    judge = protocol_named('segment-scenes')
    judge(small_vit(), *masks, 'cpu', tmp_path, **SEGMENT)
    with pytest.raises(ValueError, match='holds another run .seed: 0 there, 1 here'):
        judge(small_vit(), *masks, 'cpu', tmp_path, **SEGMENT, seed=1)


def test_ade20k_from_files_is_what_scenes_are_in_memory(tmp_path):
    "The same pictures through files, apart from the ground, which ADE20K does not judge"
    memory = open_masks('scenes:32', 'val', n=6)
    for i, (image, mask) in enumerate(memory):
        for kind, pixels, ending in (('images', image.permute(1, 2, 0), 'jpg'), ('annotations', mask, 'png')):
            folder = tmp_path / kind / 'validation'
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / f'{i}.{ending}', quality=100) if ending == 'jpg' else Image.fromarray(pixels.numpy()).save(folder / f'{i}.{ending}')
    files = ade20k(tmp_path, 'val', classes=10)
    for i in range(6):
        assert torch.equal(files[i][1], torch.where(memory[i][1] == 0, IGNORE, memory[i][1] - 1))
    assert len(ade20k(tmp_path, 'val').classes) == 150
    (tmp_path / 'images/validation/0.jpg').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 6 images cannot be used'):
        assert torch.equal(ade20k(tmp_path, 'val', classes=10)[0][1], files[1][1])        # the next image, with its own mask


def test_coco_polygons_and_crowds(tmp_path):
    (tmp_path / 'train2017').mkdir()
    (tmp_path / 'annotations').mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / 'train2017' / f'{i}.png')
    square = dict(bbox=[4, 2, 10, 6], area=60, segmentation=[[4, 2, 14, 2, 14, 8, 4, 8]], category_id=7)
    notes = dict(images=[dict(id=i + 5, file_name=f'{i}.png', height=20, width=30) for i in range(3)], categories=[dict(id=3, name='a'), dict(id=7, name='b')],
                 annotations=[dict(square, id=1, image_id=5, iscrowd=0), dict(square, id=2, image_id=5, iscrowd=1, segmentation=dict(counts=[600], size=[20, 30])),
                              dict(square, id=3, image_id=6, iscrowd=1, segmentation=dict(counts=[600], size=[20, 30]))])
    (tmp_path / 'annotations' / 'instances_train2017.json').write_text(json.dumps(notes))
    source = coco(tmp_path)
    assert (len(source), source.ids, source.classes) == (1, [5], ['a', 'b'])             # an image of crowds only is not trained on
    image, objects = source[0]
    assert objects['labels'].tolist() == [2] and objects['boxes'].tolist() == [[4, 2, 14, 8]]
    assert objects['masks'][0, 2:8, 4:14].all() and objects['masks'].sum() == 60
    assert described(**objects, image=5, categories=source.categories)[0]['category_id'] == 7


def test_drops_and_warmup_of_published_schedules():
    t = Training(iterations=160_000, lr=1., warmup=1500, warm_start=1e-6)
    assert abs(t.rate(0) - 1e-6) < 1e-12 and abs(t.rate(1500) - (1 - 1500 / 160_000)) < 1e-12 and 0 < t.rate(159_999) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_both_run_on_a_gpu_in_half_precision(masks, boxes):
    for name, data, settings in (('segment-scenes', masks, SEGMENT), ('detect-scenes', boxes, DETECT)):
        found = protocol_named(name)(small_vit(), *data, 'cuda', **{**settings, 'precision': 'bf16'})
        assert all(0 <= value <= 100 for value in found.values())
