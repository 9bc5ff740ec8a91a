"What the doctor says of machines that are broken in known ways, and that it starts where nothing else does"
import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mimrepro.cli import main
from mimrepro.commands import doctor as clinic
from mimrepro.scenes import Scenes

ROOT = Path(__file__).parent.parent


def wrong(rows) -> dict[str, str]:
    "What is to be mended, by name"
    return {row['check']: row['do'] for row in rows if not row['ok']}


def test_a_package_that_is_missing(monkeypatch):
    real = metadata.version
    def version(name):
        if name == 'timm': raise metadata.PackageNotFoundError(name)
        return real(name)
    monkeypatch.setattr(metadata, 'version', version)
    assert 'pip install' in wrong(clinic.check_packages())['timm']


def test_a_package_that_is_too_old(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, 'version', lambda name: '1.9.0' if name == 'torch' else real(name))
    rows = clinic.check_packages()
    assert {'torchvision', 'mimrepro'} & wrong(rows).keys() and any('found 1.9.0' in row['found'] for row in rows)


def test_torchvision_of_another_torch(monkeypatch):
    def load(name):
        if name == 'torchvision': raise RuntimeError('operator torchvision::nms does not exist')
        return importlib.import_module(name)
    monkeypatch.setattr(clinic, 'import_module', load)
    rows = clinic.doctor()
    assert 'built in pairs' in wrong(rows)['torchvision'] and rows[-1]['found'] == 'not looked at'


def test_a_data_folder_that_is_gone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv('MIMREPRO_DATA', str(tmp_path / 'gone'))
    assert main(['doctor', '--recipes', '']) == 1
    assert 'no such folder' in capsys.readouterr().out


def test_a_disk_that_is_full(monkeypatch):
    monkeypatch.setattr(clinic.shutil, 'disk_usage', lambda path: SimpleNamespace(free=2**20, total=2**40))
    import torch
    assert '--run' in wrong(clinic.check_machine(torch))['disk']


def test_memory_that_is_used_up(monkeypatch):
    monkeypatch.setattr(clinic, 'memory', lambda: (2**34, 2**28))
    import torch
    assert 'end other programs' in wrong(clinic.check_machine(torch))['memory']


def test_a_folder_of_photographs(tmp_path):
    for i, image in enumerate(Scenes('train', 12, 64).arrays()[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f'{i:02}.jpg')
    (tmp_path / '05.jpg').write_bytes(b'no image')
    rows = {row['check']: row for row in clinic.check_data(str(tmp_path))}
    assert rows['unreadable']['found'] == '1 of 12 tried' and '05.jpg' in rows['unreadable']['do'] and rows['unreadable']['ok']
    assert 'mae/small batch=8' in rows['begin with']['found']
    for path in list(tmp_path.glob('*'))[:8]:
        path.write_bytes(b'no image')
    assert 'unreadable' in wrong(clinic.check_data(str(tmp_path)))


def test_a_folder_without_images(tmp_path):
    assert 'no images' in wrong(clinic.check_data(str(tmp_path)))['data']


@pytest.mark.parametrize('words, code, says', [(['doctor'], 1, 'torchvision::nms'), (['pretrain', 'mae/demo'], 2, '`mimrepro doctor` says what to mend'), ([], 0, '`mimrepro doctor` says what to mend')])
def test_it_starts_where_nothing_else_does(tmp_path, words, code, says):
    "A torchvision that cannot be imported lies before the real one"
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    run = 'import sys; from mimrepro.cli import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', run, *words], env=os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}'}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and says in done.stdout + done.stderr and 'Traceback' not in done.stderr, done.stderr[-1500:]
