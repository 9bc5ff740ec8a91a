"A wheel and a source archive, installed where there is no repository: what one gets from `pip install` works from another folder"
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from mimrepro.scenes import Scenes

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def shell(command, folder, **settings) -> subprocess.CompletedProcess:
    "A command without this repository on the path"
    clean = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'MIMREPRO_DATA')}
    return subprocess.run(list(map(str, command)), cwd=folder, env=clean | settings, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope='module')
def archives(tmp_path_factory) -> dict[str, Path]:
    "The wheel and the source archive of what git would hand out"
    copy, out = tmp_path_factory.mktemp('source') / 'mimrepro', tmp_path_factory.mktemp('dist')
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.*', 'nbs', 'paper_figures', 'tests', 'runs', 'demo', 'build', 'dist', '*.egg-info', '__pycache__'))
    for kind in ('wheel', 'sdist'):
        done = shell([sys.executable, '-c', f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'], copy)
        assert done.returncode == 0, done.stderr[-2000:]
    return {'wheel': next(out.glob('*.whl')), 'sdist': next(out.glob('*.tar.gz'))}


@pytest.fixture(scope='module')
def home(archives, tmp_path_factory) -> Path:
    "A new environment with the wheel, and the libraries of this one"
    home = tmp_path_factory.mktemp('home')
    venv.create(home / 'env', with_pip=False)
    there = next((home / 'env' / 'lib').glob('python*')) / 'site-packages'
    with zipfile.ZipFile(archives['wheel']) as wheel:  # what an installer does with a wheel of plain Python
        wheel.extractall(there)
    libraries = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    (there / 'libraries.pth').write_text('\n'.join(libraries))
    return home


def python(home, *words):
    return shell([home / 'env' / 'bin' / 'python', '-W', 'ignore', *words], home)


def mimrepro(home, *words):
    return python(home, '-c', f'import sys; from mimrepro.cli import main; sys.exit(main({list(words)!r}))')


@pytest.mark.parametrize('kind', ['wheel', 'sdist'])
def test_an_archive_holds_everything(archives, kind):
    names = zipfile.ZipFile(archives[kind]).namelist() if kind == 'wheel' else ['/'.join(name.split('/')[1:]) for name in tarfile.open(archives[kind]).getnames()]
    tracked = [path.relative_to(ROOT).as_posix() for path in (ROOT / 'mimrepro').rglob('*') if path.suffix in ('.py', '.yaml', '.js', '.css', '.typed')]
    assert set(tracked) <= set(names), set(tracked) - set(names)
    assert not [name for name in names if name.startswith(('tests/', 'nbs/', 'paper_figures/', 'tools/'))] or kind == 'sdist'


def test_it_is_found_in_the_new_place_and_nowhere_else(home):
    done = python(home, '-c', 'import mimrepro; print(mimrepro.__file__); from mimrepro.cmae import CMAE; print(CMAE.__doc__)')
    assert done.returncode == 0 and done.stdout.startswith(str(home)) and 'momentum' in done.stdout, done.stderr[-2000:]


def test_the_command_is_there(home):
    entry = next((home / 'env' / 'lib').glob('python*/site-packages/mimrepro-*.dist-info/entry_points.txt')).read_text()
    assert 'mimrepro = mimrepro.cli:main' in entry
    done = mimrepro(home, '--help')
    assert done.returncode == 0 and 'pretrain' in done.stdout and 'doctor' in done.stdout


def test_what_needs_the_repository_says_so(home):
    done = mimrepro(home, 'items')
    assert done.returncode == 0 and 'figure-5' in done.stdout and 'come with its repository' in done.stderr
    for words in (['performance'], ['parity', 'tests/parity/mae']):
        done = mimrepro(home, *words)
        assert done.returncode == 2 and 'repository' in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_the_doctor_looks_at_it(home):
    done = mimrepro(home, 'doctor', '--recipes', '')
    assert done.returncode in (0, 1) and 'torchvision' in done.stdout, done.stderr


def test_train_judge_draw(home):
    "What `mimrepro demo` does, on forty pictures: train, draw, judge, plan a figure's rows"
    for i, (image, label) in enumerate(zip(*Scenes('train', 40, 32).arrays())):
        path = home / 'pictures' / str(label.item()) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    lines = ['pretrain mae/demo --data pictures --run runs/one epochs=2 batch=20 precision=fp32', f'show {path} runs/one', 'probe runs/one pictures --test pictures', 'reproduce mae figure-5 --dry-run']
    done = python(home, '-c', f'from mimrepro.cli import said\nfor line in {lines!r}: print(said("mimrepro " + line))')
    assert done.returncode == 0 and 'normalised pixels' in done.stdout and 'class token' in done.stdout, done.stderr[-2000:]
    assert (home / 'runs' / 'one' / 'model.safetensors').exists() and (home / 'reconstruction.png').exists()
