"The one entry, as a program and a shell use it; a timm classifier against timm's own way"
import json
import os
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config

from mimrepro.cli import main
from mimrepro.data import open_source
from mimrepro.evaluate import evaluate, open_encoder
from mimrepro.features import subset
from mimrepro.lcmae import LCMAE
from mimrepro.method import build, recipe_named
from mimrepro.records import Record
from mimrepro.robust import as_classifier, batches
from mimrepro.scenes import Scenes
from mimrepro.tune import classify
from mimrepro.weights import rename, save_pretrained

DATA = os.environ.get('MIMREPRO_DATA')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run folder, and class folders of scenes: 80 for training, 40 for tests, and the same without one class"
    home = tmp_path_factory.mktemp('home')
    recipe = recipe_named('mae/demo')
    save_pretrained(build(recipe), home / 'run', recipe)
    for split, n in (('train', 80), ('test', 60)):
        scenes = Scenes(split, n, 32)
        for i, (image, label) in enumerate(zip(*scenes.arrays())):
            for folder in ('all', 'some')[:1 + (split == 'train' or int(label) != 3)]:
                path = home / folder / split / scenes.classes[label] / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return home


def test_a_line_has_what_a_record_has(home, tmp_path):
    found = evaluate(home / 'run', 'linear', home / 'all', out=tmp_path, l2=.01)
    line = json.loads((tmp_path / 'evaluations.jsonl').read_text())
    assert {f.name for f in fields(Record)} <= set(line)
    assert (line['protocol'], line['settings']['l2'], line['row'], line['recipe']['name'], line['metrics']) == ('linear', .01, 'run', 'mae/demo', found)
    assert found['test_images'] == 60 and line['versions']['timm'] and line['commit']
    Record(**{f.name: line[f.name] for f in fields(Record)})


