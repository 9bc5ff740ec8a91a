"The command line as a shell sees it: the same runs as a notebook, one line for an error, broken images named"
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_model

from mimrepro.cli import main
from mimrepro.data import open_source
from mimrepro.method import build, change, recipe_named
from mimrepro.scenes import Scenes
from mimrepro.trainer import Trainer

CHANGES = ['epochs=2', 'warmup_epochs=0', 'batch=16', 'precision=fp32', 'model.patch_size=8', 'model.embed_dim=32', 'model.depth=1', 'model.num_heads=2',
           'model.decoder_embed_dim=16']


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Class folders of 40 scenes"
    folder = tmp_path_factory.mktemp('data') / 'pictures'
    scenes = Scenes('train', 40, 32)
    for i, (image, label) in enumerate(zip(*scenes.arrays())):
        path = folder / scenes.classes[label] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def test_a_shell_and_a_notebook_make_the_same_run(pictures, tmp_path, capsys):
    assert main(['pretrain', 'mae/demo', *CHANGES, '--data', str(pictures), '--run', str(tmp_path / 'shell'), '--json']) == 0
    assert json.loads(capsys.readouterr().out)[0]['steps'] == 4
    Trainer(change(recipe_named('mae/demo'), CHANGES), str(pictures), tmp_path / 'notebook', progress=False).fit()
    shell, notebook = (load_file(tmp_path / name / 'model.safetensors') for name in ('shell', 'notebook'))
    assert all(torch.equal(shell[name], notebook[name]) for name in shell)
    lines = [[json.loads(line)['loss'] for line in open(tmp_path / name / 'metrics.jsonl')] for name in ('shell', 'notebook')]
    assert lines[0] == lines[1]


def test_a_checkpoint_is_judged_beside_pixels(pictures, tmp_path, capsys):
    main(['pretrain', 'mae/demo', *CHANGES, '--data', str(pictures), '--run', str(tmp_path)])
    capsys.readouterr()
    assert main(['probe', str(tmp_path), str(pictures), '--test', str(pictures), '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['features'] for row in rows] == ['mean of patch tokens', 'class token', '16x16 pixels']
    assert all(0 <= row[name] <= 100 for row in rows for name in ('knn', 'linear'))


def test_an_error_is_one_line_and_costs_nothing(tmp_path):
    command = [sys.executable, '-c', 'import sys; from mimrepro.cli import main; sys.exit(main())', 'pretrain', 'mae/demo', '--data', str(tmp_path / 'nowhere')]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and 'Traceback' not in result.stderr and 'nowhere' in result.stderr
    assert list(tmp_path.iterdir()) == [], 'nothing is written for a run that cannot start'


def test_broken_images_are_named_and_training_goes_on(pictures, tmp_path, recwarn):
    (pictures / 'disc' / 'torn.png').write_bytes((next((pictures / 'disc').glob('*.png'))).read_bytes()[:200])
    try:
        source = open_source(str(pictures))
        Trainer(replace(change(recipe_named('mae/demo'), CHANGES), epochs=1), source, tmp_path, progress=False).fit()
        assert len(source.broken) == 1 and 'torn.png' in next(iter(source.broken))
        assert any('torn.png' in str(w.message) and '1 of 41' in str(w.message) for w in recwarn)
    finally:
        (pictures / 'disc' / 'torn.png').unlink()


@pytest.mark.parametrize('change_, says', [('model.img_size=30', 'patches of 8x8'), ('model.mask_ratio=.99', 'keeps 0 of 16'), ('batch=400', 'fewer than one batch of 400'),
                                           ('epoch=3', "did you mean 'epochs'"), ('precision=half', "expected 'fp32'"), ('model.augment=random', "'resized'")])
def test_settings_that_cannot_be_are_refused(pictures, tmp_path, capsys, change_, says):
    assert main(['pretrain', 'mae/demo', *CHANGES, change_, '--data', str(pictures), '--run', str(tmp_path / 'run')]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize('method, shows', [('cmae', 'normalised pixels'), ('lcmae', 'normalised pixels'), ('localmim', 'gradients'), ('extrema', None)])
def test_what_a_method_predicts_is_drawn(pictures, tmp_path, capsys, method, shows):
    recipe = recipe_named(f'{method}/demo')
    (tmp_path / 'recipe.json').write_text(json.dumps(asdict(recipe)))
    save_model(build(recipe), tmp_path / 'model.safetensors')
    code = main(['show', str(next(pictures.glob('*/*.png'))), str(tmp_path), '--out', str(tmp_path / 'drawn.png')])
    said = capsys.readouterr()
    assert (code, (tmp_path / 'drawn.png').exists()) == ((0, True) if shows else (2, False))
    assert shows in said.out if shows else 'predicts nothing that could be drawn' in said.err
