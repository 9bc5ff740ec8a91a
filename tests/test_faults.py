"""What can go wrong, what is done about it, and what the user sees: every row of the table is tried.

`nbs/12_faults.ipynb` shows the same table. A row ends in an *error* that names the thing and what to do, a *warning* or a counted skip after which work goes on, or an orderly *stop*.
"""
import errno
import json
import os
import signal
import tarfile
import types
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mimrepro import checkpoints
from mimrepro.checkpoints import locked, newest_state, states
from mimrepro.cli import main
from mimrepro.data import Source, open_source
from mimrepro.launch import launch
from mimrepro.loader import loader
from mimrepro.method import Recipe, build, change, load_method, recipe_named
from mimrepro.scenes import Scenes
from mimrepro.trainer import Trainer
from mimrepro.views import Crop
from mimrepro.weights import load_encoder, load_pretrained


class Fault(NamedTuple):
    "A row of the table"
    kind: str   # 'data', 'recipe', 'checkpoint', 'environment' or 'process'
    what: str   # what is wrong
    ends: str   # 'error', 'warning' or 'stop'
    says: str   # part of what the user reads
    act: object # a function of a folder and pytest's monkeypatch that does it


FAULTS: list[Fault] = []


def fault(kind: str, what: str, ends: str, says: str):
    return lambda act: FAULTS.append(Fault(kind, what, ends, says, act))


def pictures(folder: Path, count=12, side=32) -> Path:
    "Scenes as files in two class folders"
    for i, image in enumerate(Scenes('train', count, side).arrays()[0]):
        path = folder / ('ant', 'cat')[i % 2] / f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def spoil_picture(folder: Path, content) -> Path:
    "Replace one of twelve pictures by other bytes, made from its own"
    path = sorted(pictures(folder).rglob('*.png'))[3]
    path.write_bytes(content(path.read_bytes()))
    return folder


RECIPE = recipe_named('mae/demo')
TINY = replace(RECIPE, name='tiny', model={**RECIPE.model, 'patch_size': 8, 'embed_dim': 32, 'depth': 1, 'num_heads': 2, 'decoder_embed_dim': 16},
               batch=8, epochs=3, warmup_epochs=1, precision='fp32')


def run(folder, recipe=TINY, n=32, **more):
    return Trainer(recipe, open_source('scenes:32', n=n), folder, 'cpu', progress=False, **{'log_every': 2, 'save_every': 3, **more})


def read_all(folder):
    list(loader(open_source(folder), (Crop(16),), 4, workers=0).epoch(0))


# ---- data

@fault('data', 'a folder that does not exist', 'error', 'no such file or folder')
def _(folder, patch): open_source(pictures(folder / 'pets').parent / 'pest')

@fault('data', 'a folder without files', 'error', 'no images among its 0 files')
def _(folder, patch): open_source(folder)

@fault('data', 'a folder of other files', 'error', 'looked for names that end in')
def _(folder, patch): (folder / 'a.csv').write_text('1,2'); open_source(folder)

@fault('data', 'a single image instead of a folder', 'error', 'is neither a folder nor a .tar')
def _(folder, patch): open_source(pictures(folder) / 'ant' / '00.png')

@fault('data', 'a split that is not there', 'error', "no split 'val'")
def _(folder, patch): pictures(folder / 'train'); open_source(folder, 'val')

def tar_of(folder) -> Path:
    with tarfile.open(folder / 'set.tar', 'w') as tar: tar.add(pictures(folder / 'set'), 'set')
    return folder / 'set.tar'

@fault('data', 'a tar that was cut short while copying', 'error', 'the tar ends early')
def _(folder, patch): tar = tar_of(folder); tar.write_bytes(tar.read_bytes()[:20_000]); open_source(tar)

@fault('data', 'a file called .tar that is none', 'error', 'cannot be read as a tar')
def _(folder, patch): (folder / 'set.tar').write_bytes(os.urandom(5000)); open_source(folder / 'set.tar')

