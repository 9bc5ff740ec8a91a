"What holds for the package as a whole: its layers, its modules' notebooks, its README, and every method it finds"
import ast
import configparser
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from mimrepro.method import build, load_method, method_names

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent
MODULES = {str(f.relative_to(ROOT / 'mimrepro').with_suffix('')).replace('/', '.'): f.read_text()
           for f in sorted((ROOT / 'mimrepro').rglob('[!_]*.py'))}
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))


def notebook_of(source: str) -> str:
    found = re.search(r'File to edit: (?:\.\./)+nbs/([\w.]+\.ipynb)', source)
    assert found, 'a module without the header that nbdev writes'
    return found[1]


def rank(module: str) -> str:
    return notebook_of(MODULES[module]).split('_')[0]


def imports(source: str) -> set[str]:
    "Modules of this package that a module imports"
    relative = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level and node.module}
    return {name for name in relative if name in MODULES}


@pytest.mark.parametrize('module', MODULES)
def test_every_module_has_its_notebook(module):
    assert (ROOT / 'nbs' / notebook_of(MODULES[module])).is_file()


@pytest.mark.parametrize('module', MODULES)
def test_layers(module):
    for needed in imports(MODULES[module]):
        assert rank(needed) < rank(module), f'{module} imports {needed}, which the reader has not met'
        assert not '01' <= rank(needed) < '10' or rank(module) >= '40', f'{module} names the method {needed}'


@pytest.mark.parametrize('module', MODULES)
def test_modules_are_short(module):
    lines = [line for line in MODULES[module].splitlines() if line.strip() and not line.lstrip().startswith('#')]
    limit = 250 if '01' <= rank(module) < '10' else 300
    assert len(lines) <= limit, f'{module} has {len(lines)} lines, at most {limit}: split it by idea'


CONTRACTS = {'draw', 'views', 'prepare', 'forward', 'backward', 'decays', 'before_step', 'after_step', 'epoch'}  # annotated where they are declared: `Method`, `Loader`, torch
PROTOCOL = ['encoder', 'train', 'test', 'device', 'folder']  # what `Protocol.run` is called with


@pytest.mark.parametrize('module', MODULES)
def test_parameters_have_types(module):
    "Of every exported function and method, but those whose signature is declared once for all of their kind"
    body = ast.parse(MODULES[module]).body
    functions = [node for part in body for node in ([part] if isinstance(part, ast.FunctionDef) else part.body if isinstance(part, ast.ClassDef) else []) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        arguments = [a for a in function.args.posonlyargs + function.args.args + function.args.kwonlyargs if a.arg not in ('self', 'cls', 'ctx')]
        public = not function.name.startswith('_') or function.name == '__init__'
        if public and function.name not in CONTRACTS and [a.arg for a in arguments[:5]] != PROTOCOL:
            bare = [a.arg for a in arguments if a.annotation is None]
            assert not bare, f'{module}.{function.name}: no type for {", ".join(bare)}'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_reads_well(path):
    notebook = json.loads(path.read_text())
    cells = notebook['cells']
    assert cells[0]['cell_type'] == 'markdown' and ''.join(cells[0]['source']).startswith('# '), 'a notebook begins with its title'
    for i, cell in enumerate(cells):
        if cell['cell_type'] == 'code':
            assert len(''.join(cell['source']).splitlines()) <= 40, f'cell {i} is longer than 40 lines'
            assert not any('error' == out.get('output_type') for out in cell['outputs']), f'cell {i} holds an error'
    assert path.stat().st_size < 1_500_000, 'pictures are too large'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.name != 'index.ipynb'], ids=lambda p: p.name)
def test_every_notebook_can_be_found(path):
    assert f']({path.name})' in (ROOT / 'nbs' / 'index.ipynb').read_text(), 'name it in nbs/index.ipynb'


def test_readme_is_made_from_the_index():
    sys.path.insert(0, str(ROOT / 'tools'))
    from readme import method_table, readme, verdict_table
    text = readme()
    assert (ROOT / 'README.md').read_text() == text, 'README.md is stale: run `make readme`'
    assert verdict_table() in text and method_table() in text, 'nbs/index.ipynb is older than the records: run `make readme`'


@pytest.mark.skipif(sys.version_info < (3, 11), reason='tomllib comes with Python 3.11')
def test_both_configurations_of_nbdev_agree():
    ini = configparser.ConfigParser()
    ini.read(ROOT / 'settings.ini')
    toml = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    for key, value in toml['tool']['nbdev'].items():
        assert ini['DEFAULT'][key] == str(value), key
    assert toml['project']['requires-python'] == f'>={ini["DEFAULT"]["min_python"]}'
    assert toml['project']['description'] == ini['DEFAULT']['description']


@pytest.mark.parametrize('name', method_names())
def test_every_method_keeps_the_contract(name):
    "A new method is tested here without touching this file"
    module = load_method(name)
    recipe = module.recipes['demo']
    method = build(recipe)
    sides = {crop.size if isinstance(crop.size, int) else tuple(crop.size) for crop in method.crops}
    assert len(sides) == 1
    side = sides.pop()
    height, width = (side, side) if isinstance(side, int) else side
    images = torch.randint(0, 256, (4, len(method.crops), 3, height, width), dtype=torch.uint8)
    draws = method.draw(4, torch.Generator().manual_seed(0))
    assert all(len(d) == 4 for d in draws.values()), 'every draw has one row per image'
    assert all(torch.equal(a, b) for a, b in zip(draws.values(), method.draw(4, torch.Generator().manual_seed(0)).values()))
    views = method.views(images, draws)
    method.prepare(views)
    state = torch.get_rng_state()
    method.before_step(0.)
    step = method(views, draws)
    step.loss.backward()
    method.after_step(0.)
    assert torch.equal(state, torch.get_rng_state()), 'forward drew a random number of its own'
    assert step.loss.isfinite() and step.loss.ndim == 0 and step.parts
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad), 'a trainable weight that takes no part in the loss'
    for recipe in module.recipes.values():
        assert recipe.source and recipe.method == name