def test_a_shell_and_a_program_get_the_same(home, tmp_path, capsys):
    assert main(['evaluate', str(home / 'run'), 'k=5', '--protocol', 'knn', '--data', str(home / 'all'), '--out', str(tmp_path), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == [evaluate(home / 'run', 'knn', home / 'all', k=5)]
    assert main(['protocols', '--json']) == 0
    names = {row['protocol'] for row in json.loads(capsys.readouterr().out)}
    assert {'knn', 'linear-mae', 'linear-extrema', 'fewshot-1', 'blocks', 'finetune-mae', 'partial-0.5', 'scratch', 'classify'} <= names
    assert main(['protocols', '--name', 'knn', '--json']) == 0
    assert dict(setting='k', preset=20) in json.loads(capsys.readouterr().out)


def test_half_a_block_learns_for_half_an_epoch(home, tmp_path, capsys):
    assert main(['evaluate', str(home / 'run'), 'tuned=.5', 'warmup_epochs=.5', 'epochs=1', 'batch=40', '--protocol', 'finetune-mae', '--data', str(home / 'all'), '--out', str(tmp_path), '--json']) == 0
    line = json.loads((tmp_path / 'evaluations.jsonl').read_text())
    assert (line['settings']['tuned'], line['settings']['warmup_epochs']) == (.5, .5)
    begun = build(recipe_named('mae/demo')).encoder.state_dict()
    ended = load_file(next(tmp_path.glob('*/classifier/model.safetensors')))
    changed = {name.removeprefix('blocks.3.').split('.')[0] for name, value in ended.items() if name in begun and not name.startswith('norm') and not torch.equal(value, begun[name])}
    assert changed == {'norm2', 'mlp'}


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_a_fine_tuned_classifier_goes_through_tests_of_robustness(home, tmp_path, pool):
    found = evaluate(home / 'run', 'finetune-small', home / 'all', out=tmp_path, epochs=1, batch=40, precision='fp32', pool=pool)
    classifier = f'timm:{next(tmp_path.glob("*/classifier"))}'
    assert evaluate(classifier, 'classify', home / 'all')['top1'] == found['top1']
    assert evaluate(classifier, 'shuffle', home / 'all' / 'test', cells=(1,))['acc@1x1'] == pytest.approx(found['top1'], abs=1e-4), 'nothing to learn on is needed'
    with pytest.raises(ValueError, match='no part of its own'):
        evaluate(home / 'run', 'shuffle', home / 'all' / 'test')


def test_a_classifier_of_maes_authors_is_read(tmp_path):
    "They pool patches and have a norm after that"
    theirs = timm.create_model('vit_tiny_patch16_224', num_classes=5, global_pool='avg').eval()
    torch.save(dict(model=theirs.state_dict()), tmp_path / 'mae_finetuned_vit_tiny.pth')
    ours, x = open_encoder(f'timm:vit_tiny_patch16_224={tmp_path}/mae_finetuned_vit_tiny.pth')[0].eval(), torch.randn(1, 3, 224, 224)
    assert torch.equal(ours(x), theirs(x)) and ours(x).shape == (1, 5)


@pytest.mark.parametrize('words, says', [
    (['--protocol', 'kn'], "did you mean 'knn'"), (['kk=3', '--protocol', 'knn'], "did you mean 'k'"), (['k=many', '--protocol', 'knn'], 'expected int'), (['k', '--protocol', 'knn'], 'setting=value'),
    (['--data', 'SOME'], 'some-test'), (['--data', 'nowhere'], 'nowhere'), (['--data', 'cifar10', '--root', 'nowhere'], 'download=True'), (['--data', 'inat2018'], 'inat_comp'),
    (['--protocol', 'knn-extrema'], 'no momentum encoder'), (['--data', 'ONE'], 'no part of its own'), (['--protocol', 'classify'], 'expected a classifier'),
    (['share=2', '--protocol', 'fewshot-1'], 'a share of 2'), (['epochs=0', '--protocol', 'finetune-mae'], 'epochs=0'), (['batch=0', '--protocol', 'linear-mae'], 'batch=0'),
    (['augment=rand-m9x', 'epochs=1', '--protocol', 'finetune-mae'], "augment='rand-m9x'"), (['--branch', 'teacher', '--protocol', 'knn'], 'no teacher encoder'), (['--device', 'tpu', '--protocol', 'knn'], "device 'tpu'")])
def test_wrong_inputs_say_what_is_wrong(home, tmp_path, capsys, words, says):
    places = dict(SOME=str(home / 'some'), ONE=str(home / 'all' / 'train'))
    words = [places.get(word, word) for word in words]
    if '--data' not in words:
        words += ['--data', str(home / 'all')]
    assert main(['evaluate', str(home / 'run'), *words, '--out', str(tmp_path / 'out')]) == 2
    errors = capsys.readouterr().err
    assert (says in errors or says == 'some-test' and 'lacks' in errors) and 'Traceback' not in errors, errors
    assert not (tmp_path / 'out' / 'evaluations.jsonl').exists()


def test_a_checkpoint_without_an_encoder_is_named(home, tmp_path):
    save_file({'blocks.0.weight': torch.zeros(3)}, tmp_path / 'odd.safetensors')
    with pytest.raises(ValueError, match='no ViT encoder'):
        evaluate(tmp_path / 'odd.safetensors', 'knn', home / 'all')


def test_both_encoders_of_a_file_can_be_judged(home, tmp_path):
    "What LC-MAE's code saves: the online network, behind `ema.` the whole target, and the arguments of its command"
    torch.manual_seed(0)
    size = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1, head_dim=48)
    model, names = LCMAE(**size), [(r'^target\.', 'ema.'), (r'(^|ema\.)encoder\.', r'\1'), (r'(^|ema\.)decoder\.mask_token', r'\1mask_token'), (r'(^|ema\.)decoder\.', r'\1decoder_'), (r'(^|ema\.)projector\.', r'\1head.')]
    for p in model.target.parameters():
        torch.nn.init.normal_(p, std=.2)
    state = rename(model.state_dict(), names)
    target = {name: value for name, value in state.items() if name.startswith('ema.')} | {f'ema.{name}': value for name, value in state.items() if name.startswith(('decoder', 'mask', 'predictor'))}
    torch.save(dict(model={name: value for name, value in state.items() if not name.startswith('ema.')}, model_ema=target, args=Namespace(model='lut_vit')), tmp_path / 'lut.pth')
    both = {branch: open_encoder(tmp_path / 'lut.pth', branch)[0].state_dict() for branch in ('student', 'momentum')}
    for branch, encoder in (('student', model.encoder), ('momentum', model.target['encoder'])):
        assert all(torch.equal(value, both[branch][name]) for name, value in encoder.state_dict().items())
    found = [evaluate(tmp_path / 'lut.pth', 'knn', home / 'all', branch=branch, out=tmp_path) for branch in ('', 'student', 'momentum')]
    assert found == [evaluate(encoder, 'knn', home / 'all') for encoder in (model.encoder, model.encoder, model.target['encoder'])]
    assert [json.loads(line)['branch'] for line in (tmp_path / 'evaluations.jsonl').read_text().splitlines()] == ['student', 'student', 'momentum']


@pytest.mark.skipif(not DATA, reason='set MIMREPRO_DATA to the folder of the real images')
def test_a_timm_classifier_gives_timms_logits(tmp_path):
    torch.manual_seed(0)
    name = 'vit_tiny_patch16_224'
    model = timm.create_model(name).eval()
    torch.nn.init.normal_(model.head.weight, std=.05)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    whole = open_source(Path(DATA) / 'imagenet-sample-100.tar.gz')
    whole.labels = torch.arange(len(whole))
    source = subset(whole, torch.arange(0, 100, 3))
    checkpoint = f'timm:{name}={tmp_path}/model.safetensors'
    logits, labels = classify(open_encoder(checkpoint)[0], source, batch=25)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        theirs = torch.cat([model(transform(Image.fromarray(image.permute(1, 2, 0).numpy()))[None]) for image, _ in (source[i] for i in range(len(source)))])
    assert torch.allclose(logits, theirs, atol=5e-3), (logits - theirs).abs().max()
    assert (logits.argmax(1) == theirs.argmax(1)).all()
    top1 = 100 * (theirs.argmax(1) == labels).double().mean().item()
    assert evaluate(checkpoint, 'classify', source, source)['top1'] == top1
    judged = as_classifier(model, None)                                                  # and in every test of robustness
    ours = torch.cat([judged(images) for images, _ in batches(source, judged.view, batch=25)])
    assert torch.allclose(ours, theirs, atol=5e-3), (ours - theirs).abs().max()
