"""Sources and loaders on files: what goes wrong with data, and what real sets give.

The tests of real sets need the folder named by MIMREPRO_DATA, with tiny-imagenet-50a-train.tar.gz and its companions.
"""
import os
import pickle
import signal
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimrepro.data import open_source, resident
from mimrepro.loader import Batch, Cropper, loader
from mimrepro.views import Crop
from mimrepro.workers import WorkerFault

DATA = Path(os.environ.get('MIMREPRO_DATA') or '/no folder is named')
real = pytest.mark.skipif(not (DATA / 'tiny-imagenet-50a-train.tar.gz').exists(),
                          reason='MIMREPRO_DATA names no folder with tiny-imagenet-50a-train.tar.gz')


def picture(seed: int, size=(40, 32)) -> Image.Image:
    "A smooth random picture, `size` is (width, height)"
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write(root: Path, count: int = 12, size=(40, 32)) -> Path:
    "`count` pictures in two class folders"
    for k in range(count):
        file = root / ('ant', 'cat')[k % 2] / f'{k:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(k, size).save(file)
    return root


def pack(root: Path, file: Path) -> Path:
    with tarfile.open(file, 'w:gz' if file.suffix != '.tar' else 'w') as tar:
        tar.add(root, root.name)
    return file


def equal(a: list[Batch], b: list[Batch]):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        assert torch.equal(x.images, y.images) and torch.equal(x.indices, y.indices)


# ---- what cannot be opened

def test_missing_path(tmp_path):
    write(tmp_path / 'pets')
    with pytest.raises(FileNotFoundError, match=r"has no 'pest' but pets.*Expected 'scenes'.*a folder of images"):
        open_source(tmp_path / 'pest' / 'train')


def test_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match=r'no images among its 0 files; looked for names that end in \.jpg'):
        open_source(tmp_path)
    for name in ('a.txt', 'b.txt', 'c.csv', 'LICENCE', '.hidden.png'):
        (tmp_path / name).write_text('words')
    with pytest.raises(ValueError, match=r'no images among its 5 files \(\.txt: 2, .*looked for names that end in \.jpg'):
        open_source(tmp_path)


def test_neither_folder_nor_tar(tmp_path):
    picture(0).save(tmp_path / 'one.png')
    with pytest.raises(ValueError, match='one.png is neither a folder nor a .tar'):
        open_source(tmp_path / 'one.png')


def test_split_that_is_not_there(tmp_path):
    write(tmp_path / 'train')
    assert len(open_source(tmp_path)) == 12
    with pytest.raises(ValueError, match="no split 'val'; its folders are train"):
        open_source(tmp_path, 'val')


@pytest.mark.parametrize('name', ['set.tar', 'set.tar.gz', 'set.tgz'])
@pytest.mark.parametrize('share', [.3, .6, .98])
def test_tar_cut_short(tmp_path, name, share):
    file = pack(write(tmp_path / 'set', size=(64, 64)), tmp_path / name)
    assert len(open_source(file)) == 12
    content = file.read_bytes()
    file.write_bytes(content[:int(share * len(content))])
    with pytest.raises(ValueError, match=r'the tar ends early, after \d+ whole files .*is it fully downloaded\?'):
        open_source(file)


def test_tar_cut_between_files(tmp_path):
    file = pack(write(tmp_path / 'set'), tmp_path / 'set.tar')
    with tarfile.open(file) as tar:
        members = [member for member in tar if member.isfile()]
    file.write_bytes(file.read_bytes()[:members[7].offset])  # as if the eighth file had never been
    with pytest.raises(ValueError, match='the tar ends early, after 7 whole files'):
        open_source(file)


# ---- odd and broken images

