"""Sets in shards: the same batches whoever reads them and wherever they lie, and what happens to what is broken.

Throughput is measured on the photographs of the folder named by MIMREPRO_DATA.
"""
import io
import json
import os
import signal
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimrepro.data import open_source, resident
from mimrepro.loader import Batch, loader
from mimrepro.streams import lane_pieces
from mimrepro.views import Crop
from mimrepro.workers import WorkerFault

pytest.importorskip('webdataset', reason='shards need webdataset: pip install "mimrepro[streams]"')
DATA = Path(os.environ.get('MIMREPRO_DATA') or '/no folder is named')
COUNTS = (13, 9, 17, 11)
quiet = pytest.mark.filterwarnings('ignore:.*cannot be used')


def picture(k: int, size=(40, 32)) -> bytes:
    coarse = np.random.default_rng(k).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, 'JPEG')
    return file.getvalue()


def pack(path: Path, numbers) -> Path:
    with tarfile.open(path, 'w') as tar:
        for k in numbers:
            for name, content in ((f'{k:04}.jpg', picture(k)), (f'{k:04}.json', b'{}')):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Path:
    "Fifty images in four uneven shards"
    folder, first = tmp_path_factory.mktemp('shards'), 0
    for s, count in enumerate(COUNTS):
        pack(folder / f'photos-{s}.tar', range(first, first + count))
        first += count
    return folder


def made(name, batch=8, lanes=4, buffer=6, n=None, **kw):
    source = open_source(name, lanes=lanes, buffer=buffer, n=n)
    return loader(source, (Crop(16), Crop(16, scale=(.1, .4))), batch, **{'seed': 3, 'workers': 0, **kw})


def equal(a: list[Batch], b: list[Batch]):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        assert torch.equal(x.images, y.images) and torch.equal(x.indices, y.indices)


def pattern(folder: Path) -> str: return f'{folder}/photos-{{0..3}}.tar'


# ---- the promise

def test_an_epoch_has_every_image_once(shards):
    one = made(pattern(shards), batch=4)
    for epoch in range(3):
        drawn = torch.cat([batch.indices for batch in one.epoch(epoch)]).tolist()
        assert len(drawn) == len(set(drawn)) == 48 and set(drawn) <= set(range(50))  # 2 of 50 are less than a batch
    assert drawn != sorted(drawn)


@pytest.mark.parametrize('counts', [[5], [1] * 30, [100, 1, 1, 1], [0, 7, 0, 9]])
@pytest.mark.parametrize('lanes', [1, 3, 4])
def test_lanes_divide_any_shards(counts, lanes):
    length = sum(counts) // lanes
    read = [(piece.shard, k) for lane in range(lanes) for piece in lane_pieces(counts, list(range(len(counts))), lane * length, (lane + 1) * length)
            for k in range(piece.start, piece.stop)]
    assert len(read) == len(set(read)) == lanes * length


def test_processes_workers_and_resume_change_nothing(shards):
    want = list(made(pattern(shards)).epoch(1))
    for workers in (1, 2):
        equal(list(made(pattern(shards), workers=workers).epoch(1)), want)
    for workers in (0, 2):
        halves = [list(made(pattern(shards), rank=rank, world=2, workers=workers).epoch(1)) for rank in (0, 1)]
        equal([Batch(*map(torch.cat, zip(*pair))) for pair in zip(*halves)], want)
    for start in range(6):
        equal(list(made(pattern(shards)).epoch(1, start)), want[start:])
    equal(list(made(pattern(shards), workers=2).epoch(1, 3)), want[3:])
    assert not torch.equal(next(made(pattern(shards)).epoch(2)).indices, want[0].indices)
    assert not torch.equal(next(made(pattern(shards), seed=4).epoch(1)).indices, want[0].indices)


def test_a_round_left_in_the_middle(shards):
    two = made(pattern(shards), workers=2)
    want = list(made(pattern(shards)).epoch(0))
    next(two.epoch(1))
    equal(list(two.epoch(0)), want)