@fault('data', 'an image file that is cut off', 'warning', '1 of 12 images cannot be used and are left out')
def _(folder, patch): read_all(spoil_picture(folder, lambda old: old[:len(old) // 2]))

@fault('data', 'an empty image file', 'warning', 'ant/06.png: ')
def _(folder, patch): read_all(spoil_picture(folder, lambda old: b''))

@fault('data', 'a web page saved under the name of an image', 'warning', '1 of 12 images')
def _(folder, patch): read_all(spoil_picture(folder, lambda old: b'<html>404</html>'))

@fault('data', 'an image with damaged bytes', 'warning', '1 of 12 images')
def _(folder, patch): read_all(spoil_picture(folder, lambda old: old[:60] + bytes(40) + old[100:]))

@fault('data', 'most images cannot be read', 'error', 'more than half: is this the right data')
def _(folder, patch):
    for path in list(pictures(folder).rglob('*.png'))[:9]: path.write_bytes(b'junk')
    read_all(folder)

@fault('data', 'one image smaller than a crop of fixed size', 'warning', '1 x 1 pixels, smaller than the crop of 24 x 24')
def _(folder, patch): Image.new('RGB', (1, 1)).save(pictures(folder) / 'ant' / '50.png'); list(loader(open_source(folder), (Crop(24, 'random'),), 12, workers=0).epoch(0))

@fault('data', 'all images smaller than a crop of fixed size', 'error', 'smaller than the crop of 48 x 48')
def _(folder, patch): loader(open_source(pictures(folder)), (Crop(48, 'random'),), 4, workers=0)

@fault('data', 'fewer images than a batch', 'error', 'lower the batch to 12')
def _(folder, patch): loader(open_source(pictures(folder)), (Crop(16),), 64)

@fault('data', "a torchvision set without its folder", 'error', 'say where its files are')
def _(folder, patch): open_source('torch/cifar10')

@fault('data', 'a recipe that names no images, and none given', 'error', 'names no images')
def _(folder, patch): from mimrepro.commands.train import pretrain; pretrain('mae/small')


# ---- recipe

@fault('recipe', 'a field that does not exist', 'error', "did you mean 'epochs'?")
def _(folder, patch): change(TINY, ['epoch=3'])

@fault('recipe', 'a model argument that does not exist', 'error', "did you mean 'mask_ratio'?")
def _(folder, patch): change(TINY, ['model.mask_ration=.6'])

@fault('recipe', 'a model argument that does not exist, in a recipe', 'error', "mae has no argument 'detph'")
def _(folder, patch): build(replace(TINY, model=dict(detph=3)))

@fault('recipe', 'a word where a number belongs', 'error', 'expected int, such as')
def _(folder, patch): change(TINY, ['epochs=ten'])

@fault('recipe', 'a change without a value', 'error', 'write a change as field=value')
def _(folder, patch): change(TINY, ['epochs'])

@fault('recipe', 'a precision that does not exist', 'error', "expected 'fp32', 'bf16' or 'fp16'")
def _(folder, patch): replace(TINY, precision='half')

@fault('recipe', 'a scaling rule that does not exist', 'error', "expected 'linear' or 'sqrt'")
def _(folder, patch): replace(TINY, lr_scaling='cubic')

@fault('recipe', 'no epochs', 'error', 'all must be at least 1')
def _(folder, patch): replace(TINY, epochs=0, warmup_epochs=0)

@fault('recipe', 'a batch that accumulation does not divide', 'error', 'a multiple of accumulate')
def _(folder, patch): replace(TINY, batch=8, accumulate=3)

@fault('recipe', 'a longer warm-up than training', 'error', 'lower warmup_epochs')
def _(folder, patch): replace(TINY, warmup_epochs=4)

@fault('recipe', 'a masking ratio that hides everything', 'error', 'keeps 0 of')
def _(folder, patch): build(replace(TINY, model={**TINY.model, 'mask_ratio': .99}))

@fault('recipe', 'an image that patches do not divide', 'error', 'patches of 8x8')
def _(folder, patch): build(replace(TINY, model={**TINY.model, 'img_size': 30}))

@fault('recipe', 'heads that do not divide the width', 'error', '5 attention heads do not divide a width of 32')
def _(folder, patch): build(replace(TINY, model={**TINY.model, 'num_heads': 5}))

@fault('recipe', 'a choice that a method does not have', 'error', "augment='random': expected one of")
def _(folder, patch): build(replace(TINY, model={**TINY.model, 'augment': 'random'}))

@fault('recipe', 'a method that does not exist', 'error', "no method 'mea': did you mean 'mae'?")
def _(folder, patch): load_method('mea')

@fault('recipe', 'a recipe that does not exist', 'error', "mae has no recipe 'dmeo': did you mean 'demo'?")
def _(folder, patch): recipe_named('mae/dmeo')

@fault('recipe', 'a module that defines no method', 'error', 'defines no method')
def _(folder, patch): load_method('mimrepro.patches')

@fault('recipe', 'a way to use several processes that does not exist', 'error', "expected 'ddp' or 'fsdp'")
def _(folder, patch): run(folder, parallel='pipeline')


# ---- checkpoint

def finished(folder) -> list[Path]: run(folder).fit(); return states(folder)

@fault('checkpoint', 'a state torn in the middle', 'warning', 'torn or altered')
def _(folder, patch): path = finished(folder)[-1]; path.write_bytes(path.read_bytes()[:1000]); run(folder).fit()

@fault('checkpoint', 'a state with one flipped bit', 'warning', 'the run continues from the state before')
def _(folder, patch): path = finished(folder)[-1]; old = bytearray(path.read_bytes()); old[5000] ^= 1; path.write_bytes(old); run(folder).fit()

@fault('checkpoint', 'an empty state', 'warning', 'its 0 bytes have the checksum')
def _(folder, patch): finished(folder)[-1].write_bytes(b''); run(folder).fit()

@fault('checkpoint', 'no undamaged state left', 'error', 'restore one from a copy, or name a new run folder')
def _(folder, patch): [path.write_bytes(b'') for path in finished(folder)]; run(folder).fit()

@fault('checkpoint', 'a state saved by an older version', 'error', 'was written by a version that saved one state per run')
def _(folder, patch): (folder / 'state.pt').write_bytes(b'old'); run(folder).fit()

@fault('checkpoint', 'a run folder of another recipe', 'error', 'recipe.epochs: 3 there, 4 here')
def _(folder, patch): finished(folder); run(folder, replace(TINY, epochs=4)).fit()

@fault('checkpoint', 'a run folder of other data', 'error', 'data.images: 32 there, 40 here')
def _(folder, patch): finished(folder); run(folder, n=40).fit()

@fault('checkpoint', 'a run.json that was edited badly', 'error', 'it says what this run is')
def _(folder, patch): finished(folder); (folder / 'run.json').write_text('{"recipe"'); run(folder).fit()

@fault('checkpoint', 'weights that do not exist', 'error', 'no checkpoint at')
def _(folder, patch): load_encoder(str(folder / 'a' / 'b'))

@fault('checkpoint', 'a run that has not saved a model yet', 'error', 'has the run saved a checkpoint yet?')
def _(folder, patch): load_encoder(str(folder))

@fault('checkpoint', 'weights that were not downloaded completely', 'error', 'cannot be read as a checkpoint')
def _(folder, patch): finished(folder); path = folder / 'model.safetensors'; path.write_bytes(path.read_bytes()[:5000]); load_pretrained(folder)

@fault('checkpoint', 'weights of another size', 'error', 'is not a checkpoint of this MAE')
def _(folder, patch):
    finished(folder); recipe = json.loads((folder / 'recipe.json').read_text()); recipe['model']['embed_dim'] = 64
    (folder / 'recipe.json').write_text(json.dumps(recipe)); load_pretrained(folder)

@fault('checkpoint', 'weights of something else than a ViT', 'error', 'no ViT encoder in these weights')
def _(folder, patch): save_file(dict(w=torch.zeros(2)), folder / 'model.safetensors'); load_encoder(str(folder / 'model.safetensors'))

@fault('checkpoint', 'weights without a recipe', 'error', 'name the method whose checkpoint it is')
def _(folder, patch): save_file(dict(w=torch.zeros(2)), folder / 'model.safetensors'); load_pretrained(folder)


# ---- environment

@fault('environment', 'a run folder that cannot be written', 'error', 'cannot write to the run folder')
def _(folder, patch): (folder / 'file').write_text(''); run(folder / 'file' / 'run')

def no_space(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

@fault('environment', 'no room for a state', 'error', 'Make room and run the same command')
def _(folder, patch): patch.setattr(checkpoints.Hashed, 'write', no_space); run(folder).fit()

@fault('environment', 'no room for the model at the end', 'error', 'No space left on device')
def _(folder, patch): patch.setattr('mimrepro.trainer.save_pretrained', no_space); run(folder).fit()

@fault('environment', 'a run folder that another run is using', 'error', 'is in use by process')
def _(folder, patch):
    with locked(folder): run(folder).fit()

@fault('environment', 'half precision of a kind that needs a GPU', 'error', "use 'bf16' or 'fp32' on a CPU")
def _(folder, patch): run(folder, replace(TINY, precision='fp16'))

@fault('environment', 'more processes than GPUs', 'error', 'each process needs one of its own')
def _(folder, patch): patch.setattr(torch.cuda, 'device_count', lambda: 2); launch(TINY, 3, 'scenes:32', folder)

@fault('environment', 'processes that a batch cannot be shared by', 'error', 'a batch of 8 cannot be shared by 3 processes')
def _(folder, patch): Trainer.check(types.SimpleNamespace(team=types.SimpleNamespace(world=3), device=torch.device('cpu')), TINY, 'ddp')


# ---- process

def spoiled(folder, value, **more):
    trainer = run(folder, **more)
    forward = trainer.method.forward
    trainer.method.forward = lambda views, draws: (lambda step: step._replace(loss=step.loss * (value if trainer.step == 7 else 1)))(forward(views, draws))
    return trainer

@fault('process', 'a loss that is not a number', 'warning', 'back to the state of step 6, from which the run goes on without that batch')
def _(folder, patch): trainer = spoiled(folder, float('nan')); trainer.fit(); assert (trainer.step, trainer.skipped) == (12, [8])

@fault('process', 'a loss that is infinite', 'warning', 'the loss became inf at step 8')
def _(folder, patch): spoiled(folder, float('inf')).fit()

@fault('process', 'losses that are bad again and again', 'error', 'lower base_lr, clip gradients')
def _(folder, patch): spoiled(folder, float('nan'), rollbacks=0).fit()

@fault('process', 'a loss that jumps, where `spike` is set', 'warning', 'from a median of')
def _(folder, patch): trainer = spoiled(folder, 100., spike=5.); trainer.recent.extend([1.] * 20); patch.setattr(trainer, 'restore', lambda: None); trainer.fit()

@fault('process', 'embeddings that collapse', 'warning', 'the embeddings have collapsed at step')
def _(folder, patch): run(folder).watch(dict(spread=.01))

class Sends:
    "A writer that sends this process a signal at step 4"
    def __init__(self, number): self.number = number
    def write(self, line): line['step'] == 4 and os.kill(os.getpid(), self.number)
    def close(self): pass

@fault('process', 'SIGTERM: a scheduler ends the job', 'stop', 'exit code 143; stopped at step 5 of 12; the same command continues from here')
def _(folder, patch): run(folder, writers=[Sends(signal.SIGTERM)]).fit()

@fault('process', "SIGUSR1: Slurm's warning of a time limit", 'stop', 'exit code 138; stopped at step 5 of 12')
def _(folder, patch): run(folder, writers=[Sends(signal.SIGUSR1)]).fit()

@fault('process', 'SIGHUP: the terminal is closed', 'stop', 'exit code 129; stopped at step 5 of 12')
def _(folder, patch): run(folder, writers=[Sends(signal.SIGHUP)]).fit()

@fault('process', 'Ctrl-C', 'stop', 'exit code 130; stopped at step 5 of 12')
def _(folder, patch): run(folder, writers=[Sends(signal.SIGINT)]).fit()

@fault('process', 'a command that does not exist', 'stop', "exit code 2; no command 'pretrian': did you mean 'pretrain'?")
def _(folder, patch): main(['pretrian'])

@fault('process', 'an option that does not exist', 'stop', "exit code 2; pretrain has no '--dat': did you mean '--data'?")
def _(folder, patch): main(['pretrain', 'mae/demo', '--dat', 'x'])


# ---- all of them

def test_there_are_fifty_sorts_and_each_is_told_once():
    assert len(FAULTS) >= 50 and len({row.what for row in FAULTS}) == len(FAULTS)
    assert {row.kind for row in FAULTS} == {'data', 'recipe', 'checkpoint', 'environment', 'process'}


@pytest.mark.parametrize('row', FAULTS, ids=lambda row: row.what.replace(' ', '-'))
def test_fault(row, tmp_path, monkeypatch, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if row.ends == 'warning':
            row.act(tmp_path, monkeypatch)
            assert any(row.says in str(w.message) for w in caught), [str(w.message) for w in caught]
        elif row.ends == 'error':
            with pytest.raises((ValueError, OSError, FloatingPointError)) as error:
                row.act(tmp_path, monkeypatch)
            assert row.says in str(error.value)
        else:
            with pytest.raises((SystemExit, KeyboardInterrupt)) as left:
                row.act(tmp_path, monkeypatch)
            code = 130 if left.type is KeyboardInterrupt else left.value.code
            leaves, told = row.says.split('; ', 1)
            assert leaves == f'exit code {code}' and told in ''.join(capfd.readouterr())