def test_odd_images_are_read(tmp_path):
    photo = picture(3)
    grey16 = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
    Image.fromarray(grey16).save(tmp_path / 'grey16.png')
    Image.fromarray(grey16).save(tmp_path / 'grey16.tiff')
    palette = photo.quantize(16)
    palette.save(tmp_path / 'palette.png')
    photo.convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    photo.convert('LA').save(tmp_path / 'la.png')
    photo.crop((0, 0, 1, 1)).save(tmp_path / 'pixel.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        source = open_source(tmp_path)
        images = {file: source[i][0] for i, file in enumerate(source.files)}
    assert source.broken == {} and source.labels is None and source[0][1] == -1
    assert all(image.dtype == torch.uint8 and image.shape[0] == 3 for image in images.values())
    want = torch.from_numpy(np.round(grey16 / 257)).to(torch.uint8).expand(3, -1, -1)
    assert torch.equal(images['grey16.png'], want) and torch.equal(images['grey16.tiff'], want)
    plain = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()
    assert (images['cmyk.jpg'] - plain).abs().mean() < 6
    assert torch.equal(images['palette.png'], torch.from_numpy(np.array(palette.convert('RGB'))).permute(2, 0, 1))
    assert torch.equal(images['pixel.png'][:, 0, 0].float(), plain[:, 0, 0])


def damage(root: Path) -> Path:
    "A set of sixteen with four that cannot be read"
    write(root, 12)
    photo = picture(99)
    photo.save(root / 'ant' / '90-cut.jpg', quality=95)
    cut = (root / 'ant' / '90-cut.jpg').read_bytes()
    (root / 'ant' / '90-cut.jpg').write_bytes(cut[:-len(cut) // 5])
    (root / 'ant' / '91-empty.png').write_bytes(b'')
    (root / 'cat' / '92-page.jpg').write_text('<html>404</html>')
    content = bytearray((root / 'cat' / '01.png').read_bytes())
    content[60:90] = bytes(30)
    (root / 'cat' / '93-rot.png').write_bytes(content)
    return root


def test_broken_images_are_counted_and_named(tmp_path):
    source = open_source(damage(tmp_path / 'set'))
    with pytest.warns(UserWarning, match=r'1 of 16 images cannot be used and are left out \(ant/90-cut.jpg: image file is truncated'):
        shown = [source.read(i)[1] for i in range(16)]
    assert shown == [0, 1, 2, 3, 4, 5, 8, 8, 8, 9, 10, 11, 12, 13, 0, 0]  # the next readable one, round the end
    assert list(source.broken) == ['ant/90-cut.jpg', 'ant/91-empty.png', 'cat/92-page.jpg', 'cat/93-rot.png']
    assert 'empty' in source.broken['ant/91-empty.png'] and "b'<html>40'" in source.broken['cat/92-page.jpg']


def test_resident_drops_broken_images(tmp_path):
    source = open_source(damage(tmp_path / 'set'))
    with pytest.warns(UserWarning, match=r'4 of 16 images cannot be used.*; \.\.\.\)'):
        images, labels = resident(source)
    assert images.shape == (12, 3, 32, 40) and labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize('workers', [None, 0, 2])
def test_mostly_broken_is_an_error(tmp_path, workers):
    write(tmp_path, 20)
    for k, file in enumerate(sorted(tmp_path.rglob('*.png'))):
        if k % 7: file.write_bytes(b'junk')
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r'of 20 images cannot be used .*more than half'):
        warnings.simplefilter('ignore')
        list(loader(open_source(tmp_path), (Crop(16),), 4, workers=workers).epoch(0))


@pytest.mark.filterwarnings('ignore:.*cannot be used')
def test_order_survives_workers_ranks_and_resume(tmp_path):
    damage(tmp_path / 'set')
    make = lambda **kw: loader(open_source(tmp_path / 'set'), (Crop(16), Crop(16, scale=(.1, .4))), 4, **{'seed': 3, 'workers': 0, **kw})
    want, two = list(make().epoch(1)), make(workers=2)
    equal(list(two.epoch(1)), want)
    assert set(two.source.broken) == {'ant/90-cut.jpg', 'ant/91-empty.png', 'cat/92-page.jpg', 'cat/93-rot.png'}  # found in workers, known here
    equal(list(two.epoch(1, start=2)), want[2:])
    for workers in (0, None):
        want = list(make(workers=workers).epoch(1))
        halves = [list(make(workers=workers, rank=rank, world=2).epoch(1)) for rank in (0, 1)]
        equal([Batch(*map(torch.cat, zip(*pair))) for pair in zip(*halves)], want)


# ---- workers

def test_a_killed_worker_is_named_and_the_loader_goes_on(tmp_path):
    source = open_source(write(tmp_path / 'set', 40))
    two = loader(source, (Crop(16),), 4, workers=2)
    batches = two.epoch(0)
    next(batches)
    victim = two.reader.board.read()[0]
    os.kill(victim.process, signal.SIGKILL)
    with pytest.raises(WorkerFault, match=rf'data worker 0 \(process {victim.process}\) was killed .* while at (ant|cat)/\d+.png.*fewer workers'):
        for _ in range(20):
            time.sleep(.1)
            next(batches)
    equal(list(two.epoch(0)), list(loader(source, (Crop(16),), 4, workers=0).epoch(0)))


def test_a_stuck_worker_is_named(tmp_path):
    source = open_source(write(tmp_path / 'set', 40))
    stuck = tmp_path / 'set' / 'cat' / '13.png'
    stuck.unlink()
    os.mkfifo(stuck)  # opens, and never says anything
    with pytest.raises(WorkerFault, match=r'has been reading cat/13.png for \d+ s, and nothing has come for 6 s.*move it away'):
        list(loader(source, (Crop(16),), 4, workers=2, timeout=6).epoch(0))


# ---- sizes

@pytest.mark.filterwarnings('ignore:.*cannot be used')
def test_image_smaller_than_the_crop(tmp_path):
    write(tmp_path)
    for workers in (None, 0):
        with pytest.raises(ValueError, match='32 x 40 pixels.* smaller than the crop of 48 x 48'):
            loader(open_source(tmp_path), (Crop(48, 'random'),), 4, workers=workers)
    picture(0, (1, 1)).save(tmp_path / 'ant' / '50.png')
    fixed = loader(open_source(tmp_path), (Crop(24, 'random'),), 13)                # one small image does not stop a run
    list(fixed.epoch(0))
    assert fixed.source.broken == {'ant/50.png': '1 x 1 pixels, smaller than the crop of 24 x 24'}
    resized = loader(open_source(tmp_path), (Crop(24),), 13)
    assert next(resized.epoch(0)).images.shape == (13, 1, 3, 24, 24) and not resized.source.broken


@pytest.mark.parametrize('workers', [None, 0])
def test_fewer_images_than_a_batch(tmp_path, workers):
    with pytest.raises(ValueError, match='has 12 images, fewer than one batch of 64: lower the batch to 12'):
        loader(open_source(write(tmp_path)), (Crop(16),), 64, workers=workers)


@pytest.mark.parametrize('name', ['set', 'set.tar', 'set.tar.gz'])
def test_sources_travel_to_new_processes(tmp_path, name):
    write(tmp_path / 'set')
    if name != 'set': pack(tmp_path / 'set', tmp_path / name)
    source = open_source(tmp_path / name)
    there = pickle.loads(pickle.dumps(Cropper(source, (Crop(16),), 0, (0, 0))))
    assert torch.equal(there.source[5][0], source[5][0]) and there[(0, [1, 2])][1].tolist() == [1, 2]


def test_built_in_scenes():
    pytest.importorskip('mimrepro.scenes', reason='the built-in scenes are not there')
    source = open_source('scenes:32', n=48)
    images, labels = resident(source)
    assert images.shape == (48, 3, 32, 32) and images.dtype == torch.uint8 and torch.equal(labels, source.labels)
    assert torch.equal(source[7][0], images[7]) and source[7][1] == labels[7] < len(source.classes)
    kept, streamed = (loader(source, (Crop(32, 'centre'),), 16, workers=workers) for workers in (None, 0))
    equal(list(kept.epoch(2)), list(streamed.epoch(2)))
    assert not torch.equal(resident(open_source('scenes:32', 'val', n=48))[0], images)


# ---- real sets

@real
def test_tiny_imagenet():
    start = time.perf_counter()
    source = open_source(DATA / 'tiny-imagenet-50a-train.tar.gz')
    images, labels = resident(source)
    seconds = time.perf_counter() - start
    assert seconds < 60, f'{seconds:.0f} s to read 25,000 small images'
    assert images.shape == (25000, 3, 64, 64) and labels.bincount().tolist() == [500] * 50 and not source.broken
    assert torch.equal(images[777], source[777][0]) and source.file(777).startswith(source.classes[labels[777]])
    val = open_source(DATA / 'tiny-imagenet-50a-val.tar.gz', 'val')
    assert val.classes == source.classes and val.labels.bincount().tolist() == [50] * 50
    grey = (images[:, 0] == images[:, 1]).flatten(1).all(1) & (images[:, 0] == images[:, 2]).flatten(1).all(1)
    assert 10 < grey.sum() < 2500                      # ImageNet has some
    batches = loader(source, (Crop(64),), 512)
    assert batches.steps == 48 and next(batches.epoch(0)).images.shape == (512, 1, 3, 64, 64)


@real
def test_photographs_of_many_sizes():
    source = open_source(DATA / 'imagenet-sample-100.tar.gz')
    assert len(source) == 100 and resident(source) is None
    batches = [list(loader(source, (Crop(96),), 32, workers=workers).epoch(0)) for workers in (0, 2)]
    equal(*batches)
    assert len(batches[0]) == 3 and not source.broken
    means = batches[0][0].images.float().mean((0, 1, 3, 4))
    assert ((means > 80) & (means < 150)).all(), means