def test_resuming_opens_nothing_before_its_filling(shards):
    late = made(pattern(shards), batch=4, lanes=1)
    opened, fetch = [], late.source.fetch
    late.source.fetch = lambda shard, start: (opened.append(shard), fetch(shard, start))[1]
    list(late.epoch(0))
    whole, opened[:] = len(opened), []
    list(late.epoch(0, late.steps - 1))
    assert whole == 4 and len(opened) <= 2


# ---- where shards lie

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def served(shards):
    (shards / 'sizes.json').write_text(json.dumps({f'photos-{s}.tar': count for s, count in enumerate(COUNTS)}))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_disks_urls_and_commands_give_the_same(shards, served):
    want = list(made(pattern(shards)).epoch(0))
    equal(list(made(f'{served}/photos-{{0..3}}.tar').epoch(0)), want)
    equal(list(made(f'{served}/photos-{{0..3}}.tar', workers=2).epoch(0, 2)), want[2:])
    equal(list(made(f'pipe:cat {shards}/photos-{{0..3}}.tar', n=list(COUNTS)).epoch(0)), want)
    equal(list(made(f'pipe:curl -s {served}/photos-{{0..3}}.tar', n=list(COUNTS)).epoch(0)), want)
    equal(list(made(f'{shards}/photos-*.tar').epoch(0)), want)
    equal(list(made(shards).epoch(0)), want)  # a folder of shards


def test_parquet(shards, served):
    arrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    first = 0
    for s, count in enumerate(COUNTS):
        rows = [dict(image=dict(bytes=picture(k), path=None), label=0) for k in range(first, first + count)]
        parquet.write_table(arrow.Table.from_pylist(rows), shards / f'photos-{s}.parquet', row_group_size=4)
        first += count
    want = list(made(pattern(shards)).epoch(0))
    equal(list(made(f'{shards}/photos-{{0..3}}.parquet').epoch(0)), want)
    equal(list(made(f'{shards}/photos-*.parquet', workers=2).epoch(0, 3)), want[3:])
    pytest.importorskip('aiohttp', reason='parquet from a URL needs fsspec and aiohttp')
    equal(list(made(f'{served}/photos-{{0..3}}.parquet').epoch(0)), want)


# ---- what is broken

@quiet
def test_a_cut_shard_is_reported_and_survived(shards, tmp_path):
    for s in range(4):
        (tmp_path / f'photos-{s}.tar').write_bytes((shards / f'photos-{s}.tar').read_bytes())
    whole = (tmp_path / 'photos-2.tar').read_bytes()
    (tmp_path / 'photos-2.tar').write_bytes(whole[:len(whole) // 2])
    promised = f'pipe:cat {tmp_path}/photos-{{0..3}}.tar'
    one, two = made(promised, n=list(COUNTS)), made(promised, n=list(COUNTS), workers=2)
    want = list(one.epoch(0))
    equal(list(two.epoch(0)), want)
    equal(list(made(promised, n=list(COUNTS)).epoch(0, 3)), want[3:])
    for source in (one.source, two.source):
        (shard, why), = source.broken.items()
        assert shard.endswith('photos-2.tar') and 'of 17 images are there' in why
    drawn = torch.cat([batch.indices for batch in want])
    there = int(why.split()[0])
    assert 0 < there < 17 and drawn.max() < 50 and not (((drawn >= 22 + there) & (drawn < 39)).any()) and len(drawn) == 48
    with pytest.warns(UserWarning, match='ends early'):
        counted = made(pattern(tmp_path), batch=4)   # on a disk the images that are there are counted first
    assert counted.source.counts == [13, 9, there, 11] or counted.source.counts == [13, 9, there + 1, 11]


@quiet
def test_a_broken_image_gives_way_to_the_next(shards, tmp_path):
    folder = tmp_path / 'set'
    folder.mkdir()
    for s in range(4):
        content = bytearray((shards / f'photos-{s}.tar').read_bytes())
        if s == 1:
            at = content.index(picture(21))  # the last of its shard
            content[at:at + 40] = b'<html>not found' + bytes(25)
        (folder / f'photos-{s}.tar').write_bytes(content)
    loaders = [made(pattern(folder), workers=workers, batch=2) for workers in (0, 2)]
    want, got = (list(some.epoch(0)) for some in loaders)
    equal(want, got)
    drawn = sorted(torch.cat([batch.indices for batch in want]).tolist())
    assert 21 not in drawn and drawn.count(22) == 2 and len(drawn) == 50
    for some in loaders:
        (name, why), = some.source.broken.items()
        assert name.endswith('photos-1.tar/0021.jpg') and "b'<html>no'" in why


@quiet
def test_nothing_to_read(shards, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # between attempts to open
    with pytest.raises(FileNotFoundError, match='2 of 6 shards are not there, for example .*photos-4.tar'):
        open_source(f'{shards}/photos-{{0..5}}.tar')
    with pytest.raises(ValueError, match='how many images are in the shards'):
        open_source('pipe:cat a.tar')
    with pytest.raises(ValueError, match='shards are not whole'):
        made('pipe:cat nowhere-{0..3}.tar 2> /dev/null', n=50)
    stream = open_source(pattern(shards))
    with pytest.raises(ValueError, match='read in order'):
        resident(stream)
    with pytest.raises(ValueError, match='3 processes cannot share evenly: open it with lanes= a multiple of 3'):
        made(pattern(shards), batch=6, lanes=2, world=3)


# ---- workers

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no signals')
def test_a_killed_worker_is_named(shards):
    two = made(pattern(shards), workers=2)
    batches = two.epoch(0)
    next(batches)
    victim = two.reader.board.read()[1]
    os.kill(victim.process, signal.SIGKILL)
    with pytest.raises(WorkerFault, match=rf'data worker 1 \(process {victim.process}\) was killed .* while at .*photos-\d.tar'):
        for _ in range(20):
            time.sleep(.1)
            next(batches)
    equal(list(two.epoch(0)), list(made(pattern(shards)).epoch(0)))


def test_a_stuck_shard_is_named(shards, tmp_path):
    stuck = tmp_path / 'stuck.tar'
    os.mkfifo(stuck)  # opens, and never says anything
    names = [f'{shards}/photos-0.tar', str(stuck)]
    source = open_source(names, n=[13, 13], lanes=2, buffer=4)
    start = time.monotonic()
    with pytest.raises(WorkerFault, match=r'has been reading .*stuck.tar for \d+ s, and nothing has come for 6 s'):
        list(loader(source, (Crop(16),), 4, workers=2, timeout=6).epoch(0))
    assert time.monotonic() - start < 60


# ---- speed

@pytest.mark.skipif(not (DATA / 'imagenet-sample-100.tar.gz').exists(), reason='MIMREPRO_DATA names no folder with imagenet-sample-100.tar.gz')
def test_a_stream_is_as_fast_as_files(tmp_path):
    folder = open_source(DATA / 'imagenet-sample-100.tar.gz')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for i in range(len(folder)):
            member = tarfile.TarInfo(f'{i}.jpg')
            member.size = len(folder.fetch(i))
            tar.addfile(member, io.BytesIO(folder.fetch(i)))
    seconds = {}
    for _ in range(2):
        for name, source in dict(files=folder, shards=open_source([str(tmp_path / 'a.tar')], lanes=1, buffer=50)).items():
            batches = loader(source, (Crop(224),), 25, workers=0)
            start = time.process_time()
            list(batches.epoch(0))
            seconds[name] = min(seconds.get(name, 1e9), time.process_time() - start)
    print({name: f'{100 / s:.0f} images per core second' for name, s in seconds.items()})
    assert seconds['shards'] < 1.5 * seconds['files']
